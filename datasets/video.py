"""What all videos have in common, whether they are a file, a folder of pictures or a sequence of a list."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

FOLDER_RATE = Fraction(24)  # frames a second of what says nothing of its rate
REVERSED_BYTES = 128_000_000  # decoded frames that are held to hand them out in reverse


class OwnVideo:
    """A video whose frames have one number each, the same in every pass. `len()` is how many there are.

    Attributes:
        path: the file or folder.
        names: of each frame, for its mask's file name.
        size: (width, height) of the upright frames [pixels].
        rate: frames a second; of a variable rate the mean.
        pixel_aspect: width of an upright frame's pixel over its height; frames are never resampled to square ones.
    """

    path: Path
    names: list[str]
    size: tuple[int, int]
    rate: Fraction
    pixel_aspect: Fraction = Fraction(1)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def name(self) -> str:
        """What the video's results are named after: its file name without suffix, never hidden."""
        return result_name(self.path)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Frames `start` to `stop`, uint8 RGB [H,W,3]; `UserError` for one that cannot be decoded."""
        raise NotImplementedError

    def frame(self, number: int) -> np.ndarray:
        """One frame, as `frames` gives it."""
        return next(self.frames(number, number + 1))

    def time(self, frame: int) -> Fraction:
        """When a frame is shown, in seconds after the first."""
        return frame / self.rate

    def reversed_frames(self, start: int) -> Iterator[np.ndarray]:
        """Frames `start`, `start` - 1, ..., 0, of which a bounded number is held at a time."""
        held = max(1, REVERSED_BYTES // (3 * self.size[0] * self.size[1]))
        for stop in range(start + 1, 0, -held):
            yield from reversed(list(self.frames(max(stop - held, 0), stop)))


def result_name(path: Path) -> str:
    """A folder's name, or a file's without its suffix, and without leading dots: `...mp4` is `mp4`, never `..`."""
    name = os.path.basename(os.path.abspath(path)).lstrip(".")
    return (name if os.path.isdir(path) else Path(name).stem) or "video"
