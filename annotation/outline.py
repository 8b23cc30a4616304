"""An object's mask from a rough box or scribbles, by GrabCut (Rother, Kolmogorov and Blake, 2004), and lines that
follow its border, by Intelligent Scissors (Mortensen and Barrett, 1995).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

MARGIN = 0.25  # of the box's sides: how much background around it is looked at
ROUGH, UNKNOWN = 0.1, 0.5  # likewise: how far beyond a rough mask, and beyond scribbles alone, the object may reach
MOST_PIXELS = 60_000  # that GrabCut sees at once; larger parts are reduced, so that an answer takes under a second
ROUNDS = 3  # of estimating colours and cutting
REACH = 320  # [pixels] of a line that follows a border, to each side; a map of all ways takes 0.1 s then
CANNY, STRONGEST = (32, 100), 200  # thresholds of what is an edge; a gradient from which on all are alike


def cut_box(frame: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The object in a box.

    Args:
        frame: uint8 RGB [H,W,3].
        box: x, y, width, height [pixels]; cut at the frame's border.

    Returns:
        bool [H,W], True only inside the box.
    """
    hints = np.full(frame.shape[:2], cv2.GC_BGD, np.uint8)
    x, y, width, height = box
    inside = hints[max(y, 0):max(y + height, 0), max(x, 0):max(x + width, 0)]
    inside[:] = cv2.GC_PR_FGD
    return _cut(frame, hints) if inside.size else np.zeros(frame.shape[:2], bool)


def cut_scribbles(frame: np.ndarray, mask: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """The object that a mask has roughly, or that scribbles name.

    Args:
        frame: uint8 RGB [H,W,3].
        mask: bool [H,W], what is the object so far; may be empty.
        inside, outside: bool [H,W], pixels that are the object for certain, and that are not.

    Returns:
        bool [H,W].
    """
    if not (inside.any() or mask.any()):
        return mask
    hints = np.full(frame.shape[:2], cv2.GC_BGD, np.uint8)
    # A first scribble lies within an object that may reach as far again; a mask is about as large as its object.
    hints[_around(inside | mask | outside, ROUGH if mask.any() else UNKNOWN)] = cv2.GC_PR_BGD
    hints[mask], hints[inside], hints[outside] = cv2.GC_PR_FGD, cv2.GC_FGD, cv2.GC_BGD
    return _cut(frame, hints)


class BorderLines:
    """Lines from one place of a frame along the borders of what it shows."""

    def __init__(self, frame: np.ndarray, start: Sequence[int]):
        """`frame` is uint8 RGB [H,W,3], `start` x, y [pixels], brought into it."""
        self._start = self._within(start, (0, 0), frame.shape[1::-1])
        self._low = [max(0, at - REACH) for at in self._start]
        self._high = [min(side, at + REACH + 1) for at, side in zip(self._start, frame.shape[1::-1])]
        (left, top), (right, bottom) = self._low, self._high
        self._scissors = cv2.segmentation.IntelligentScissorsMB()
        self._scissors.setEdgeFeatureCannyParameters(*CANNY)
        self._scissors.setGradientMagnitudeMaxLimit(STRONGEST)
        self._scissors.applyImage(np.ascontiguousarray(frame[top:bottom, left:right]))
        self._scissors.buildMap(tuple(at - low for at, low in zip(self._start, self._low)))

    def to(self, end: Sequence[int]) -> np.ndarray:
        """The line to `end`, x, y [pixels], brought into reach: int [N,2], both ends among them."""
        end = self._within(end, self._low, self._high)
        line = self._scissors.getContour(tuple(at - low for at, low in zip(end, self._low)))
        return line.reshape(-1, 2) + self._low

    @staticmethod
    def _within(place: Sequence[int], low: Sequence[int], high: Sequence[int]) -> tuple[int, ...]:
        return tuple(min(max(at, least), beyond - 1) for at, least, beyond in zip(place, low, high))


def _cut(frame: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """GrabCut of the part of the frame around what `hints` leaves open, at a reduced size where it is large."""
    part = _around(hints != cv2.GC_BGD, MARGIN)
    seen = hints[part]
    scale = min(1.0, (MOST_PIXELS / seen.size) ** 0.5)
    size = tuple(max(1, round(side * scale)) for side in seen.shape[::-1])
    small = cv2.resize(frame[part], size, interpolation=cv2.INTER_AREA)
    labels = cv2.resize(seen, size, interpolation=cv2.INTER_NEAREST)
    sure = np.isin(labels, (cv2.GC_BGD, cv2.GC_PR_BGD)).any() and np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).any()
    if sure:  # its colour models need pixels of both kinds
        whole, models = (0, 0, 0, 0), (np.zeros((1, 65)), np.zeros((1, 65)))  # the mask, not a box, says where
        cv2.grabCut(np.ascontiguousarray(small), labels, whole, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    own = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    large = cv2.resize(own, seen.shape[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5
    mask = np.zeros(hints.shape, bool)
    mask[part] = (large | (seen == cv2.GC_FGD)) & (seen != cv2.GC_BGD)
    return mask


def _around(mask: np.ndarray, share: float) -> tuple[slice, ...]:
    """Rows and columns of a mask's box, grown by a share of it, at least 2, on each side, within the frame."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    more = [max(2, round(side * share)) for side in (height, width)]
    return tuple(slice(max(0, at - by), at + side + by) for at, side, by in zip((y, x), (height, width), more))
