"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

Item = TypeVar("Item")


def timed(items: Iterable[Item], note: Callable[[float], None]) -> Iterator[Item]:
    """Pass `items` on, noting for each how many seconds it kept us waiting."""
    iterator = iter(items)
    while True:
        asked = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        note(time.perf_counter() - asked)
        yield item


class StageClock:
    """Wall-clock seconds of named stages, as seen by the thread that waits for them.

    Work on a GPU is waited for at the end of a stage, so that it counts for the stage that asked for it.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to stage `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[name] += time.perf_counter() - start

    def waiting(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Pass `items` on and add the time that each one kept us waiting to stage `name`."""
        return timed(items, partial(self._add, name))

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds

    def shares(self) -> str:
        """In words: `decode 2 %, encode 31 %, ...` of the time of all stages."""
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in self.seconds.items())


class Meter:
    """Speed of a training loop since the last reading, and the share of time that it waited for data."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def passing(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Pass batches on, noting how long each one kept us waiting."""
        return timed(batches, self._note)

    def _note(self, seconds: float) -> None:
        self._waited, self._steps = self._waited + seconds, self._steps + 1

    def reading(self) -> dict[str, float]:
        """Clips a second and the share of waiting since the last reading."""
        seconds = time.perf_counter() - self._start
        reading = {"clips_per_second": self._steps * self._batch_size / seconds, "data_wait": self._waited / seconds}
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0
        return reading


class Pace:
    """How long the rest takes at the mean pace so far, whatever else the time went into.

    The first step counts only until the second: it waits for all that begins with it.

    Args:
        done: steps that were done before.
        total: steps of the whole.
    """

    def __init__(self, done: int, total: int):
        self._total, self._mark, self._first = total, (time.perf_counter(), done), True

    def left(self, done: int) -> float:
        """Seconds from now, when so many steps are done, more than at the call before, to the end."""
        now, (since, before) = time.perf_counter(), self._mark
        if self._first:
            self._mark, self._first = (now, done), False
        return (now - since) / (done - before) * (self._total - done)
