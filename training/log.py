"""One sink for metrics: console, JSON lines and TensorBoard."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.events import EventFile
from utils.errors import UserError
from utils.files import replacing

logger = logging.getLogger(__name__)


class MetricLog:
    """Writes `metrics.jsonl`, TensorBoard events and, as `config.json`, all that was resolved for the run to `folder`.

    Nothing exists before the first record.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self._config, self._first_step = config, 1
        self._events: EventFile | None = None

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Append `{"step": step, **record}`; the numbers also become TensorBoard curves and a console line."""
        with self._writing() as events:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **record}) + "\n")
            for name, value in record.items():
                events.scalar(name, value, step)
        logger.info("step %d  %s", step, "  ".join(itertools.starmap(_in_words, record.items())))

    def images(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Show pictures, uint8 RGB [H,W,3] each, in TensorBoard."""
        with self._writing() as events:
            for name, picture in pictures.items():
                events.image(name, picture, step)

    def holds_steps(self) -> bool:
        """Whether there is a record of anything after step 0, which training would be lost with."""
        if not self.path.exists():
            return False
        with open(self.path, "rb") as file:
            return any(not _stays(line, 0, validated=True) for line in file)

    def go_on_after(self, step: int, *, validated: bool) -> None:
        """Drop the records of what a run resumed after `step` repeats, so that each step stands once in the curves.

        Unless that step is `validated`, its validation is repeated, too.
        """
        self._first_step = step + 1
        if self.path.exists():
            with replacing(self.path) as temporary, open(self.path, "rb") as old, open(temporary, "wb") as new:
                new.writelines(line for line in old if _stays(line, step, validated))

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self._events is not None:
            self._events.close()

    @contextmanager
    def _writing(self) -> Iterator[EventFile]:
        """Yield the event file; the first time the folder is made, with the configuration in it."""
        try:
            if self._events is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "config.json").write_text(json.dumps(self._config, indent=2) + "\n")
                self._events = EventFile(self.folder, self._first_step)
            yield self._events
        except OSError as error:
            raise UserError(f"{self.folder} could not be written: {error.strerror or error}; free some space or give "
                            "another --logdir") from error


def _in_words(name: str, value: float) -> str:
    return f"{name} {tqdm.format_interval(value) if name == 'time_left' else format(value, '.4g')}"


def _stays(line: bytes, step: int, validated: bool) -> bool:
    """Whether a line is a whole record of `step` or before; a kill may have cut the last one short."""
    try:
        record = json.loads(line)
        return record["step"] < step or (record["step"] == step and (validated or "val/J&F" not in record))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
