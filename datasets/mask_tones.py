"""Two tones to one object: soft brushes, lossy copies and backgrounds that are not quite black, cut half way."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from datasets.mask_edges import codes_of

CONTRAST = 64  # least distance of the tones, of 255
OFF_LINE = 1 / 20  # of the pixels of the smaller tone: as many may be of a third colour (chroma of JPEG's edges)
LEVELS = 4  # bins between the tones; a third tone fills one of them, an edge all
THIRD_TONE = 0.6  # of the pixels between the tones in one bin
PATCH = 5  # side of a square [pixels] that no fringe of an edge fills
FEW = 1 / 100  # of the picture: fewer pixels than that between the tones make no third


class TwoTones(NamedTuple):
    """A picture cut in two: bool [h,w], True where the brighter tone is nearer; and the tones, [C]."""

    bright: np.ndarray
    dark_tone: tuple[int, ...]
    bright_tone: tuple[int, ...]


def two_tones(picture: np.ndarray, white: int, *, lossy: bool) -> TwoTones | None:
    """Cut a picture [h,w,C] whose pixels gather about two tones half way between them; None for any other.

    The pixels between the tones must be fewer than those of either, lie on the line from one to the other, and not be
    a tone of their own; in a lossy picture, whose flat parts are not flat, not even in a small part of it. `white` is
    the highest value of a channel.
    """
    picked = picture.reshape(-1, picture.shape[2])
    pixels = picked.astype(np.float32)  # [S,C]
    first = _most_frequent(picked)
    distance = np.linalg.norm(pixels - first, axis=1)
    if distance.max() < CONTRAST / 255 * white:
        return None
    second = _most_frequent(picked[distance > distance.max() / 2])
    dark, bright = sorted((first, second), key=lambda tone: tone.sum())
    step = bright - dark
    length = np.linalg.norm(step)
    if length < CONTRAST / 255 * white:
        return None
    share = (pixels - dark) @ step / length**2  # 0 is dark, 1 is bright
    aside = np.linalg.norm(pixels - dark - np.clip(share, 0, 1)[:, None] * step, axis=1) > length / 4
    between = (share >= 0.25) & (share <= 0.75)
    smaller = min(np.count_nonzero(share < 0.25), np.count_nonzero(share > 0.75))
    if between.sum() > smaller or aside.sum() > OFF_LINE * smaller:
        return None
    if between.sum() > FEW * len(pixels):
        levels = np.histogram(share[between], LEVELS, (0.25, 0.75))[0]
        if levels.max() > THIRD_TONE * between.sum():
            return None
    if _has_patch(aside, picture.shape) or (lossy and any(
            _has_patch(abs(share - level) < 1 / 16, picture.shape) for level in np.arange(0.3, 0.71, 0.05))):
        return None
    tones = (tuple(tone.astype(int).tolist()) for tone in (dark, bright))
    return TwoTones((share > 0.5).reshape(picture.shape[:2]), *tones)


def _has_patch(flags: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether flags, bool [h*w] of a picture, fill a square that is wider than the fringes of edges."""
    return bool(cv2.erode(flags.reshape(shape[:2]).astype(np.uint8), np.ones((PATCH, PATCH), np.uint8)).any())


def _most_frequent(pixels: np.ndarray) -> np.ndarray:
    """The colour float32 [C] that most of some pixels [S,C] have."""
    _, first, counts = np.unique(codes_of(pixels), return_index=True, return_counts=True)
    return pixels[first[counts.argmax()]].astype(np.float32)
