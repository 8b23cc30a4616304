"""A run over one or more videos: its jobs carried, its files written, and what it says meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets.video import OwnVideo
from inference.outputs import Outputs
from inference.pipeline import Job, Pass, memory_advice, merged
from inference.results import SequenceFiles
from models.propagation import VideoPropagator
from utils.signals import StopRequest
from utils.timing import StageClock

# A video's frames, uint8 RGB [H,W,3] each, and their number, to what makes propagators for it.
Preparation = Callable[[Iterable[np.ndarray], int], Callable[[], VideoPropagator]]

logger = logging.getLogger(__name__)


class Task(NamedTuple):
    """A job, and where its results go."""

    job: Job
    saved: Sequence[int]  # numbers of the frames whose results are written
    files: SequenceFiles  # to which
    inputs: Sequence[Path]  # files and folders that are read


@dataclass
class Run:
    """Carries out tasks one after the other."""

    prepare: Preparation
    method: dict[str, Any]  # what masks depend on, for the record of each sequence
    outputs: Callable[[SequenceFiles, OwnVideo], Outputs]
    clock: StageClock  # to which the time of each stage is added
    batch_size: int  # frames encoded at once
    place: int  # of the progress bar, from the top of the screen
    stop: StopRequest = field(default_factory=StopRequest)

    def __call__(self, tasks: Sequence[Task]) -> int | None:
        """Carry out `tasks`; after a signal what was done is written, and the shell's status for it returned."""
        start, frames = time.perf_counter(), sum(len(task.job.video) for task in tasks)
        backward = sum(task.job.last + 1 for task in tasks if task.job.backward)
        with (self.stop.deferred(), memory_advice(), logging_redirect_tqdm(),
              tqdm(total=frames + backward, unit="frame", position=self.place, disable=None) as bar):
            for number, task in enumerate(tasks, start=1):
                name = task.files.masks.name
                bar.set_postfix_str(name)
                done = self._carry_out(task, bar)
                if self.stop.received and (done < len(task.job.video) or number < len(tasks)):
                    logger.warning("ended in %s after %d of %d frames; what was done is written, and --continue goes "
                                   "on with it", name, done, len(task.job.video))
                    return 128 + self.stop.received
                logger.info("%s: %d frames, sequence %d of %d", name, done, number, len(tasks))
        seconds = time.perf_counter() - start
        logger.info("%d frames in %.1f s: %.2f frames/s (%s)", frames, seconds, frames / seconds, self.clock.shares())
        return None

    def _carry_out(self, task: Task, bar: tqdm) -> int:
        """Returns how many frames were gone through, to the end of the video unless a signal came."""
        job, files, clock, saved = task.job, task.files, self.clock, set(task.saved)
        files.begin(self.method)
        new_propagator = self.prepare(job.video.frames(), len(job.video))
        # Predictions are kept until the task is finished, so that it can go on where it ended.
        passes = {backward: Pass(job, backward=backward, folder=files.passes, batch_size=self.batch_size)
                  for backward in ([True, False] if job.backward else [False])}
        done = 0
        if job.backward and not self.stop.received:
            bar.update(passes[True].done)
            for _ in passes[True].carry(new_propagator(), clock):
                bar.update()
                if self.stop.received:
                    return done
        with self.outputs(files, job.video) as outputs:
            for result in merged(job, passes[False], passes.get(True), new_propagator(), clock):
                if result.number in saved:
                    with clock.stage("propagate"):
                        result.mask  # noqa: B018 (made here, so that it counts here)
                    with clock.stage("write"):
                        outputs.write(result)
                done += 1
                bar.update()
                if self.stop.received and done < len(job.video):
                    return done
        files.finish(self.method)
        return done
