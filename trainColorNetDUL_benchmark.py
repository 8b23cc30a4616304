"""Train ColorNet on unlabelled video (YouTube-VOS layout) or stills (COCO).

    python trainColorNetDUL_benchmark.py --exp ID --train_config data/configs/train_config_default_M.json [--coco]
    python trainColorNetDUL_benchmark.py --exp ID ... --resume auto             # go on where the run ended
    torchrun --nproc_per_node 4 trainColorNetDUL_benchmark.py --exp ID ...      # the batch is split over processes

Writes snapshots/ID/{last,epoch_NNN,final}.pth and logs/ID/{metrics.jsonl,config.json,events...}.
"""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.resnet import BasicBlock
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets import build_train_dataset, checked, collate, init_worker, prepare, split_clips
from datasets.sampler import EpochBatchSampler
from losses import build_objective
from losses.objective import Losses, Objective, refuse_non_finite
from models import build_model, load_weights
from models.convolution import use_winograd
from training.averages import RunningAverage
from training.log import MetricLog
from training.memory import keep_freed_memory
from training.options import KEPT, find_run, kept, load_configuration, parse_arguments
from training.pictures import training_pictures
from training.recompute import recompute_in_backward
from training.schedule import build_optimiser, learning_rate
from training.snapshots import Snapshots
from training.state import Progress, TrainingState, refuse_changes
from training.validation import Validation
from utils import distributed
from utils.config import DEFAULT_TRAIN_CONFIG, Settings, TrainConfig, load_train_config, resolved
from utils.console import start_console
from utils.device import PRECISIONS, resolve_device
from utils.errors import UserError, run_script
from utils.seed import seed_everything
from utils.signals import StopRequest
from utils.timing import Meter

FAILED_SHARE = 0.01  # of the clips drawn: more than this could not be decoded and the run ends
FAILED_COUNTED_FROM = 100  # clips drawn before that share means anything

logger = logging.getLogger("train")


@dataclass
class Run:
    """What the loop works with."""

    args: argparse.Namespace
    settings: Settings
    train_config: TrainConfig
    device: torch.device
    state: TrainingState
    objective: Objective
    snapshots: Snapshots
    log: MetricLog
    validation: Validation | None
    stop: StopRequest


def main(argv: Sequence[str] | None = None) -> int | None:
    """Configuration, data, model, objective, epochs, checkpoints."""
    args = parse_arguments(argv, __doc__)
    start_console()
    stop = StopRequest()

    # --- configuration ---
    device = resolve_device(args.device)
    distributed.start(device)
    logger.setLevel(logging.INFO if distributed.rank() == 0 else logging.WARNING)
    exp = load_train_config(args.train_config or DEFAULT_TRAIN_CONFIG, args.exp).exp
    snapshots = Snapshots(args.snapshot_dir / exp)
    saved = find_run(snapshots) if args.resume else None
    if saved:
        args = parse_arguments(argv, __doc__, begun={name: saved["provenance"][name] for name in KEPT})
    train_config, settings = load_configuration(args, saved)
    train_config = replace(train_config, exp=exp)
    origin = {"train_config": resolved(train_config), "settings": resolved(settings), **kept(args)}
    log = MetricLog(args.logdir / exp, origin)
    if saved:
        refuse_changes(saved, origin)
    elif snapshots.exist() or log.path.exists():
        raise UserError(f"experiment {exp} exists in {snapshots.folder} or {log.folder} and is not overwritten; go on "
                        "with --resume auto or choose another --exp")
    seed_everything(args.seed)

    # --- data ---
    dataset = build_train_dataset(settings, train_config, coco=args.coco, seed=args.seed)
    sampler = EpochBatchSampler(len(dataset), batch_size=settings.TRAIN.BATCH_SIZE, seed=args.seed,
                                rank=distributed.rank(), world_size=distributed.world_size())
    workers = settings.TRAIN.NUM_WORKERS
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate,
                        worker_init_fn=init_worker, persistent_workers=workers > 0, pin_memory=device.type == "cuda")

    # --- model, objective, optimiser ---
    model = prepare_model(build_model(train_config, settings), args, device, begins=not saved)
    state = TrainingState(
        model=model, average=RunningAverage(model, settings.TRAIN.EMA) if settings.TRAIN.EMA else None,
        optimiser=build_optimiser(model, settings),
        scaler=torch.amp.GradScaler(device.type, enabled=args.precision == "fp16"), progress=Progress(),
        origin=origin | {"data": dataset.summary})
    validation = Validation(args.validate, settings.DATASET.ROOT, settings.TEST, model) if args.validate else None
    run = Run(args, settings, train_config, device, state, build_objective(train_config, settings), snapshots, log,
              validation, stop)
    take_up(run, saved)
    announce(run, len(sampler))

    # --- epochs ---
    while state.progress.epoch <= settings.TRAIN.NUM_EPOCHS:
        sampler.set_position(state.progress.epoch, state.progress.batch)
        stopped = train_one_epoch(run, loader, len(sampler))
        if stopped:
            return finish_early(run, stopped)
    finish(run)


def prepare_model(model: nn.Module, args: argparse.Namespace, device: torch.device, *, begins: bool) -> nn.Module:
    """The network in train mode on its device, as the options and the number of processes ask.

    `begins` is false where a checkpoint's weights will take the place of all others.
    """
    if args.init and begins:
        load_weights(model, args.init)
    model = distributed.synchronise_batch_norm(model.to(device, memory_format=torch.channels_last).train())
    if args.checkpoint_activations:
        recompute_in_backward(module for module in model.modules() if isinstance(module, BasicBlock))
    if args.compile:
        model.compile()
    elif device.type == "cpu":
        use_winograd(model)
        keep_freed_memory()
    return model


def take_up(run: Run, saved: dict[str, Any] | None) -> None:
    """Go on from a checkpoint, or keep what the run begins with, so that it can be begun again."""
    if saved:
        run.state.restore(saved)
    if distributed.rank() == 0:
        run.log.forget_after(run.state.progress.step)
        if not saved:
            run.snapshots.save_start(run.state.resumable_contents())


def train_one_epoch(run: Run, loader: DataLoader, batches: int) -> int | None:
    """Train from the run's position to the end of its epoch; returns the signal that ended it before, or None."""
    position, settings = run.state.progress, run.settings
    rate = learning_rate(position.epoch, base=settings.MODEL.LR, epochs=settings.TRAIN.NUM_EPOCHS,
                         cosine=run.train_config.is_cos_lr)
    for group in run.state.optimiser.param_groups:
        group["lr"] = rate
    meter = Meter(settings.TRAIN.BATCH_SIZE)
    bar = tqdm(meter.passing(map(checked, loader)), total=batches, initial=position.batch, unit="step",
               desc=f"epoch {position.epoch}", disable=None if distributed.rank() == 0 else True)
    with logging_redirect_tqdm(), bar:
        for batch in bar:
            losses = optimise(run, batch)
            position.step, position.batch = position.step + 1, position.batch + 1
            count_failures(run, batch["failed"])
            bar.set_postfix(loss=f"{float(losses.total):.3f}")
            if distributed.rank() == 0:
                report(run, meter, losses, rate, batch)
            signalled = distributed.largest(run.stop.received or 0, run.device)
            every = settings.TRAIN.SAVE_EVERY_STEPS
            if (signalled or (every and position.step % every == 0)) and position.batch < batches:
                save(run)
                if signalled:
                    return signalled
    end_epoch(run)
    return distributed.largest(run.stop.received or 0, run.device) or None


def end_epoch(run: Run) -> None:
    """Keep what the epoch has made, validate where its turn has come, and move on."""
    position, settings = run.state.progress, run.settings.TRAIN
    first = distributed.rank() == 0
    if first:
        run.snapshots.save_epoch(run.state.contents(), position.epoch, settings.NUM_EPOCHS)
    if run.validation and (position.epoch % settings.VALIDATE_EVERY == 0 or position.epoch == settings.NUM_EPOCHS):
        scores = run.validation()
        if first:
            run.log.log({"epoch": position.epoch, **scores}, position.step)
            run.snapshots.save_best(run.state.contents(), position.epoch, scores["val/J&F"], settings.KEEP_BEST)
    position.epoch, position.batch = position.epoch + 1, 0
    save(run)


def optimise(run: Run, batch: dict[str, Any]) -> Losses:
    """One optimiser step on a batch of clips, in `--accumulate` parts; returns the mean losses."""
    state = run.state
    generator = torch.Generator().manual_seed(run.args.seed * 1_000_003 + state.progress.step)
    dtype, parts = PRECISIONS[run.args.precision], []
    for part in split_clips(batch, run.args.accumulate):
        with torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
            losses = run.objective(state.model, prepare(part, run.device), generator)
        refuse_non_finite(losses, state.progress.step, batch["clip"])
        state.scaler.scale(losses.total / run.args.accumulate).backward()
        parts.append(Losses(*(loss.detach() for loss in losses)))
    distributed.average_gradients(state.model.parameters())
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.optimiser.zero_grad()
    if state.average is not None:
        state.average.update(state.model)
    return Losses(*(torch.stack(term).mean() for term in zip(*parts)))


def report(run: Run, meter: Meter, losses: Losses, rate: float, batch: dict[str, Any]) -> None:
    """Log the step's numbers and, now and then, pictures of what the objective saw."""
    step, settings = run.state.progress.step, run.settings
    if step % settings.LOG.ITER_TRAIN == 0:
        record = {f"loss/{name}": float(value) for name, value in losses._asdict().items()}
        run.log.log({"epoch": run.state.progress.epoch, **record, "lr": rate, **meter.reading(),
                     "failed_clips": run.state.progress.failed}, step)
    every = settings.TB.ITER_IMAGES
    if every and step % every == 1 % every:
        pictures = training_pictures(run.state.model, prepare(split_clips(batch, 1)[0], run.device),
                                     temperature=run.train_config.TEMP, color_mode=run.train_config.color_mode,
                                     size=settings.TB.IM_SIZE)
        run.log.images(pictures, step)


def count_failures(run: Run, failed: list[str]) -> None:
    """Count the clips whose frames could not be decoded; too many of them end the run."""
    position = run.state.progress
    position.drawn += run.settings.TRAIN.BATCH_SIZE
    position.failed += sum(distributed.gather_objects(len(failed)))
    if position.drawn >= FAILED_COUNTED_FROM and position.failed > FAILED_SHARE * position.drawn:
        raise UserError(f"at most {FAILED_SHARE:.0%} of the clips may have frames that cannot be decoded; "
                        f"{position.failed} of {position.drawn} had (the warnings above name them); "
                        "replace these files or remove them")


def save(run: Run) -> None:
    """Write the resumable checkpoint."""
    if distributed.rank() == 0:
        run.snapshots.save_last(run.state.resumable_contents())


def finish(run: Run) -> None:
    """Write the final models."""
    if distributed.rank() == 0:
        contents = run.state.contents()
        run.snapshots.save_final(contents, run.settings.TRAIN.NUM_EPOCHS)
        if run.state.average is not None:
            run.snapshots.save_running_average(contents, run.state.average.state)
        logger.info("done: %s is the mean of the last epochs", run.snapshots.final)
        run.log.close()
    distributed.stop()


def finish_early(run: Run, number: int) -> int:
    """Say where the run stands after a signal; the status is the shell's for it."""
    logger.warning("ended by %s after step %d, saved in %s; go on with --resume auto",
                   signal.Signals(number).name, run.state.progress.step, run.snapshots.last)
    run.log.close()
    distributed.stop()
    return 128 + number


def announce(run: Run, batches: int) -> None:
    """Say in one line what is about to happen."""
    data = ", ".join(f"{key} {value}" for key, value in run.state.origin["data"].items())
    parameters = sum(p.numel() for p in run.state.model.parameters()) / 1e6
    logger.info("experiment %s: size %s, %.2f M parameters; data: %s; device %s, precision %s, seed %d, "
                "%d processes; %d clips a step, %d steps an epoch, epochs %d to %d", run.train_config.exp,
                run.train_config.model_size, parameters, data, run.device, run.args.precision, run.args.seed,
                distributed.world_size(), run.settings.TRAIN.BATCH_SIZE, batches, run.state.progress.epoch,
                run.settings.TRAIN.NUM_EPOCHS)


if __name__ == "__main__":
    run_script(main)
