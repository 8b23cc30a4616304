"""The training command's options; a run that goes on takes those that are not given now from its own checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.snapshots import Snapshots
from utils import distributed
from utils.config import (
    DEFAULT_TRAIN_CONFIG,
    Settings,
    TrainConfig,
    load_settings,
    load_train_config,
    parse_train_config,
    resolved,
)
from utils.device import PRECISIONS
from utils.errors import UserError
from utils.version import VERSION

KEPT = ("seed", "precision", "accumulate", "coco", "init", "validate", "checkpoint_activations", "compile")


def parse_arguments(argv: Sequence[str] | None = None, description: str | None = None,
                    begun: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """The command line (DESIGN section 2); the `KEPT` options of a run that has `begun` are the defaults then."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--version", action="version", version=f"ColorNet {VERSION}")
    add("--exp", help="experiment id; default: the training config's")
    add("--train_config", type=Path, help=f"what is trained (JSON); default: {DEFAULT_TRAIN_CONFIG.name}")
    add("--coco", action="store_true", help="train on stills alone, those of DATASET.STILLS: ROOT/COCO/train2017")
    add("--init", metavar="MODEL", help="begin with the weights of this file, which is of the same size and heads")
    add("--cfg", type=Path, help="how it is run (YAML); default: ytvos.yaml")
    add("--set", nargs="+", action="extend", default=[], metavar=("K", "V"), help="override YAML keys")
    add("--seed", type=int, default=777)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the forward pass")
    add("--accumulate", type=int, default=1, metavar="N",
        help="split each batch into N parts to save memory; negatives and anchors stay in their part")
    add("--checkpoint-activations", action="store_true", help="activation checkpointing: less memory for more time")
    add("--compile", action="store_true", help="compile the network: minutes at first, for long runs on GPUs")
    add("--validate", metavar="LIST",
        help="labelled list (filelists/...) for J&F before the first epoch and every TRAIN.VALIDATE_EVERY epochs")
    add("--resume", choices=["auto"], help="go on from the newest complete checkpoint with all that the run began with")
    add("--snapshot-dir", type=Path, default=Path("snapshots"))
    add("--logdir", type=Path, default=Path("logs"))
    parser.set_defaults(**(begun or {}))
    args = parser.parse_args(argv)
    if args.compile and args.checkpoint_activations:
        raise UserError("--compile and --checkpoint-activations exclude each other: PyTorch does not compile blocks "
                        "that keep their statistics while they run again; leave one of them out")
    return args


def kept(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a checkpoint holds, as plain values."""
    return {name: getattr(args, name) for name in KEPT}


def load_configuration(args: argparse.Namespace, saved: Mapping[str, Any] | None) -> tuple[TrainConfig, Settings]:
    """What is trained and how it is run: as given, and what is not given as in the checkpoint or by default."""
    if saved and args.train_config is None:
        train_config = parse_train_config(saved["train_config"], "the checkpoint's train_config")
    else:
        train_config = load_train_config(args.train_config or DEFAULT_TRAIN_CONFIG)
    return train_config, load_settings(args.cfg, args.set, base=saved and saved["settings"])


def find_run(snapshots: Snapshots) -> dict[str, Any]:
    """The newest checkpoint of the run in `snapshots`, read by the first process.

    What it does not say, since the software that wrote it had no such option, is at its default. `UserError` where
    nothing has begun.
    """
    saved = distributed.broadcast_object(snapshots.newest() if distributed.rank() == 0 else None)
    if saved is None:
        others = sorted({path.parent.name for path in snapshots.folder.parent.glob("*/*.pth")})
        raise UserError(f"--resume auto goes on with a run that has begun, and {snapshots.folder} holds none (there "
                        f"{'are ' + ', '.join(others) if others else 'is no other'}); correct --exp or "
                        "--snapshot-dir, or start the run without --resume")
    return saved | {"settings": resolved(load_settings(base=saved["settings"])),
                    "provenance": kept(parse_arguments([])) | saved["provenance"]}
