"""The checkpoints of one experiment: `start.pth`, soon replaced by `last.pth`, to resume, `epoch_NNN.pth` to use,
`final.pth` their average, with a running average `final_ema.pth`, and after validation
`best_0.7312_epoch_020.pth`, named by score.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from training.state import check_resumable
from utils.checkpoint import average_models, read_checkpoint, save_checkpoint
from utils.errors import UserError

KEEP_EVERY = 20  # epochs between two kept checkpoints
AVERAGED = 10  # the last epochs, all kept, whose mean is the final model

logger = logging.getLogger(__name__)


class Snapshots:
    """Files of the experiment in `folder`; the one before the newest resumable checkpoint stays as well."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.start, self.last, self.previous, self.fresh, self.final, self.final_ema = (
            folder / f"{name}.pth" for name in ("start", "last", "previous", "fresh", "final", "final_ema"))

    def exist(self) -> bool:
        """Whether this experiment has written anything of which training would be lost."""
        return any(path != self.start for path in self.folder.glob("*.pth"))

    def save_last(self, contents: dict[str, Any]) -> None:
        """Replace the resumable checkpoint; until the new one is whole the old one stays where it is."""
        save_checkpoint(self.fresh, contents)
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(self.fresh, self.last)
        self.start.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest complete resumable checkpoint, or None where there is none."""
        found = [path for path in (self.fresh, self.last, self.previous, self.start) if path.exists()]
        for path in found:
            try:
                contents = read_checkpoint(path)
                check_resumable(contents, path)
            except UserError as error:
                logger.warning("%s; trying the one before", error)
            else:
                logger.info("resuming from %s", path)
                return contents
        if found:
            raise UserError(f"no checkpoint in {self.folder} is complete ({', '.join(p.name for p in found)}); "
                            "remove the folder to start again")
        return None

    def save_epoch(self, contents: dict[str, Any], epoch: int, epochs: int) -> None:
        """Keep this epoch's model if it is a twentieth one or one of those that are averaged."""
        if epoch % KEEP_EVERY == 0 or epoch > epochs - AVERAGED:
            save_checkpoint(self._epoch(epoch), contents)

    def save_best(self, contents: dict[str, Any], epoch: int, score: float, keep: int) -> None:
        """Write this epoch's model if its score in [0,1] is among the `keep` highest so far, and drop the others."""
        path = self.folder / f"best_{score:.4f}_epoch_{epoch:03d}.pth"
        best = sorted({path, *self.folder.glob("best_*.pth")}, key=lambda path: path.name, reverse=True)
        if path in best[:keep]:
            save_checkpoint(path, contents)
        for worse in best[keep:]:
            worse.unlink(missing_ok=True)

    def save_final(self, contents: dict[str, Any], epochs: int, average: dict[str, Tensor] | None = None) -> None:
        """Write `contents` with the mean of the last epochs' models, and with a running `average`."""
        averaged = range(max(1, epochs - AVERAGED + 1), epochs + 1)
        missing = [path.name for path in map(self._epoch, averaged) if not path.exists()]
        if missing:
            raise UserError(f"{self.final.name} is the mean of the last {len(averaged)} epochs; {self.folder} lacks "
                            f"{', '.join(missing)}; put them back and --resume auto finishes the run, or do without "
                            f"them by {AVERAGED} more epochs: --resume auto --set TRAIN.NUM_EPOCHS {epochs + AVERAGED}")
        states = [read_checkpoint(self._epoch(epoch))["model"] for epoch in averaged]
        provenance = {**contents["provenance"], "averaged_epochs": list(averaged)}
        save_checkpoint(self.final, {**contents, "provenance": provenance, "model": average_models(states)})
        if average is not None:
            save_checkpoint(self.final_ema, {**contents, "model": average})

    def _epoch(self, epoch: int) -> Path:
        return self.folder / f"epoch_{epoch:03d}.pth"
