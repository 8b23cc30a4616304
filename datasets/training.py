"""Training samples: a clip's views, made from (seed, epoch, index) alone, whatever the number of workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datasets.clips import DrawnClips, StillClips, VideoClips
from utils.pictures import PictureError

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 20  # clips that are tried in place of a broken one


class TrainingClips(Dataset):
    """`dataset[(epoch, index)]` is a sample: each recipe's views under its name, `clip` and `failed`.

    A clip with a frame that cannot be decoded is replaced by another one, drawn from the sample's own generator; the
    file is logged and listed in `failed`. When no replacement is found either, the sample is `{"error": message}`: an
    exception would reach the user with a worker's traceback in it, `make_batch` makes it a `UserError` outside.
    """

    def __init__(self, source: VideoClips | StillClips | DrawnClips,
                 recipes: Mapping[str, Callable[..., dict[str, Tensor]]], *, seed: int, summary: dict[str, str | int]):
        self.source, self.recipes, self.seed = source, recipes, seed
        self.summary = summary  # where the data is and how much of it: for logs and checkpoints
        cv2.setNumThreads(1)  # here for the clips that this process makes, and for the loader processes it forks: in
        # them it is too late, OpenCV would wait for threads that are gone; those that are spawned set it themselves

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Any]:
        epoch, index = position
        rng, *view_rngs = np.random.default_rng((self.seed, epoch, index)).spawn(1 + len(self.recipes))
        failed = []
        for candidate in self._candidates(index, rng):
            try:
                frames = self.source.load(candidate, rng)
            except PictureError as error:
                logger.warning("%s cannot be decoded (%s): another clip takes the place of %s",
                               error.path, error.why, self.source.names[candidate])
                failed.append(str(error.path))
                continue
            views = {name: self.recipes[name](frames, view_rng) for name, view_rng in zip(self.recipes, view_rngs)}
            return views | {"clip": self.source.names[candidate], "failed": failed}
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
