"""A run over one or more videos: its jobs carried, its files written, and what it says meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from inference.outputs import Look, Outputs
from inference.pipeline import Job, Pass, memory_advice, merged
from inference.refinement import Refinement
from inference.results import SequenceFiles
from models.propagation import VideoPropagator
from utils.signals import StopRequest
from utils.timing import StageClock

# A video's frames, uint8 RGB [H,W,3] each, and their number, to what makes propagators for it.
Preparation = Callable[[Iterable[np.ndarray], int], Callable[[], VideoPropagator]]

logger = logging.getLogger(__name__)


class Task(NamedTuple):
    """A job, the numbers of the frames whose results are written, and the files that they go to."""

    job: Job
    saved: Sequence[int]
    files: SequenceFiles

    @property
    def steps(self) -> int:
        """Frames to be gone through, in both directions."""
        return len(self.job.video) + (self.job.last + 1 if self.job.backward else 0)


class Run:
    """Carries out tasks one after the other.

    Args:
        prepare: makes propagators for a video.
        method: what masks depend on, for the record of each sequence.
        device: where it is computed.
        batch_size: frames encoded at once.
        look: of the overlays.
        refinement: of the masks.
        clock: to which the time of each stage is added.
        place: of the progress bar, from the top of the screen.
    """

    def __init__(self, prepare: Preparation, method: dict[str, Any], *, device: torch.device, batch_size: int = 1,
                 look: Look | None = None, refinement: Refinement | None = None, clock: StageClock | None = None,
                 place: int = 0):
        self._prepare, self._method, self._device, self._look = prepare, method, device, look
        self._refinement = refinement
        self._clock, self._place = clock or StageClock(device), place
        self._batch, self._stop = batch_size, StopRequest()

    def __call__(self, tasks: Sequence[Task]) -> int | None:
        """Carry out `tasks`; after a signal what was done is written, and the shell's status for it returned."""
        start, frames = time.perf_counter(), sum(len(task.job.video) for task in tasks)
        with (self._stop.deferred(), memory_advice(), logging_redirect_tqdm(),
              tqdm(total=sum(task.steps for task in tasks), unit="frame", position=self._place, disable=None) as bar):
            for number, task in enumerate(tasks, start=1):
                name = task.files.masks.name
                bar.set_postfix_str(name)
                done = self._carry_out(task, bar)
                if self._stop.received and (done < len(task.job.video) or number < len(tasks)):
                    logger.warning("ended in %s after %d of %d frames; what was done is written, and --continue goes "
                                   "on with it", name, done, len(task.job.video))
                    return 128 + self._stop.received
                logger.info("%s: %d frames, sequence %d of %d", name, done, number, len(tasks))
        seconds = time.perf_counter() - start
        logger.info("%d frames in %.1f s: %.2f frames/s (%s)", frames, seconds, frames / seconds, self._clock.shares())
        return None

    def _carry_out(self, task: Task, bar: tqdm) -> int:
        """Returns how many frames were gone through, to the end of the video unless a signal came."""
        job, files, clock, saved = task.job, task.files, self._clock, set(task.saved)
        files.begin(self._method)
        new_propagator = self._prepare(job.video.frames(), len(job.video))
        # Predictions are kept until the task is finished, so that it can go on where it ended.
        passes = {backward: Pass(job, backward=backward, batch_size=self._batch,
                                 folder=files.passes / ("backward" if backward else "forward"))
                  for backward in ([True, False] if job.backward else [False])}
        done = 0
        if job.backward and not self._stop.received:
            bar.update(passes[True].done)
            for _ in passes[True].carry(new_propagator(), clock):
                bar.update()
                if self._stop.received:
                    return done
        with Outputs(files, job.video, look=self._look, refinement=self._refinement) as outputs:
            for result in merged(job, passes[False], passes.get(True), new_propagator(), device=self._device,
                                 clock=clock):
                if result.number in saved:
                    with clock.stage("propagate"):
                        result.mask  # noqa: B018 (made here, so that it counts here)
                    with clock.stage("write"):
                        outputs.write(result)
                done += 1
                bar.update()
                if self._stop.received and done < len(job.video):
                    return done
        files.finish(self._method)
        return done
