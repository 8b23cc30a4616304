"""A copy of the frame that somebody painted on, to the objects that were painted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from datasets.mask_edges import EDGE_WINDOW, block_starts, codes_of
from datasets.object_ids import MAX_ID, Objects, key_of
from utils.errors import UserError

SAME = 2  # greatest difference of a channel of pixels that nobody painted
DARK = 32  # highest channel of pixels that a mask's black background has in common with a frame
COPY = 1 / 4  # of the picture: as many bright pixels that are the frame's make it a copy


def painted_objects(path: Path, picture: np.ndarray, frame: np.ndarray) -> Objects | None:
    """Objects painted on a copy of `frame`, both uint8 [H,W,3], one a colour; None for a picture that is no copy.

    A pixel of another colour is an edge: it is an object's where the paint covers half of it.
    """
    if picture.shape != frame.shape:
        return None
    same = cv2.absdiff(picture, frame).max(axis=2) <= SAME
    if np.mean(same & (frame.max(axis=2) > DARK)) < COPY:
        return None
    codes = np.where(same, 0, codes_of(picture) + 1)  # black paint is paint
    starts = block_starts(codes)
    paints, colors = codes.flat[starts], picture.reshape(-1, 3)[starts]
    n_changed, n_flat = np.count_nonzero(codes), np.isin(codes, paints).sum()
    if not 0 < len(paints) <= MAX_ID or n_changed > 2 * n_flat:
        raise UserError(f"on a copy of the frame every object is painted in one opaque colour; {path} differs from its "
                        f"frame on {n_changed} pixels, of which {n_changed - n_flat} have a colour of their own; "
                        "paint with an opaque, hard brush, and save as PNG")
    labels = np.zeros(codes.shape, np.uint8)
    for label, code in enumerate(paints, 1):
        labels[codes == code] = label
    edge = (codes > 0) & (labels == 0)
    settled = labels.copy()
    for label, color in enumerate(colors, 1):
        y, x = np.nonzero(edge & (cv2.dilate((labels == label).astype(np.uint8), EDGE_WINDOW) > 0))
        step = color - frame[y, x].astype(np.float32)
        share = ((picture[y, x].astype(np.float32) - frame[y, x]) * step).sum(1) / np.square(step).sum(1).clip(1)
        settled[y[share >= 0.5], x[share >= 0.5]] = label
    keys = [tuple(color.tolist()) for color in colors]
    return Objects(settled, {1: key_of(keys[0])} if len(keys) == 1 else dict(enumerate(keys, 1)))
