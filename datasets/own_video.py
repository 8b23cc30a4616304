"""A user's video: a file, or a folder of pictures."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from datasets.filelists import files_by_stem
from datasets.video import FOLDER_RATE, OwnVideo
from datasets.video_file import VideoFile
from utils.errors import UserError
from utils.pictures import read_frame, read_size


def open_video(path: str | Path, rate: float | None = None, exclude: Sequence[Path] = ()) -> OwnVideo:
    """A video file, or a folder of pictures shown at `rate` frames a second (24 where it is not given).

    Files of the folder that `exclude` names, masks for example, are no frames.

    `UserError` for a path that is neither, a video without frames or of an unknown codec, pictures of several sizes,
    and a `rate` for a file, which has its own.
    """
    path = Path(path)
    if os.path.isdir(path):
        return PictureFolder(path, Fraction(rate).limit_denominator(1000) if rate else FOLDER_RATE, exclude)
    if rate is not None:
        raise UserError(f"--fps is the rate of a folder of pictures, and {path} is a file, which has its own; leave it "
                        "out")
    return VideoFile(path)


class PictureFolder(OwnVideo):
    """The pictures of a folder in natural order of their names, whatever their formats."""

    def __init__(self, path: Path, rate: Fraction, exclude: Sequence[Path] = ()):
        files = files_by_stem(path, exclude=exclude)
        if not files:
            raise UserError(f"a folder given as --video holds pictures (.jpg .jpeg .png .bmp .webp); {path} has none")
        sizes = {file.name: read_size(file) for file in files.values()}
        first, size = next(iter(sizes.items()))
        for name, other in sizes.items():
            if other != size:
                raise UserError(f"the pictures of one video have one size; in {path} {first} is {size[0]}x{size[1]} "
                                f"and {name} is {other[0]}x{other[1]}; give each size a folder of its own")
        self.path, self.names, self.size, self.rate, self._files = path, [*files], size, rate, [*files.values()]

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """See `OwnVideo`."""
        yield from map(read_frame, self._files[start:stop])
