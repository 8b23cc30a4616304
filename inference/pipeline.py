"""From a video and masks of some of its frames to the masks of all: reader -> encoder -> propagator.

    job = Job(video, {0: mask})                        # an `OwnVideo`: file, folder or list's sequence; uint8 [H,W]
    for result in Pass(job).carry(new_propagator()):   # forward, as the frames come; may be ended after any of them
        show(result.frame, result.mask)

A pass that keeps its predictions in a folder can be ended, or killed, and goes on there to the same masks; after masks
were added or changed it goes on at the first frame that this concerns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.video import OwnVideo
from inference.two_way import PredictionStore, blend
from inference.writer import WRITING_DEPTH, WRITING_THREADS, BackgroundWriter
from models.propagation import Prediction, VideoPropagator
from utils.errors import UserError
from utils.iterators import ahead, batches
from utils.timing import StageClock


@dataclass(frozen=True)
class Job:
    """A video and what is given of it."""

    video: OwnVideo
    masks: Mapping[int, np.ndarray]  # frame to index mask, uint8 [H,W] of the video's size; at least one
    backward: bool = False  # carry the masks from the last one given to the start as well
    correct: bool = True  # a later mask corrects the objects that are known; else only new ids of it count

    @property
    def first(self) -> int:
        """The first frame with a mask."""
        return min(self.masks)

    @property
    def last(self) -> int:
        """The last frame with a mask."""
        return max(self.masks)


@dataclass(frozen=True)
class FrameResult:
    """What was found in a frame."""

    number: int
    frame: np.ndarray  # uint8 RGB [H,W,3]
    prediction: Prediction
    propagator: VideoPropagator  # that made it

    @cached_property
    def mask(self) -> np.ndarray:
        """Object ids, uint8 [H,W]; made when it is first asked for."""
        return self.propagator.index_mask(self.prediction, self.frame)


class Pass:
    """The masks of a job carried in one direction, from the first mask on its way to the end of the video.

    Args:
        job: what is given.
        backward: from the last mask to the start of the video.
        folder: keeps the predictions there, in a folder for each direction. What it holds already of a pass of the
            same masks is known; whoever makes this object sees to it that video, model and settings are the same, too.
        batch_size: frames encoded at once.

    Attributes:
        order: the numbers of its frames, as they come.
        done: how many of them are known.
    """

    def __init__(self, job: Job, *, backward: bool = False, folder: Path | None = None, batch_size: int = 1):
        self._job, self._batch = job, batch_size
        self.order = range(job.last, -1, -1) if backward else range(job.first, len(job.video))
        self._store = PredictionStore(folder / ("backward" if backward else "forward")) if folder else None
        self.done = self._store.known(self.order, job.masks) if self._store else 0
        if self.done < len(self.order):
            # The same frames are encoded together again: the last bit of features may depend on the batch.
            self.done -= self.done % batch_size

    def prediction(self, number: int, device: torch.device) -> Prediction:
        """What is known of frame `number`."""
        return self._kept().get(number, device, self._job.masks.get(number))

    def known(self, propagator: VideoPropagator) -> Iterator[FrameResult]:
        """The frames that are known, in order."""
        numbers = self.order[:self.done]
        for number, frame in zip(numbers, ahead(self._frames(numbers), 4)):
            yield FrameResult(number, frame, self.prediction(number, propagator.device), propagator)

    def carry(self, propagator: VideoPropagator, clock: StageClock | None = None) -> Iterator[FrameResult]:
        """The frames that are not known yet, in order, as they are found. `propagator` is new."""
        clock, todo = clock or StageClock(torch.device("cpu")), self.order[self.done:]
        if self.done and todo:
            self._recall(propagator)
        given = ((number, frame, self._job.masks.get(number)) for number, frame in zip(todo, self._frames(todo)))
        with BackgroundWriter(threads=WRITING_THREADS, depth=WRITING_DEPTH) as writer:
            for batch in clock.waiting("decode", batches(ahead(given, 2 * self._batch + 4), self._batch)):
                with clock.stage("encode"):
                    features = propagator.encode([frame for _, frame, _ in batch])
                for (number, frame, mask), feature in zip(batch, features):
                    with clock.stage("propagate"):
                        prediction = propagator.predict(feature, mask, correct=self._job.correct)
                    if self._store:
                        writer.submit(self._store.put, number, prediction, propagator.basis_frame)
                    self.done += 1
                    yield FrameResult(number, frame, prediction, propagator)

    def _kept(self) -> PredictionStore:
        if self._store is None:
            raise ValueError("a pass without a folder keeps no predictions")
        return self._store

    def _recall(self, propagator: VideoPropagator) -> None:
        """Bring a new propagator to where it stood after the frames that are known."""
        store = self._kept()
        basis = store.basis(self.order[self.done - 1])
        masks: dict[int, np.ndarray] = {}
        ids: tuple[int, ...] = ()
        for place, number in enumerate(self.order[:self.done]):
            kept = store.get(number)
            if kept.named or kept.ids != ids:  # of a list, most masks bring nothing: their frames need no features
                masks[place] = self._job.masks[number]
            ids = kept.ids
        features = self._features(propagator, {basis, *masks, *propagator.reach(self.done)})
        propagator.recall(self.done, features, lambda place: self.prediction(self.order[place], propagator.device),
                          masks, basis, correct=self._job.correct)

    def _features(self, propagator: VideoPropagator, places: set[int]) -> dict[int, Tensor]:
        """Features of the frames at these places of the order, encoded in the same batches as before."""
        starts = sorted({place - place % self._batch for place in places})
        found: dict[int, Tensor] = {}
        for _, group in groupby(enumerate(starts), key=lambda item: item[1] - item[0] * self._batch):
            run = [start for _, start in group]  # batches without a gap between them
            stop = min(run[-1] + self._batch, len(self.order))
            for start, frames in zip(run, batches(self._frames(self.order[run[0]:stop]), self._batch)):
                encoded = propagator.encode(frames)
                found |= {place: encoded[place - start] for place in places if start <= place < start + self._batch}
        return found

    def _frames(self, numbers: range) -> Iterator[np.ndarray]:
        """The video's frames of consecutive numbers, up or down."""
        if not numbers:
            return iter(())
        if numbers.step > 0:
            return self._job.video.frames(numbers.start, numbers.stop)
        return islice(self._job.video.reversed_frames(numbers.start), len(numbers))


def merged(job: Job, forward: Pass, backward: Pass | None, propagator: VideoPropagator,
           clock: StageClock | None = None) -> Iterator[FrameResult]:
    """All frames of a video in order, as they are found.

    Before the first mask they are those of the `backward` pass, which is complete; between two masks both directions
    count, the nearer one more.
    """
    if backward:
        for number, frame in enumerate(ahead(job.video.frames(0, job.first), 4)):
            yield FrameResult(number, frame, backward.prediction(number, propagator.device), propagator)
    for result in chain(forward.known(propagator), forward.carry(propagator, clock)):
        if backward and result.number < job.last and result.number not in job.masks:
            other = backward.prediction(result.number, propagator.device)
            share = backward_share(result.number, job.masks)
            result = replace(result, prediction=blend(result.prediction, other, share))
        yield result


def backward_share(number: int, given: Collection[int]) -> float:
    """How far `number` is on its way from the frame given before it to the one after it, in [0,1]."""
    before, after = max(g for g in given if g <= number), min(g for g in given if g >= number)
    return (number - before) / (after - before) if after > before else 0.0


@contextlib.contextmanager
def memory_advice() -> Iterator[None]:
    """Say in one line what to do where the block runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        words = str(error).lower()
        if not isinstance(error, MemoryError) and not any(sign in words for sign in (
                "out of memory", "can't allocate memory", "not enough memory", "insufficient memory")):
            raise
        raise UserError("this run needs more memory than there is; bound it with --max-memory SIZE, such as 1.5GB, or "
                        "lower --infer_wh") from error
