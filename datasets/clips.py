"""Clips: T frames of a video, or T deformed copies of a still, as lists of uint8 RGB [H,W,3]."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from datasets.filelists import Video
from datasets.geometry import MAX_ANGLE, resize, rotate
from datasets.liquid import apply_map, draw_pulls, liquid_map
from utils.errors import UserError
from utils.pictures import read_frame
from utils.values import parse_json, read_text

logger = logging.getLogger(__name__)

STILL_SIZE = (512, 320)  # (width, height)


def reduction_for(path: Path, size: tuple[int, int] | None, least_side: int) -> int:
    """The `reduction` at which a frame of `size` keeps `least_side` pixels on each side; 1 for all but JPEGs."""
    if size is None or path.suffix.lower() not in (".jpg", ".jpeg"):
        return 1
    return next((factor for factor in (8, 4, 2) if min(size) >= factor * least_side), 1)


class VideoClips:
    """One clip a video: T frames `stride` apart, in random order.

    The window of a clip is `gap` * T frames, or the video where that is shorter; the stride is what spreads T frames
    over the window, the start any that leaves room for all of them (DESIGN section 5).
    """

    def __init__(self, videos: Sequence[Video], length: int, *, gaps: Sequence[int], reductions: Sequence[int]):
        self.videos, self.length, self.gaps, self.reductions = videos, length, gaps, reductions
        self.names = [video.name for video in videos]  # what a log calls the clips

    def load(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw a clip of video `index`: T frames uint8 RGB [H,W,3]; `PictureError` where one cannot be decoded."""
        frames = self.videos[index].frames
        chosen = rng.permutation(draw_positions(len(frames), self.length, self.gaps[index], rng))
        return [read_frame(frames[i], self.reductions[index]) for i in chosen]


def draw_positions(count: int, length: int, gap: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the positions int [T] of a clip's frames in a video of `count` frames, in order of time."""
    stride = min(count, gap * length) // length
    last_offset = stride * (length - 1)
    return rng.integers(count - last_offset) + stride * np.arange(length)


class DrawnClips:
    """Clips of one video, drawn beforehand, so that one pass over its frames is enough and only theirs are held.

    Args:
        frames: the `total` frames of the video in order, uint8 RGB [H,W,3] each.
        count: clips to draw, of `length` frames each; `gap` as for `VideoClips`.
        short_side: frames with a larger one are held at this size [pixels].
    """

    def __init__(self, frames: Iterable[np.ndarray], total: int, *, count: int, length: int, gap: int, short_side: int,
                 rng: np.random.Generator):
        self._positions = [rng.permutation(draw_positions(total, length, gap, rng)).tolist() for _ in range(count)]
        self.names = [f"frames {', '.join(map(str, positions))}" for positions in self._positions]
        wanted = {position for positions in self._positions for position in positions}
        self._frames = {i: _shrunk(frame, short_side) for i, frame in zip(range(max(wanted) + 1), frames)
                        if i in wanted}

    def load(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Clip `index`: T frames uint8 RGB [H,W,3] in random order."""
        return [self._frames[position] for position in self._positions[index]]


def _shrunk(frame: np.ndarray, short_side: int) -> np.ndarray:
    """A frame [H,W,3] whose short side is at most `short_side` pixels."""
    scale = short_side / min(frame.shape[:2])
    return resize(frame, *(round(side * scale) for side in frame.shape[1::-1])) if scale < 1 else frame


class StillClips:
    """One clip a still: T copies of it, each warped and with probability .5 turned (DESIGN section 5, COCO clip)."""

    def __init__(self, stills: Sequence[Video], length: int):
        self.stills, self.length = stills, length
        self.names = [still.name for still in stills]

    def load(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Make the clip of still `index`: T frames uint8 RGB [320,512,3]; `PictureError` as above."""
        width, height = STILL_SIZE
        still = resize(read_frame(self.stills[index].frames[0]), width, height)
        frames = []
        for _ in range(self.length):
            frame = apply_map(still, liquid_map(height, width, *draw_pulls(height, width, rng)))
            if rng.random() < 0.5:
                frame = rotate(frame, int(rng.integers(-MAX_ANGLE, MAX_ANGLE + 1)))
            frames.append(frame)
        return frames


def frame_gaps(videos: Sequence[Video], gap: int, seconds: float) -> list[int]:
    """The gap of each video [frames]: `gap`, or `seconds` where that is above 0 and the video's rate is known.

    `tools/prepare_data.py` leaves the rate in a video's folder, in `video.json`. `UserError` where no rate is known.
    """
    if not seconds:
        return [gap] * len(videos)
    rates = [_rate(video.frames[0].parent / "video.json") for video in videos]
    known = len(rates) - rates.count(None)
    if not known:
        raise UserError(f"DATASET.FRAME_GAP_SECONDS = {seconds} needs videos of known rate, and no folder has a "
                        "video.json with fps; make them with tools/prepare_data.py or use DATASET.FRAME_GAP")
    logger.info("the rate of %d of %d videos is known, the others take FRAME_GAP = %d", known, len(videos), gap)
    return [gap if rate is None else max(1, round(seconds * rate)) for rate in rates]


def _rate(path: Path) -> float | None:
    try:
        return float(parse_json(read_text(path))["fps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
