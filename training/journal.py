"""What a run notes of its steps, reading from the device only now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from datasets import Batch
from losses.objective import Losses, refuse_non_finite
from training.log import MetricLog
from training.state import TrainingState
from utils import distributed
from utils.errors import UserError
from utils.signals import StopRequest
from utils.timing import Meter

FAILED_SHARE = 0.01  # of the clips drawn: more than this could not be decoded and the run ends
FAILED_COUNTED_FROM = 100  # clips drawn before that share means anything
LONGEST_UNREAD = 20  # steps whose losses stay on the device
STOPS_WITHIN = 5.0  # [seconds] several processes agree so often whether one of them has received a signal

Pictures = Callable[[Batch], Mapping[str, np.ndarray]]


class _Step(NamedTuple):
    number: int
    losses: Losses
    clips: list[str]


class Journal:
    """Checks and logs the losses of steps.

    A loss stays on the device until `read`, which waits for it: every step that is logged, and at the latest after
    `LONGEST_UNREAD` steps. There the processes also tell each other of clips that could not be decoded and of signals.

    Args:
        log_every: steps between two records.
        pictures: makes pictures of a batch every `pictures_every` steps; 0 for none.
        batch_size: clips a step, over all processes.
        steps: of the whole run.

    Attributes:
        last: the losses read last.
        time_left: to the end of the run [seconds].
        signalled: the signal that all processes know of, or 0.
        longest_unread: steps that may go unread; by how long steps take, `LONGEST_UNREAD` at most.
    """

    def __init__(self, log: MetricLog, state: TrainingState, stop: StopRequest, *, log_every: int, pictures: Pictures,
                 pictures_every: int, batch_size: int, steps: int):
        self.log, self._state, self._stop = log, state, stop
        self._log_every, self._pictures, self._pictures_every = log_every, pictures, pictures_every
        self._batch_size, self.time_left = batch_size, math.nan
        self.meter = Meter(batch_size, state.progress.step, steps)
        self._unread: list[_Step] = []
        self._failed, self.longest_unread, self._since = 0, 1, time.perf_counter()
        self.last, self.signalled = Losses(*torch.full((4,), math.nan)), 0

    def note(self, losses: Losses, batch: Batch) -> None:
        """Take up a step that was just done."""
        position, first = self._state.progress, distributed.rank() == 0
        position.drawn += self._batch_size
        self.time_left = self.meter.left(position.step)
        self._failed += batch.failed
        self._unread.append(_Step(position.step, losses, batch.clips))
        logged = position.step % self._log_every == 0
        signalled = self._stop.received and distributed.world_size() == 1
        if logged or signalled or len(self._unread) >= self.longest_unread:
            self.read()
        if logged and first:
            record = {f"loss/{name}": value.item() for name, value in self.last._asdict().items()}
            rate = self._state.optimiser.param_groups[0]["lr"]
            self.log.log({"epoch": position.epoch, **record, "lr": rate, **self.meter.reading(position.step),
                           "time_left": self.time_left, "failed_clips": position.failed}, position.step)
        every = self._pictures_every
        if every and position.step % every == 1 % every and first:
            self.log.images(self._pictures(batch), position.step)

    def read(self) -> None:
        """Wait for the losses of all steps noted, and for the other processes; `signalled` is what all of them know.

        Raises:
            UserError: a loss is not finite, or too many clips could not be decoded.
        """
        if not self._unread:
            return
        values = torch.stack([torch.stack(step.losses) for step in self._unread]).cpu()
        for step, losses in zip(self._unread, values):
            self.last = Losses(*losses)
            refuse_non_finite(self.last, step.number, step.clips)
        seconds = (time.perf_counter() - self._since) / len(self._unread)
        failed, signals, slowest = zip(*distributed.gather_numbers(
            [self._failed, self._stop.received or 0, seconds], self._state.device))
        self.signalled = int(max(signals))
        self.longest_unread = int(min(max(1, STOPS_WITHIN // max(slowest)), LONGEST_UNREAD))
        self._unread, self._failed, self._since = [], 0, time.perf_counter()
        position = self._state.progress
        position.failed += int(sum(failed))
        if position.drawn >= FAILED_COUNTED_FROM and position.failed > FAILED_SHARE * position.drawn:
            raise UserError(f"at most {FAILED_SHARE:.0%} of the clips may have frames that cannot be decoded; "
                            f"{position.failed} of {position.drawn} had (the warnings above name them); "
                            "replace these files or remove them")
