"""A video file, decoded by FFmpeg: upright frames in their true colours, each with one number in every pass."""

from __future__ import annotations

import logging
import math
import os.path
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from tqdm import tqdm

from datasets.video import FOLDER_RATE, OwnVideo
from utils.errors import UserError

# The values of ISO/IEC 23001-8 for the matrix from Y'CbCr to RGB, which FFmpeg shares.
RGB, BT709, BT601 = 0, 1, 5
MATRICES = {BT709, BT601, 4, 6, 7, 9, 10}  # FCC, SMPTE 170M (the same as BT.601), SMPTE 240M, BT.2020
LARGEST_SD = 1279, 576  # (width, height) up to which a file that names no matrix is taken for BT.601, as mpv does

logger = logging.getLogger(__name__)


class VideoFile(OwnVideo):
    """A video file. Rotation and mirroring by its metadata are undone, and the times of its frames are kept.

    A frame's number is its place in a decode from the beginning. One such decode, without any conversion, finds out
    which frames there are: packets, stamps and counts in the file promise frames that are hidden or cannot be decoded.
    Of each it keeps a stamp and a checksum, by which a later pass that begins at a key frame knows where it is.

    Raises:
        UserError: no file that can be read again, no moving pictures, none that can be decoded, or several sizes.
    """

    def __init__(self, path: Path):
        self.path = path
        self._threads = "AUTO"
        if faults := self._read_index():
            # Threads that decode several frames conceal damage in ways of their own, and lose frames to a last error.
            self._threads = "SLICE"
            self._read_index()
        if not self._checksums:
            raise UserError(f"a video has frames; {path} has none that can be decoded; check the file")
        if faults:
            logger.warning("%s is damaged: %d of its packets cannot be decoded whole; it has %d frames", path, faults,
                           len(self._checksums))
        self.names = [f"{i:05d}" for i in range(len(self._checksums))]

    def _read_index(self) -> int:
        """Decode everything once; how many packets were damaged."""
        stamps: dict[str, list[int | None]] = {"pts": [], "dts": []}
        self._checksums, keys, size = [], [], None
        decoding = Decoding(self.path, self._threads)
        for number, frame in enumerate(tqdm(decoding, "counting", unit="frame", leave=False, delay=2, disable=None)):
            for kind, values in stamps.items():
                values.append(getattr(frame, kind))
            self._checksums.append(_checksum(frame))
            if frame.key_frame:
                keys.append(number)
            if size is None:
                size, self._orientation = (frame.width, frame.height), _orientation(frame)
            elif size != (frame.width, frame.height):
                raise UserError(f"a video has one size; {self.path} changes from {size[0]}x{size[1]} to "
                                f"{frame.width}x{frame.height} in frame {number}; cut it there, or convert it")
        if size:
            turned, aspect = self._orientation[0], decoding.pixel_aspect
            self.size, self.pixel_aspect = (size[::-1], 1 / aspect) if turned else (size, aspect)
            self._set_times(stamps, keys, decoding)
        return decoding.faults

    def _set_times(self, stamps: dict[str, list[int | None]], keys: list[int], decoding: Decoding) -> None:
        count = len(stamps["pts"])
        known_stamps = {kind: [stamp for stamp in values if stamp is not None] for kind, values in stamps.items()}
        pts = known_stamps["pts"]
        known = len(pts) == count and all(a < b for a, b in pairwise(pts))
        self._pts, self._unit = pts if known else [], decoding.unit
        mean, stated = (count - 1) / self.time(count - 1) if known and count > 1 else None, decoding.rate
        wrong = stated and mean and not 0.5 < stated / mean < 2  # such as 60000 of a .dv
        self.rate = Fraction((None if wrong else stated) or mean or FOLDER_RATE)
        # AVI has no time of presentation, but one of decoding. Frames that share a stamp cannot be told apart by it.
        self._kind, self._stamps = next(((kind, values) for kind, values in known_stamps.items()
                                         if len(set(values)) == count), ("", []))
        self._numbers = {stamp: number for number, stamp in enumerate(self._stamps)}
        self._keys = keys if self._kind else []

    def time(self, frame: int) -> Fraction:
        """See `OwnVideo`."""
        return (self._pts[frame] - self._pts[0]) * self._unit if self._pts else super().time(frame)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """See `OwnVideo`; decoding begins at a key frame before `start` from which it gives the same frames."""
        number, stop = start, len(self) if stop is None else min(stop, len(self))
        if number >= stop:
            return
        converter = VideoReformatter()
        for entry in self._entries(start):
            for place, frame in self._numbered(entry):
                # Late: the seek missed. Another picture: what it is predicted from lies before the key frame.
                if place > number or (place == number and entry and _checksum(frame) != self._checksums[number]):
                    break
                if place == number:
                    yield _upright(_rgb(frame, converter), self._orientation)
                    number += 1
                    if number == stop:
                        return
        raise UserError(f"{self.path} had {len(self)} frames, and now {number}; leave it as it is while it is read")

    def _entries(self, start: int) -> Iterator[int]:
        """Frames to begin at for `start`: the key frame before it, ever earlier ones, and in the end the first."""
        near, step = bisect_right(self._keys, start) - 1, 1
        while near > 0:
            yield self._keys[near]
            near, step = near - step, 2 * step
        yield 0

    def _numbered(self, entry: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their numbers, from `entry` or a little before or after it; -1 for those that are not known."""
        if not entry:
            yield from enumerate(Decoding(self.path, self._threads))
            return
        for frame in Decoding(self.path, self._threads, self._stamps[entry]):
            yield self._numbers.get(getattr(frame, self._kind), -1), frame


class Decoding:
    """One pass over the frames of a file as FFmpeg gives them; what cannot be decoded is left out.

    Args:
        path: the file.
        threads: "SLICE", or "AUTO" to decode several frames at once as well.
        start: a stamp to seek to; where that fails there are no frames.

    Attributes:
        rate: frames a second by the file, or None.
        unit: of the frames' stamps [seconds].
        pixel_aspect: width over height of a stored pixel.
        faults: packets that were damaged, so far.
    """

    def __init__(self, path: Path, threads: str, start: int | None = None):
        self._path, self._threads, self._start, self.faults = path, threads, start, 0

    def __iter__(self) -> Iterator[av.VideoFrame]:
        with open_container(self._path) as container:
            stream = moving_pictures(container, self._path)
            self.rate, self.unit = stream.average_rate, stream.time_base or Fraction(1)
            self.pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
            stream.thread_type = self._threads
            for packet in self._packets(container, stream):
                try:
                    frames = stream.decode(packet)
                except av.FFmpegError:
                    self.faults += 1
                    continue
                self.faults += any(frame.is_corrupt for frame in frames)
                yield from frames

    def _packets(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
        try:
            if self._start is not None:
                container.seek(self._start, stream=stream)
            yield from container.demux(stream)
        except av.FFmpegError:
            self.faults += 1
            yield None  # empties the decoder


def open_container(path: Path) -> av.container.InputContainer:
    """Open a file for reading; `UserError` where that fails."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"a video is a file, which can be read again, or a folder of pictures; {path} is neither; save "
                        "it as a file")
    try:
        with open(path, "rb") as file:
            # By its descriptor (FFmpeg keeps a copy): the words of a name mean nothing then, such as `a:` or `%d`, and
            # what is a playlist, whatever its name, can have no other file opened.
            return av.open("fd:", metadata_errors="replace",
                           container_options={"fd": str(file.fileno()), "protocol_whitelist": "fd"})
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"a video is a file that FFmpeg decodes, or a folder of pictures; {path} cannot be opened as "
                        f"one ({error.strerror}); check the path, or convert the file") from error


def moving_pictures(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The stream that players show; `UserError` where there is none, or nothing that decodes it."""
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams or container.format.name in ("image2", "tty") or container.format.name.endswith("_pipe"):
        raise UserError(f"a video is a file that FFmpeg decodes, or a folder of pictures; {path} holds no video; give "
                        "another file, or the folder that a picture lies in")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise UserError(f"the codec of {path} is not known here; convert the file, for example to H.264 in .mp4")
    return stream


def holds_video(path: Path) -> bool:
    """Whether a file has moving pictures, as far as its beginning shows."""
    try:
        with open_container(path) as container:
            return moving_pictures(container, path) is not None
    except UserError:
        return False


def _checksum(frame: av.VideoFrame) -> int:
    """Of every 16th row of brightness: blocks of pixels are decoded right or wrong as a whole."""
    plane = frame.planes[0]
    if plane.line_size < 0:  # rows from the bottom up, in formats that are not predicted; PyAV gives another memory
        return 0
    return zlib.crc32(np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, -1)[::16].tobytes())


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether a frame is transposed, and then mirrored left to right and top to bottom, to be upright.

    Once a file: a frame that was asked for its side data is in a cycle of references and stays until it is collected.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that PyAV does not know hide the others
        angle = math.radians(frame.rotation)
        a, b, c, d = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    else:
        if matrix is None:
            return False, False, False
        a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()  # x becomes a*x + c*y, and y b*x + d*y
    return (True, c < 0, b < 0) if abs(b) + abs(c) > abs(a) + abs(d) else (False, a < 0, d < 0)


def _upright(picture: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, mirrored, upside_down = orientation
    picture = picture.swapaxes(0, 1) if transposed else picture
    return np.ascontiguousarray(picture[::-1 if upside_down else 1, ::-1 if mirrored else 1])


def _rgb(frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
    """A decoded frame in uint8 RGB [H,W,3], by the matrix and the range that the file names.

    Where it names no matrix, it is that of BT.709 for more than SD and that of BT.601 for the rest. Transfer and
    primaries are left as they are.
    """
    kind = frame.format.name
    if frame.format.is_rgb or frame.format.has_palette:
        colors = converter.reformat(frame, format="rgb24")
    else:
        large = frame.width > LARGEST_SD[0] or frame.height > LARGEST_SD[1]
        matrix = frame.colorspace if frame.colorspace in MATRICES else BT709 if large else BT601
        full = frame.color_range == ColorRange.JPEG or (
            frame.color_range == ColorRange.UNSPECIFIED and kind.startswith(("yuvj", "gray")))
        colors = converter.reformat(frame, format="rgb24", src_colorspace=matrix, dst_colorspace=RGB,
                                     src_color_range=ColorRange.JPEG if full else ColorRange.MPEG)
    return colors.to_ndarray()
