"""IoU of the parts of people, as VIP measures it."""

from __future__ import annotations

import numpy as np

VIP_CLASSES = ("background", "hat", "hair", "sunglasses", "upper clothes", "dress", "coat", "socks", "pants", "gloves",
               "scarf", "skirt", "torso skin", "face", "right arm", "left arm", "right leg", "left leg", "right shoe",
               "left shoe")


def confusion(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Pixels of each true class (rows) by the class that was found, int64 [20,20], of two masks [H,W].

    Pixels whose true value is no class are left out; `found` has classes alone.
    """
    M = len(VIP_CLASSES)
    known = truth < M
    return np.bincount(M * truth[known].astype(np.int64) + found[known], minlength=M * M).reshape(M, M)


def class_iou(pixels: np.ndarray) -> np.ndarray:
    """A confusion [20,20] to the IoU of each class [20], NaN for one that is nowhere."""
    shared, union = np.diag(pixels), pixels.sum(axis=0) + pixels.sum(axis=1) - np.diag(pixels)
    return np.divide(shared, union, out=np.full(len(union), np.nan), where=union > 0)
