"""Writing videos, and writing anything by threads behind a bounded queue."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

from datasets.video_file import BT709, RGB
from inference.sound import SoundTrack

WRITING_THREADS = min(4, os.cpu_count() or 1)
WRITING_DEPTH = 16  # results that may wait for the disk


class Encoding(NamedTuple):
    """How a video's pictures and sound are written."""

    container: str
    codec: str
    pixels: str  # format of the encoded pictures
    sound: str
    options: dict[str, str]


H264 = Encoding("mp4", "libx264", "yuv420p", "aac", {"crf": "18", "preset": "veryfast"})
VP9_ALPHA = Encoding("webm", "libvpx-vp9", "yuva420p", "libopus", {"crf": "20", "b": "0", "cpu-used": "4"})
PRORES_4444 = Encoding("mov", "prores_ks", "yuva444p10le", "pcm_s16le", {"profile": "4444"})


class VideoWriter:
    """A video whose frames are shown at given times; by default H.264, which every player takes.

    Its colours are those of BT.709 in limited range, and it says so.

    Args:
        path: whole after `close`, however few frames were written.
        size: (width, height) [pixels]; odd ones are kept, in a format that fewer players take.
        rate: frames a second, or their mean, as the file states it.
        encoding: of the file.
        sound: a video whose sound goes along; None: none.
        pixel_aspect: width of a pixel over its height.
    """

    TICK = Fraction(1, 90_000)  # seconds: the unit of time that fits all common rates

    def __init__(self, path: str | Path, size: tuple[int, int], rate: Fraction, *, encoding: Encoding = H264,
                 sound: Path | None = None, pixel_aspect: Fraction = Fraction(1)):
        self._container = av.open(f"file:{path}", "w", format=encoding.container)  # of `a:b`, `a` would be a protocol
        stream = self._container.add_stream(encoding.codec, rate=rate.limit_denominator(10_000),
                                            options=encoding.options)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.width, self._stream.height = size
        # Half the colour resolution needs even sides.
        self._stream.pix_fmt = encoding.pixels.replace("420", "444") if any(side % 2 for side in size) else \
            encoding.pixels
        context = self._stream.codec_context
        context.time_base, context.sample_aspect_ratio = self.TICK, pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = BT709  # one number for all three
        context.color_range = ColorRange.MPEG
        self._converter, self._tick = VideoReformatter(), -1
        self._sound = None if sound is None else SoundTrack(self._container, sound, encoding.sound)

    def write(self, picture: np.ndarray, time: Fraction) -> None:
        """Add a picture, uint8 RGB [H,W,3], or RGBA [H,W,4] where there is transparency, shown from `time` [s] on."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
        frame = self._converter.reformat(frame, format=self._stream.pix_fmt, src_colorspace=RGB, dst_colorspace=BT709,
                                         dst_color_range=ColorRange.MPEG)
        frame.colorspace, frame.color_range = BT709, ColorRange.MPEG
        self._tick = max(round(time / self.TICK), self._tick + 1)  # two frames never share one
        frame.pts, frame.time_base = self._tick, self.TICK
        self._container.mux(self._stream.encode(frame))
        if self._sound:
            self._sound.write_until(time)

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode())
        if self._sound:
            self._sound.write_until(None)
            self._sound.close()
        self._container.close()


class BackgroundWriter:
    """Runs writing functions in threads and holds at most `depth` of them.

    Use as context manager: leaving it waits for everything, also where a generator that has it is closed, and an error
    of any call is raised by a later `submit` or on leaving; not by such a generator, of which nobody could catch it.
    """

    def __init__(self, *, threads: int, depth: int):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._depth = depth
        self._pending: deque[Future[None]] = deque()

    def submit(self, write: Callable[..., None], *args: object) -> None:
        """Call `write(*args)` in a thread, after waiting for room in the queue."""
        self._pending.append(self._pool.submit(write, *args))
        while len(self._pending) > self._depth or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # After an error the queue is dropped: the run ends without those frames, and says so by its status.
        self._pool.shutdown(wait=True, cancel_futures=kind not in (None, GeneratorExit))
        while self._pending and kind is None:
            self._pending.popleft().result()
