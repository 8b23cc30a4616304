"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from utils.iterators import Item, each_within


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
        return each_within(partial(self.stage, name), items)

    def shares(self) -> str:
        """In words: `decode 2 %, encode 31 %, ...` of the time of all stages."""
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in self.seconds.items())


class Meter:
    """Speed of a training loop of `batch_size` clips a step, and how long the rest takes of `total` steps."""

    def __init__(self, batch_size: int, done: int, total: int):
        self._batch_size, self._total, self._waited = batch_size, total, 0.0
        self._read = self._start = time.perf_counter(), done
        self._first = True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note that the loop waits for data within the block."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def reading(self, done: int) -> dict[str, float]:
        """Clips a second and the share of waiting since the last reading, when so many steps are done."""
        now, (since, before) = time.perf_counter(), self._read
        reading = {"clips_per_second": (done - before) * self._batch_size / (now - since),
                   "data_wait": self._waited / (now - since)}
        self._read, self._waited = (now, done), 0.0
        return reading

    def left(self, done: int) -> float:
        """Seconds to the end at the mean pace so far, when so many steps are done, more than at the call before.

        The first step counts only until the second: it waits for all that begins with it.
        """
        now, (since, before) = time.perf_counter(), self._start
        if self._first:
            self._start, self._first = (now, done), False
        return (now - since) / (done - before) * (self._total - done)
