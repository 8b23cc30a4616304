"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")


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
        iterator, done = iter(items), object()
        while True:
            with self.stage(name):
                item = next(iterator, done)
            if item is done:
                return
            yield item

    def shares(self) -> str:
        """In words: `decode 2 %, encode 31 %, ...` of the time of all stages."""
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in self.seconds.items())
