"""The sound of a video, carried over to one that is made from its frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av

from datasets.video_file import moving_pictures, open_container

logger = logging.getLogger(__name__)


class SoundTrack:
    """Adds the first sound of `source` to a container, in step with its pictures; nothing where there is none.

    Args:
        container: to write to, before its first packet.
        source: a video file, whose pictures begin at 0 seconds of the new one; or a folder, which has no sound.
        codec: of the new sound, such as "aac".
    """

    def __init__(self, container: av.container.OutputContainer, source: Path, codec: str):
        self._container, self._stack = container, ExitStack()
        self._stream: av.AudioStream | None = None
        if source.is_dir():
            return
        read = self._stack.enter_context(open_container(source))
        sound = next(iter(read.streams.audio), None)
        if sound is None or sound.codec_context is None:
            return
        pictures = moving_pictures(read, source)
        self._start = (pictures.start_time or 0) * (pictures.time_base or Fraction(1))
        stream = container.add_stream(codec, rate=48_000)
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        self._frames = self._decoded(read, sound)
        self._next = next(self._frames, None)

    def write_until(self, time: Fraction | None) -> None:
        """Write what is heard before `time` [seconds]; None: all that is left."""
        while self._stream and self._next and (time is None or self._next[0] < time):
            self._container.mux(self._stream.encode(self._next[1]))
            self._next = next(self._frames, None)

    def close(self) -> None:
        """Finish the sound; the container stays open."""
        if self._stream:
            self._container.mux(self._stream.encode())
        self._stack.close()

    def _decoded(self, read: av.container.InputContainer,
                 sound: av.AudioStream) -> Iterator[tuple[Fraction, av.AudioFrame]]:
        """Frames of sound with the times they begin at; those before the first picture are left out."""
        try:
            for frame in read.decode(sound):
                unit = frame.time_base or Fraction(1)
                time = (frame.pts or 0) * unit - self._start
                if time >= 0:
                    frame.pts = round(time / unit)
                    yield time, frame
        except av.FFmpegError as error:
            logger.warning("the sound ends early, as it cannot be decoded further: %s", error.strerror)
