"""Train ColorNet on unlabelled video (YouTube-VOS layout) or stills (COCO).

    python trainColorNetDUL_benchmark.py --exp ID --train_config data/configs/train_config_default_M.json [--coco]
    python trainColorNetDUL_benchmark.py --exp ID ... --resume auto             # go on where the run ended
    torchrun --nproc_per_node 4 trainColorNetDUL_benchmark.py --exp ID ...      # the batch is split over processes

Writes snapshots/ID/{last,epoch_NNN,final}.pth and logs/ID/{metrics.jsonl,config.json,events...}.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from datasets import build_loader, build_train_dataset
from losses import build_objective
from models import build_model, load_weights
from models.colornet import ColorNet
from models.convolution import use_winograd
from models.resnet import BasicBlock
from training.averages import RunningAverage
from training.checkpointing import checkpoint_activations
from training.failures import failures_in_words
from training.journal import Journal
from training.log import MetricLog
from training.loop import train
from training.memory import keep_freed_memory
from training.options import KEPT, find_run, kept, load_configuration, parse_arguments
from training.pictures import training_pictures
from training.schedule import build_optimiser, learning_rate, note_on_length
from training.snapshots import Snapshots
from training.state import Progress, TrainingState, refuse_changes
from training.step import TrainingStep, check_parts
from training.validation import Validation
from utils import distributed
from utils.checkpoint import save_checkpoint
from utils.config import DEFAULT_TRAIN_CONFIG, Settings, TrainConfig, load_train_config, resolved
from utils.console import start_console
from utils.device import channels_last, resolve_device
from utils.errors import UserError, run_script
from utils.files import claimed
from utils.seed import seed_everything
from utils.signals import StopRequest

logger = logging.getLogger("train")


def main(argv: Sequence[str] | None = None) -> None:
    """The experiment's folders, its configuration, and the run."""
    args = parse_arguments(argv, __doc__)
    start_console()
    stop = StopRequest()
    device = resolve_device(args.device)
    distributed.start(device)
    logger.setLevel(logging.INFO if distributed.rank() == 0 else logging.WARNING)
    exp = load_train_config(args.train_config or DEFAULT_TRAIN_CONFIG, args.exp).exp
    snapshots, log_folder = Snapshots(args.snapshot_dir / exp), args.logdir / exp
    with failures_in_words(), ExitStack() as held:
        for folder in dict.fromkeys(folder.resolve() for folder in (snapshots.folder, log_folder)):
            held.enter_context(claimed(folder))
        saved = find_run(snapshots) if args.resume else None
        if saved:
            args = parse_arguments(argv, __doc__, begun={name: saved["provenance"][name] for name in KEPT})
        train_config, settings = load_configuration(args, saved)
        train_config = replace(train_config, exp=exp)
        check_parts(settings.TRAIN.BATCH_SIZE, args.accumulate, negatives=train_config.is_neg)
        origin = {"train_config": resolved(train_config), "settings": resolved(settings), **kept(args)}
        log = held.enter_context(MetricLog(log_folder, origin))
        if saved:
            refuse_changes(saved, origin)
        elif snapshots.exist() or log.holds_steps():
            raise UserError(f"experiment {exp} exists in {snapshots.folder} or {log.folder} and is not overwritten; go "
                            "on with --resume auto or choose another --exp")
        seed_everything(args.seed)
        run(args, train_config, settings, device, origin, saved, snapshots, log, stop)
    distributed.stop()


def run(args: argparse.Namespace, train_config: TrainConfig, settings: Settings, device: torch.device,
        origin: dict[str, Any], saved: dict[str, Any] | None, snapshots: Snapshots, log: MetricLog,
        stop: StopRequest) -> None:
    """Data, model, objective, epochs, final models; from the checkpoint `saved` on, where there is one."""
    dataset = build_train_dataset(settings, train_config, coco=args.coco, seed=args.seed)
    loader = build_loader(dataset, settings, seed=args.seed, device=device)

    model = prepare_model(build_model(train_config, settings), args, device, begins=not saved)
    state = TrainingState(
        model=model, average=RunningAverage(model, settings.TRAIN.EMA) if settings.TRAIN.EMA else None,
        optimiser=build_optimiser(model, settings),
        scaler=GradScaler(device.type, enabled=args.precision == "fp16"), progress=Progress(),
        origin=origin | {"data": dataset.summary})
    validation = Validation(args.validate, settings.DATASET.ROOT, settings.TEST, model) if args.validate else None
    take_up(state, saved, snapshots, log, batches=len(loader))
    announce(state, train_config, settings, batches=len(loader))

    step = TrainingStep(state, build_objective(train_config, settings), precision=args.precision,
                        parts=args.accumulate, seed=args.seed)
    pictures = partial(training_pictures, model, temperature=train_config.TEMP, color_mode=train_config.color_mode,
                       size=settings.TB.IM_SIZE)
    journal = Journal(log, state, stop, log_every=settings.LOG.ITER_TRAIN, pictures=pictures,
                      pictures_every=settings.TB.ITER_IMAGES, batch_size=settings.TRAIN.BATCH_SIZE,
                      steps=settings.TRAIN.NUM_EPOCHS * len(loader))
    rate = partial(learning_rate, base=settings.MODEL.LR, epochs=settings.TRAIN.NUM_EPOCHS,
                   cosine=train_config.is_cos_lr)
    train(state, loader, step, journal, snapshots, validation, stop, rate=rate, options=settings.TRAIN)
    if distributed.rank() == 0:
        average = state.average.state if state.average else None
        snapshots.save_final(state.contents(), settings.TRAIN.NUM_EPOCHS, average)
        logger.info("done: %s is the mean of the last epochs", snapshots.final)


def prepare_model(model: ColorNet, args: argparse.Namespace, device: torch.device, *, begins: bool) -> ColorNet:
    """The network in train mode on its device, as the options and the number of processes ask.

    `begins` is false where a checkpoint's weights will take the place of all others.
    """
    if args.init and begins:
        load_weights(model, args.init)
    model.to(device).train()
    channels_last(model)
    distributed.synchronise_batch_norm(model)
    if args.checkpoint_activations:
        checkpoint_activations(module for module in model.modules() if isinstance(module, BasicBlock))
    if args.compile:
        model.compile()
    elif device.type == "cpu":
        use_winograd(model)
        keep_freed_memory()
    return model


def take_up(state: TrainingState, saved: dict[str, Any] | None, snapshots: Snapshots, log: MetricLog, *,
            batches: int) -> None:
    """Go on from a checkpoint, or keep what the run begins with, so that it can be begun again."""
    if saved:
        state.restore(saved)
    if distributed.rank() == 0:
        progress = state.progress
        log.go_on_after(progress.step, validated=progress.step > 0 and progress.batch < batches)
        if not saved:
            save_checkpoint(snapshots.start, state.resumable_contents())


def announce(state: TrainingState, train_config: TrainConfig, settings: Settings, *, batches: int) -> None:
    """Say in one line what is about to happen."""
    origin = state.origin
    data = ", ".join(f"{key} {value}" for key, value in origin["data"].items())
    parameters = sum(p.numel() for p in state.model.parameters()) / 1e6
    logger.info("experiment %s: size %s, %.2f M parameters; data: %s; device %s, precision %s, seed %d, "
                "%d processes; %d clips a step, %d steps an epoch, epochs %d to %d", train_config.exp,
                train_config.model_size, parameters, data, state.device, origin["precision"], origin["seed"],
                distributed.world_size(), settings.TRAIN.BATCH_SIZE, batches, state.progress.epoch,
                settings.TRAIN.NUM_EPOCHS)
    note = note_on_length(base=settings.MODEL.LR, epochs=settings.TRAIN.NUM_EPOCHS, cosine=train_config.is_cos_lr)
    if note:
        logger.warning(note)


if __name__ == "__main__":
    run_script(main)
