"""What training changes, as a checkpoint holds it: enough to go on as if nothing had happened."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.amp.grad_scaler import GradScaler

from training.averages import RunningAverage
from utils import distributed
from utils.errors import UserError
from utils.version import VERSION

CHANGEABLE = re.compile(r"train_config\.exp|data\.source|settings\.((TEST|LOG|TB)\..*|DATASET\.(ROOT|STILLS)"
                        r"|TRAIN\.(NUM_WORKERS|SAVE_EVERY_STEPS|VALIDATE_EVERY|KEEP_BEST))"
                        r"|validate|checkpoint_activations|compile")
# ... the keys that a resumed run may change: its weights do not depend on them
ODD = KeyError, TypeError, ValueError, AttributeError  # what values of the wrong kind raise
LENGTH = "settings.TRAIN.NUM_EPOCHS"  # of a run; it may grow


@dataclass
class Progress:
    """Where a run stands; with the seed it determines everything random that follows."""

    epoch: int = 1  # in progress, from 1
    batch: int = 0  # batches of that epoch already done
    step: int = 0  # optimiser steps done
    drawn: int = 0  # clips
    failed: int = 0  # of these, clips that another one stood in for because a frame could not be decoded

    @property
    def trained_epoch(self) -> int:
        """The last epoch of which anything has been trained; 0 before the first step."""
        return self.epoch if self.batch else self.epoch - 1


@dataclass
class TrainingState:
    """The network, what optimises it, and where it stands.

    `origin` is what its weights depend on, as plain values: `train_config`, `settings`, `data` (source and counts) and
    options such as the seed. A resumed run must agree with it, but for `CHANGEABLE`.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: GradScaler
    average: RunningAverage | None
    origin: dict[str, Any]
    progress: Progress

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def contents(self) -> dict[str, Any]:
        """A model file: the weights and what made them."""
        origin = {**self.origin}
        configs = {key: origin.pop(key) for key in ("train_config", "settings")}
        versions = {"colornet": VERSION, "torch": str(torch.__version__), "torchvision": str(torchvision.__version__),
                    "numpy": np.__version__, "python": platform.python_version()}
        provenance = {**origin, "epoch": self.progress.trained_epoch, "step": self.progress.step,
                      "processes": distributed.world_size(), "versions": versions}
        return {"model": self.model.state_dict(), **configs, "provenance": provenance}

    def resumable_contents(self) -> dict[str, Any]:
        """A model file with all else that training changes."""
        training = {"optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict(),
                    "average": self.average and self.average.state, "progress": asdict(self.progress)}
        return self.contents() | {"training": training}

    def restore(self, contents: dict[str, Any]) -> None:
        """Take up resumable contents; `UserError` where what made them, or what they hold, is not of this run."""
        refuse_changes(contents, self.origin)
        try:
            self._take_up(contents)
        except (RuntimeError, *ODD) as error:
            raise UserError(f"the newest checkpoint does not fit this run ({' '.join(str(error).split())[:200]}); "
                            "remove it, and the one before is taken, or start another --exp") from error

    def _take_up(self, contents: dict[str, Any]) -> None:
        training = contents["training"]
        self.model.load_state_dict(contents["model"])
        # How the optimiser is set is this run's; the file says what it has gathered.
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": training["optimiser"]["state"], "param_groups": groups})
        for parameter, gathered in self.optimiser.state.items():
            if gathered.keys() != {"step", "exp_avg", "exp_avg_sq"} or not all(
                    value.shape in (parameter.shape, ()) and value.isfinite().all() for value in gathered.values()):
                raise ValueError("the optimiser's averages are of another network or not finite")
        self.scaler.load_state_dict(training["scaler"])
        if self.average is not None:
            self.average.load(training["average"])
        self.progress = Progress(**training["progress"])


def check_resumable(contents: dict[str, Any], path: Path) -> None:
    """`UserError` where a checkpoint lacks what a run needs to go on, or says that it stands nowhere."""
    try:
        training, progress = contents["training"], Progress(**contents["training"]["progress"])
        sections = [contents["train_config"], contents["settings"], contents["provenance"], training["scaler"],
                    training["optimiser"]["state"], *contents["settings"].values()]
        counts = asdict(progress).values()
        if not (all(isinstance(section, dict) for section in sections) and "average" in training
                and all(type(count) is int and count >= 0 for count in counts) and progress.epoch > 0):
            raise ValueError("what it says of the run is of the wrong kind")
    except ODD as error:
        raise UserError(f"{path}: it cannot be resumed: {type(error).__name__} {error}") from error


def refuse_changes(contents: dict[str, Any], origin: dict[str, Any]) -> None:
    """`UserError` where what made a checkpoint differs from `origin` in more than `CHANGEABLE` and a greater length."""
    made = {key: (contents | contents["provenance"]).get(key) for key in origin}
    changed = {key: values for key, values in _differences(made, origin).items() if not CHANGEABLE.fullmatch(key)}
    if LENGTH in changed and changed[LENGTH][1] > changed[LENGTH][0]:
        del changed[LENGTH]
    if changed:
        named = ", ".join(f"{key.removeprefix('settings.')} was {json.dumps(old)} and is {json.dumps(new)}"
                          for key, (old, new) in sorted(changed.items()))
        raise UserError(f"--resume goes on with what the run began with (only TRAIN.NUM_EPOCHS may grow); changed: "
                        f"{named}; leave these out, which takes the old values, or start another --exp")


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ between two nested dicts, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in old.keys() | new.keys():
            found |= _differences(old.get(key), new.get(key), f"{prefix}.{key}".strip("."))
        return found
    return {} if old == new else {prefix: (old, new)}
