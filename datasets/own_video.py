"""A user's video, a file or a folder of pictures: upright frames with names and times, in both directions."""

from __future__ import annotations

import os.path
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from datasets.filelists import is_frame, natural
from utils.errors import UserError
from utils.pictures import read_frame, read_size

FOLDER_RATE = Fraction(24)  # frames a second of a folder that says nothing of its rate
REVERSED_BYTES = 128_000_000  # decoded frames that are held to hand them out in reverse


class OwnVideo:
    """What both kinds have. `len()` is the number of frames.

    Attributes:
        path: the file or folder.
        names: of each frame, for its mask's file name.
        size: (width, height) of the upright frames [pixels].
        rate: frames a second; of a variable rate the mean.
    """

    path: Path
    names: list[str]
    size: tuple[int, int]
    rate: Fraction

    def __len__(self) -> int:
        return len(self.names)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Frames `start` to `stop`, uint8 RGB [H,W,3]; `UserError` for one that cannot be decoded."""
        raise NotImplementedError

    def time(self, frame: int) -> Fraction:
        """When a frame is shown, in seconds after the first."""
        return frame / self.rate

    def reversed_frames(self, start: int) -> Iterator[np.ndarray]:
        """Frames `start`, `start` - 1, ..., 0, of which a bounded number is held at a time."""
        held = max(1, REVERSED_BYTES // (3 * self.size[0] * self.size[1]))
        for stop in range(start + 1, 0, -held):
            yield from reversed(list(self.frames(max(stop - held, 0), stop)))


def open_video(path: str | Path, rate: float | None = None, exclude: Sequence[Path] = ()) -> OwnVideo:
    """A video file, or a folder of pictures shown at `rate` frames a second (24 where it is not given).

    Files of the folder that `exclude` names, masks for example, are no frames.

    `UserError` for a path that is neither, a video without frames or of an unknown codec, pictures of several sizes,
    and a `rate` for a file, which has its own.
    """
    path = Path(path)
    if path.is_dir():
        return PictureFolder(path, Fraction(rate).limit_denominator(1000) if rate else FOLDER_RATE, exclude)
    if rate is not None:
        raise UserError(f"--fps is the rate of a folder of pictures, and {path} is a file, which has its own; leave it "
                        "out")
    return VideoFile(path)


class PictureFolder(OwnVideo):
    """The pictures of a folder in natural order of their names, whatever their formats."""

    def __init__(self, path: Path, rate: Fraction, exclude: Sequence[Path] = ()):
        others = {os.path.realpath(file) for file in exclude}
        files = [file for file in path.iterdir() if is_frame(file.name) and os.path.realpath(file) not in others]
        files.sort(key=lambda file: natural(file.name))
        if not files:
            raise UserError(f"a folder given as --video holds pictures (.jpg .jpeg .png .bmp .webp); {path} has none")
        names = [file.stem for file in files]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice:
            raise UserError(f"masks are named after the frames, and {path} has two pictures named {twice}; rename one")
        sizes = {file.name: read_size(file) for file in files}
        first, size = next(iter(sizes.items()))
        for name, other in sizes.items():
            if other != size:
                raise UserError(f"the pictures of one video have one size; in {path} {first} is {size[0]}x{size[1]} "
                                f"and {name} is {other[0]}x{other[1]}; give each size a folder of its own")
        self.path, self.names, self.size, self.rate, self._files = path, names, size, rate, files

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """See `OwnVideo`."""
        yield from map(read_frame, self._files[start:stop])


class VideoFile(OwnVideo):
    """A video file, decoded by FFmpeg. Rotation by its metadata is undone and the times of its frames are kept."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with av.open(str(path)) as container:
                stream = _video_stream(container, path)
                # One pass over the packets, in which nothing is decoded: how many frames there are, and when.
                stamps = [packet.pts if packet.pts is not None else packet.dts for packet in container.demux(stream)
                          if packet.size and not packet.is_discard]
                self._unit, rate = stream.time_base, stream.average_rate
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"--video is a video file or a folder of pictures; {path} cannot be opened as one "
                            f"({error.strerror}); check the path, or convert the file") from error
        self._stamps = sorted(stamps) if None not in stamps and len(set(stamps)) == len(stamps) else None
        self.names = [f"{i:05d}" for i in range(len(stamps))]
        if not stamps:
            raise UserError(f"a video has frames; {path} has none; check the file")
        if not rate and self._stamps and len(stamps) > 1:
            rate = (len(stamps) - 1) / ((self._stamps[-1] - self._stamps[0]) * self._unit)
        self.rate = Fraction(rate or FOLDER_RATE)
        height, width = next(self.frames()).shape[:2]
        self.size = width, height

    def time(self, frame: int) -> Fraction:
        """See `OwnVideo`."""
        return (self._stamps[frame] - self._stamps[0]) * self._unit if self._stamps else super().time(frame)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """See `OwnVideo`; decoding begins at the key frame before `start` where the frames are stamped."""
        stop, number = len(self) if stop is None else stop, -1
        try:
            with av.open(str(self.path)) as container:
                stream = _video_stream(container, self.path)
                stream.thread_type = "AUTO"
                if start and self._stamps:
                    container.seek(self._stamps[start], stream=stream)
                for frame in container.decode(stream):
                    known = self._stamps and frame.pts is not None
                    number = bisect_left(self._stamps, frame.pts) if known else number + 1
                    if number >= stop:
                        break
                    if number >= start:
                        upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                        yield np.ascontiguousarray(upright)
        except av.FFmpegError as error:
            raise UserError(f"{self.path} cannot be decoded after frame {number} ({error.strerror}); convert the file, "
                            "or cut it there") from error
        if number < min(stop, len(self)) - 1:
            raise UserError(f"{self.path} has {len(self)} frames by its index, and only {number + 1} can be decoded; "
                            "convert the file, or cut it there")


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first stream of pictures that move; `UserError` where there is none, or nothing that decodes it."""
    stream = next(iter(container.streams.video), None)
    if stream is None or container.format.name in ("image2", "tty") or container.format.name.endswith("_pipe"):
        raise UserError(f"--video is a video file or a folder of pictures; {path} holds no video; give another file, "
                        "or the folder that a picture lies in")
    if stream.codec_context is None:
        raise UserError(f"the codec of {path} is not known here; convert the file, for example to H.264 in .mp4")
    return stream
