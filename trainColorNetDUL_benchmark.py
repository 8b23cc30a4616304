"""Train ColorNet on unlabelled video (YouTube-VOS layout) or stills (COCO).

    python trainColorNetDUL_benchmark.py --exp ID --train_config data/configs/train_config_default_M.json [--coco]
    python trainColorNetDUL_benchmark.py --exp ID ... --resume auto             # go on where the run ended
    torchrun --nproc_per_node 4 trainColorNetDUL_benchmark.py --exp ID ...      # the batch is split over processes

Writes snapshots/ID/{last,epoch_NNN,final}.pth and logs/ID/{metrics.jsonl,config.json,events...}.
"""

from __future__ import annotations

import argparse
import logging
import platform
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets import build_train_dataset, checked, collate, init_worker
from datasets.sampler import EpochBatchSampler
from losses import build_objective
from losses.objective import Losses, Objective
from losses.pictures import training_pictures
from models import build_model
from utils import distributed
from utils.config import (
    DEFAULT_SETTINGS,
    DEFAULT_TRAIN_CONFIG,
    Settings,
    TrainConfig,
    load_settings,
    load_train_config,
    resolved,
)
from utils.device import resolve_device
from utils.errors import UserError, run_script
from utils.images import normalise
from utils.log import MetricLog, start_console
from utils.schedule import learning_rate
from utils.seed import seed_everything
from utils.signals import StopRequest
from utils.snapshots import Snapshots
from utils.timing import Meter

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FAILED_SHARE = 0.01  # of the clips drawn: more than this could not be decoded and the run ends
FAILED_COUNTED_FROM = 100  # clips drawn before that share means anything
CHANGEABLE = ("exp", "DATASET.ROOT", "TRAIN.NUM_WORKERS", "TRAIN.SAVE_EVERY_STEPS", "TEST.", "LOG.", "TB.")
# ... beginnings of the keys that a resumed run may change: its weights do not depend on them

logger = logging.getLogger("train")


@dataclass
class Progress:
    """Where a run stands; with the seed it determines everything random that follows."""

    epoch: int = 1  # in progress, from 1
    batch: int = 0  # batches of that epoch already done
    step: int = 0  # optimiser steps done
    drawn: int = 0  # clips
    failed: int = 0  # of these, clips that another one stood in for because a frame could not be decoded


@dataclass
class Run:
    """What training changes, and where it is written."""

    args: argparse.Namespace
    settings: Settings
    train_config: TrainConfig
    device: torch.device
    model: nn.Module
    objective: Objective
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    snapshots: Snapshots
    log: MetricLog
    data: dict[str, Any]  # the data set's source and counts
    progress: Progress
    stop: StopRequest

    def contents(self, *, resumable: bool = False) -> dict[str, Any]:
        """What a checkpoint holds: the model, what made it, and, to resume, all else that training changes."""
        provenance = {"data": self.data, "seed": self.args.seed, "epoch": self.progress.epoch,
                      "step": self.progress.step, "precision": self.args.precision, "processes":
                      distributed.world_size(), "versions": {
                          "torch": str(torch.__version__), "torchvision": str(torchvision.__version__),
                          "numpy": np.__version__, "python": platform.python_version()}}
        contents = {"model": self.model.state_dict(), "train_config": resolved(self.train_config),
                    "settings": resolved(self.settings), "provenance": provenance}
        if resumable:
            contents["training"] = {"optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict(),
                                    "progress": asdict(self.progress)}
        return contents

    def restore(self, contents: dict[str, Any]) -> None:
        """Take up a resumable checkpoint; the configuration must be the one it was made with."""
        for name, ours in (("train_config", self.train_config), ("settings", self.settings)):
            changed = [key for key in _differences(contents[name], resolved(ours)) if not key.startswith(CHANGEABLE)]
            if changed:
                raise UserError(f"--resume goes on with the configuration that the run began with; changed: "
                                f"{', '.join(sorted(changed))}; restore the old values or start another --exp")
        if contents["provenance"]["seed"] != self.args.seed:
            raise UserError(f"--resume goes on with the seed that the run began with, "
                            f"{contents['provenance']['seed']}; it is {self.args.seed}")
        self.model.load_state_dict(contents["model"])
        self.optimiser.load_state_dict(contents["training"]["optimiser"])
        self.scaler.load_state_dict(contents["training"]["scaler"])
        self.progress = Progress(**contents["training"]["progress"])


def main() -> int | None:
    """Configuration, data, model, objective, epochs, checkpoints."""
    args = parse_arguments()
    start_console()
    stop = StopRequest()

    # --- configuration ---
    train_config, settings = load_train_config(args.train_config), load_settings(args.cfg, args.set)
    train_config = replace(train_config, exp=args.exp or train_config.exp)
    device = distributed.start(resolve_device(args.device))
    logger.setLevel(logging.INFO if distributed.rank() == 0 else logging.WARNING)
    seed_everything(args.seed)
    snapshots = Snapshots(args.snapshot_dir / train_config.exp)
    log = MetricLog(args.logdir / train_config.exp, {"train_config": resolved(train_config), "seed": args.seed,
                                                     "settings": resolved(settings)})
    if args.resume is None and (snapshots.exist() or log.path.exists()):
        raise UserError(f"experiment {train_config.exp} exists in {snapshots.folder} or {log.folder} and is not "
                        "overwritten; go on with --resume auto or choose another --exp")

    # --- data ---
    dataset = build_train_dataset(settings, train_config, coco=args.coco, seed=args.seed)
    sampler = EpochBatchSampler(len(dataset), batch_size=settings.TRAIN.BATCH_SIZE, seed=args.seed,
                                rank=distributed.rank(), world_size=distributed.world_size())
    workers = settings.TRAIN.NUM_WORKERS
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate,
                        worker_init_fn=init_worker, persistent_workers=workers > 0, pin_memory=device.type == "cuda")

    # --- model, objective, optimiser ---
    model = distributed.synchronise_batch_norm(build_model(train_config, settings).to(device).train())
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    if args.compile:
        model.compile()
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.MODEL.LR, betas=settings.MODEL.BETAS,
                                  eps=settings.MODEL.EPS, weight_decay=settings.MODEL.WEIGHT_DECAY)
    run = Run(args, settings, train_config, device, model, build_objective(train_config, settings), optimiser,
              torch.amp.GradScaler(device.type, enabled=args.precision == "fp16"), snapshots, log, dataset.summary,
              Progress(), stop)
    saved = snapshots.newest() if args.resume else None
    if saved is not None:
        run.restore(saved)
        if distributed.rank() == 0:
            log.forget_after(run.progress.step)
    announce(run, len(sampler))

    # --- epochs ---
    epochs = settings.TRAIN.NUM_EPOCHS
    while run.progress.epoch <= epochs:
        sampler.set_position(run.progress.epoch, run.progress.batch)
        stopped = train_one_epoch(run, loader, len(sampler))
        if stopped:
            return finish_early(run, stopped)
    if distributed.rank() == 0:
        snapshots.save_final(run.contents(), epochs)
        logger.info("done: %s is the mean of the last epochs", snapshots.final)
        log.close()
    distributed.stop()


def parse_arguments() -> argparse.Namespace:
    """The command line (DESIGN section 2)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", help="experiment id; default: the training config's")
    parser.add_argument("--train_config", type=Path, default=DEFAULT_TRAIN_CONFIG, help="what is trained (JSON)")
    parser.add_argument("--coco", action="store_true", help="train on the stills of ROOT/COCO/train2017")
    parser.add_argument("--cfg", type=Path, default=DEFAULT_SETTINGS, help="how it is run (YAML)")
    parser.add_argument("--set", nargs="+", default=[], metavar="K V", help="override YAML keys: KEY VALUE ...")
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the forward pass")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N",
                        help="split each batch into N parts to save memory; negatives and anchors stay in their part")
    parser.add_argument("--compile", action="store_true", help="compile the network (takes a minute, pays on GPUs)")
    parser.add_argument("--resume", choices=["auto"], help="go on from the newest complete checkpoint")
    parser.add_argument("--snapshot-dir", type=Path, default=Path("snapshots"))
    parser.add_argument("--logdir", type=Path, default=Path("logs"))
    return parser.parse_args()


def train_one_epoch(run: Run, loader: DataLoader, batches: int) -> int | None:
    """Train from the run's position to the end of its epoch; returns the signal that ended it before, or None."""
    position, settings = run.progress, run.settings
    rate = learning_rate(position.epoch, base=settings.MODEL.LR, epochs=settings.TRAIN.NUM_EPOCHS,
                         cosine=run.train_config.is_cos_lr)
    for group in run.optimiser.param_groups:
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
    if distributed.rank() == 0:
        run.snapshots.save_epoch(run.contents(), position.epoch, settings.TRAIN.NUM_EPOCHS)
    position.epoch, position.batch = position.epoch + 1, 0
    save(run)
    return distributed.largest(run.stop.received or 0, run.device) or None


def optimise(run: Run, batch: dict[str, Any]) -> Losses:
    """One optimiser step on a batch of clips, in `--accumulate` parts; returns the mean losses."""
    generator = torch.Generator().manual_seed(run.args.seed * 1_000_003 + run.progress.step)
    dtype, parts = PRECISIONS[run.args.precision], []
    for part in split_clips(batch, run.args.accumulate):
        with torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
            losses = run.objective(run.model, prepare(part, run.device), generator)
        refuse_non_finite(losses, run.progress.step, batch["clip"])
        run.scaler.scale(losses.total / run.args.accumulate).backward()
        parts.append(Losses(*(loss.detach() for loss in losses)))
    distributed.average_gradients(run.model.parameters())
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.optimiser.zero_grad()
    return Losses(*(torch.stack(term).mean() for term in zip(*parts)))


def prepare(part: dict[str, dict[str, Tensor]], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """Move a batch of views to the device; frames, uint8 until here, become the network's normalised input."""
    moved = {branch: {name: value.to(device, non_blocking=True) for name, value in views.items()}
             for branch, views in part.items()}
    return {branch: {name: normalise(value) if value.dtype == torch.uint8 else value for name, value in views.items()}
            for branch, views in moved.items()}


def split_clips(batch: dict[str, Any], parts: int) -> list[dict[str, dict[str, Tensor]]]:
    """The tensors of a batch in `parts` parts of equally many clips."""
    clips = len(batch["clip"])
    if clips % parts:
        raise UserError(f"--accumulate must divide the clips of a process's batch; {parts} does not divide {clips}")
    size = clips // parts
    return [{branch: {name: value[i:i + size] for name, value in batch[branch].items()}
             for branch in ("color", "dense") if branch in batch} for i in range(0, clips, size)]


def report(run: Run, meter: Meter, losses: Losses, rate: float, batch: dict[str, Any]) -> None:
    """Log the step's numbers and, now and then, pictures of what the objective saw."""
    step, settings = run.progress.step, run.settings
    if step % settings.LOG.ITER_TRAIN == 0:
        record = {f"loss/{name}": float(value) for name, value in losses._asdict().items()}
        run.log.log({"epoch": run.progress.epoch, **record, "lr": rate, **meter.reading(),
                     "failed_clips": run.progress.failed}, step)
    every = settings.TB.ITER_IMAGES
    if every and step % every == 1 % every:
        pictures = training_pictures(run.model, prepare(split_clips(batch, 1)[0], run.device),
                                     temperature=run.train_config.TEMP, color_mode=run.train_config.color_mode,
                                     size=settings.TB.IM_SIZE)
        run.log.images(pictures, step)


def refuse_non_finite(losses: Losses, step: int, clips: list[str]) -> None:
    """End the run at a loss that is not a number, naming the term, the step and the clips."""
    bad = [name for name, value in losses._asdict().items() if not torch.isfinite(value)]
    if bad:
        raise UserError(f"losses must be finite; {', '.join(bad)} is not at step {step + 1} (clips "
                        f"{', '.join(clips)}); lower MODEL.LR, or use --precision fp32 or bf16")


def count_failures(run: Run, failed: list[str]) -> None:
    """Count the clips whose frames could not be decoded; too many of them end the run."""
    position = run.progress
    position.drawn += run.settings.TRAIN.BATCH_SIZE
    position.failed += sum(distributed.gather_objects(len(failed)))
    if position.drawn >= FAILED_COUNTED_FROM and position.failed > FAILED_SHARE * position.drawn:
        raise UserError(f"at most {FAILED_SHARE:.0%} of the clips may have frames that cannot be decoded; "
                        f"{position.failed} of {position.drawn} had (the warnings above name them); "
                        "replace these files or remove them")


def save(run: Run) -> None:
    """Write the resumable checkpoint."""
    if distributed.rank() == 0:
        run.snapshots.save_last(run.contents(resumable=True))


def finish_early(run: Run, number: int) -> int:
    """Say where the run stands after a signal; the status is the shell's for it."""
    logger.warning("ended by %s after step %d, saved in %s; go on with --resume auto",
                   signal.Signals(number).name, run.progress.step, run.snapshots.last)
    run.log.close()
    distributed.stop()
    return 128 + number


def announce(run: Run, batches: int) -> None:
    """Say in one line what is about to happen."""
    data = ", ".join(f"{key} {value}" for key, value in run.data.items())
    parameters = sum(p.numel() for p in run.model.parameters()) / 1e6
    logger.info("experiment %s: size %s, %.2f M parameters; data: %s; device %s, precision %s, seed %d, "
                "%d processes; %d clips a step, %d steps an epoch, epochs %d to %d", run.train_config.exp,
                run.train_config.model_size, parameters, data, run.device, run.args.precision, run.args.seed,
                distributed.world_size(), run.settings.TRAIN.BATCH_SIZE, batches, run.progress.epoch,
                run.settings.TRAIN.NUM_EPOCHS)


def _differences(old: Any, new: Any, prefix: str = "") -> set[str]:
    """Names of the keys whose values differ between two nested dicts."""
    if isinstance(old, dict) and isinstance(new, dict):
        return set().union(*(_differences(old.get(key), new.get(key), f"{prefix}.{key}".strip("."))
                             for key in old.keys() | new.keys()))
    return set() if old == new else {prefix}


if __name__ == "__main__":
    run_script(main)
