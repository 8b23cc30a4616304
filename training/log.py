"""One sink for metrics: console, JSON lines and TensorBoard."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

logger = logging.getLogger(__name__)


class MetricLog:
    """Writes `folder/metrics.jsonl` and TensorBoard events; nothing exists before the first record.

    Args:
        folder: the experiment's log folder.
        config: everything that was resolved for the run; goes to `folder/config.json`.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self.folder, self._board = folder, None
        self._config: Mapping[str, Any] | None = config  # until it is written

    @property
    def path(self) -> Path:
        """The JSON lines file."""
        return self.folder / "metrics.jsonl"

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Append `{"step": step, **record}`; the numbers also become TensorBoard curves and a console line."""
        self._append(json.dumps({"step": step, **record}) + "\n")
        for name, value in record.items():
            self._tensorboard().add_scalar(name, value, step)
        logger.info("step %d  %s", step, "  ".join(f"{name} {value:.4g}" for name, value in record.items()))

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Show pictures, uint8 RGB [H,W,3] each, in TensorBoard."""
        for name, picture in pictures.items():
            self._tensorboard().add_image(name, picture, step, dataformats="HWC")

    def forget_after(self, step: int) -> None:
        """Drop records beyond `step`: a resumed run repeats those steps and each stands once in the curve."""
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines(keepends=True) if _step_of(line) <= step]
            self.path.write_text("".join(lines))

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _append(self, text: str) -> None:
        try:
            if self._config is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "config.json").write_text(json.dumps(self._config, indent=2) + "\n")
                self._config = None
            with open(self.path, "a") as file:
                file.write(text)
        except OSError as error:
            raise UserError(f"{self.path} could not be written: {error.strerror}; free some space or give another "
                            "--logdir") from error

    def _tensorboard(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import: only where it is used
            self._board = SummaryWriter(str(self.folder))
        return self._board


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # the line that a kill cut short
