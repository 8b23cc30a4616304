"""Training samples: a clip's views, made from (seed, epoch, index) alone, whatever the number of workers."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from datasets.clips import DrawnClips, StillClips, VideoClips
from utils.errors import UserError
from utils.images import normalise
from utils.pictures import PictureError

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 20  # clips that are tried in place of a broken one


class TrainingClips(Dataset):
    """`dataset[(epoch, index)]` is a sample: each recipe's views under its name, `clip` and `failed`.

    A clip with a frame that cannot be decoded is replaced by another one, drawn from the sample's own generator; the
    file is logged and listed in `failed`. When no replacement is found either, the sample is `{"error": message}`: an
    exception would reach the user with a worker's traceback in it, `checked` makes it a `UserError` outside.
    """

    def __init__(self, source: VideoClips | StillClips | DrawnClips, recipes: dict[str, Callable], *, seed: int,
                 summary: dict[str, str | int]):
        self.source, self.recipes, self.seed = source, recipes, seed
        self.summary = summary  # where the data is and how much of it: for logs and checkpoints
        # The workers are the parallelism. In a forked one it is too late: OpenCV would wait for threads that are gone.
        cv2.setNumThreads(1)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Any]:
        epoch, index = position
        rng, *view_rngs = np.random.default_rng((self.seed, epoch, index)).spawn(1 + len(self.recipes))
        failed = []
        for candidate in self._candidates(index, rng):
            try:
                frames = self.source.load(candidate, rng)
            except PictureError as error:
                logger.warning("%s cannot be decoded (%s): another clip takes the place of %s",
                               error.path, error.why, self.source.name(candidate))
                failed.append(str(error.path))
                continue
            views = {name: self.recipes[name](frames, view_rng) for name, view_rng in zip(self.recipes, view_rngs)}
            return views | {"clip": self.source.name(candidate), "failed": failed}
        return {"error": f"no clip could be decoded in {len(failed)} attempts, the last at {failed[-1]}; "
                         "replace the broken files or remove them"}

    def _candidates(self, index: int, rng: np.random.Generator) -> Iterator[int]:
        yield index
        others = rng.permutation(len(self))[:MAX_ATTEMPTS]
        yield from (int(other) for other in others if other != index)


class MixedClips(Dataset):
    """Clips of videos and of stills in one epoch: every video once, and stills so that they are `share` of the clips.

    The stills are gone through in passes, each in an order of its own, however many epochs a pass takes: all are seen
    equally often. An index from 0 is a video, one from the number of videos on a place for a still.
    """

    def __init__(self, videos: TrainingClips, stills: TrainingClips, *, share: float, seed: int):
        self.videos, self.stills, self.seed = videos, stills, seed
        self.places = max(1, round(len(videos) * share / (1 - share)))
        self.summary = videos.summary | {"stills": stills.summary["stills"], "stills_an_epoch": self.places}

    def __len__(self) -> int:
        return len(self.videos) + self.places

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Any]:
        epoch, index = position
        place = index - len(self.videos)
        if place < 0:
            return self.videos[position]
        passes, place = divmod((epoch - 1) * self.places + place, len(self.stills))
        order = np.random.default_rng((self.seed, passes)).permutation(len(self.stills))
        return self.stills[(passes, int(order[place]))]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the views of samples to [B,...] and keep `clip` and `failed` as lists; an error takes the batch's place."""
    errors = [sample for sample in samples if "error" in sample]
    if errors:
        return errors[0]
    texts = {"clip": [sample["clip"] for sample in samples],
             "failed": [path for sample in samples for path in sample["failed"]]}
    return default_collate([{key: sample[key] for key in sample if key not in texts} for sample in samples]) | texts


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, or what kept it from being made as `UserError`."""
    if "error" in batch:
        raise UserError(batch["error"])
    return batch


def split_clips(batch: dict[str, Any], parts: int) -> list[dict[str, dict[str, Tensor]]]:
    """The tensors of a batch in `parts` parts of equally many clips."""
    clips = len(batch["clip"])
    if clips % parts:
        raise UserError(f"--accumulate must divide the clips of a process's batch; {parts} does not divide {clips}")
    size = clips // parts
    return [{branch: {name: value[i:i + size] for name, value in batch[branch].items()}
             for branch in ("color", "dense") if branch in batch} for i in range(0, clips, size)]


def prepare(part: dict[str, dict[str, Tensor]], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """Move a batch of views to the device; frames, uint8 until here, become the network's normalised input."""
    moved = {branch: {name: value.to(device, non_blocking=True) for name, value in views.items()}
             for branch, views in part.items()}
    return {branch: {name: normalise(value) if value.dtype == torch.uint8 else value for name, value in views.items()}
            for branch, views in moved.items()}


def init_worker(worker: int) -> None:
    """Set up a loader process: signals are the training process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
