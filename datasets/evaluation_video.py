"""A sequence of an evaluation list as a video: its frames, and the masks that the list names for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.filelists import EvaluationSequence, existence
from datasets.video import FOLDER_RATE, OwnVideo
from utils.errors import UserError
from utils.iterators import called_ahead
from utils.masks import read_mask
from utils.pictures import read_frame, read_size

DECODING_THREADS = min(4, os.cpu_count() or 1)
DECODED_AHEAD = 8  # frames that are held at most before they are asked for


class ListedVideo(OwnVideo):
    """See `OwnVideo`. Threads decode the frames that follow; one of another size than the first is a `UserError`.

    Attributes:
        masks: by the frame's number those that exist when this object is made, read as they are asked for. Reading one
            raises `UserError` where it is no mask of its frame's size.
        saved: numbers of the frames whose results are to be written.
    """

    def __init__(self, sequence: EvaluationSequence):
        self.path, self.rate = sequence.frames[0].image.parent, FOLDER_RATE
        self.names = [frame.image.stem for frame in sequence.frames]
        self.saved = [number for number, frame in enumerate(sequence.frames) if frame.save]
        self._files = [frame.image for frame in sequence.frames]
        self.masks: Mapping[int, np.ndarray] = _ListedMasks(self, [frame.mask for frame in sequence.frames])

    @cached_property
    def size(self) -> tuple[int, int]:  # type: ignore[override]  # nobody sets it
        """(width, height) of the frames [pixels]."""
        return read_size(self._files[0])

    def source(self) -> dict[str, Any]:
        """What tells this video from others: its folder, and all names where not all of its frames are saved."""
        skipped = {"listed": self.names} if len(self.saved) < len(self.names) else {}
        return {"frames": str(self.path.resolve()), **skipped}

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """See `OwnVideo`."""
        calls = (partial(self._read, file) for file in self._files[start:stop])
        return called_ahead(calls, DECODED_AHEAD, threads=DECODING_THREADS)

    def _read(self, file: Path) -> np.ndarray:
        frame = read_frame(file)
        if frame.shape[1::-1] != self.size:
            raise UserError(f"the frames of a sequence have one size; {self._files[0]} is {_words(self.size)}, {file} "
                            f"is {_words(frame.shape[1::-1])}; resize them to one, with their masks")
        return frame


class _ListedMasks(Mapping[int, np.ndarray]):
    def __init__(self, video: ListedVideo, files: list[Path | None]):
        exists = existence()
        # Whatever stands there by that name is a mask: a broken link or a folder is refused when it is read.
        there = {number: file for number, file in enumerate(files) if file and exists(file)}
        self._video, self._files = video, ({0: files[0]} if files[0] else {}) | there

    def __getitem__(self, number: int) -> np.ndarray:
        file = self._files[number]
        mask = read_mask(file)
        if mask.shape[::-1] != self._video.size:
            raise UserError(f"a mask has the size of its frame; {file} is {_words(mask.shape[::-1])} and the frame is "
                            f"{_words(self._video.size)}; resize the mask (nearest) or the frames")
        return mask

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


class VideoFrame(NamedTuple):
    """A frame of a list: its name, the picture uint8 RGB [H,W,3], and its mask uint8 [H,W] where there is one."""

    name: str
    image: np.ndarray
    mask: np.ndarray | None


def read_video(sequence: EvaluationSequence) -> Iterator[VideoFrame]:
    """Yield a sequence's frames in order with their masks; `UserError` as for `ListedVideo`."""
    video = ListedVideo(sequence)
    for number, (name, frame) in enumerate(zip(video.names, video.frames())):
        yield VideoFrame(name, frame, video.masks.get(number))
