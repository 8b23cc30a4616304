"""What may be taken out of masks before they are written: specks, holes, objects that are lost."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import cv2
import numpy as np

from models.propagation import Prediction
from utils.masks import object_ids

SPECK_SHARE = 0.02  # of an object's largest connected part: a smaller part is a speck, a smaller gap in it a hole


class Refinement(NamedTuple):
    """Which of them are; what a person gave stays as it is."""

    clean: bool = False  # drop specks, fill holes
    drop_lost: bool = False  # an object is not painted while it is lost

    def __call__(self, mask: np.ndarray, prediction: Prediction, lost: Collection[int]) -> np.ndarray:
        """A mask, uint8 [H,W], of a prediction whose objects `lost` are lost, refined."""
        if not any(self):
            return mask
        refined = mask.copy()
        for k in set(object_ids(mask)) - set(prediction.named):
            if self.drop_lost and k in lost:
                refined[mask == k] = 0
            elif self.clean:
                _clean(refined, k)
        return refined


def _clean(mask: np.ndarray, k: int) -> None:
    """Drop the specks of object `k` and fill its holes, in place; a hole that holds another object is none."""
    own = (mask == k).astype(np.uint8)
    _, parts, boxes, _ = cv2.connectedComponentsWithStats(own, connectivity=8)
    areas = boxes[1:, cv2.CC_STAT_AREA]
    least = SPECK_SHARE * areas.max()
    mask[np.isin(parts, 1 + np.flatnonzero(areas < least))] = 0
    count, gaps, boxes, _ = cv2.connectedComponentsWithStats((mask != k).astype(np.uint8), connectivity=4)
    height, width = mask.shape
    for gap in range(1, count):
        x, y, w, h, area = boxes[gap]
        inside = x > 0 and y > 0 and x + w < width and y + h < height
        if inside and area < least and not mask[gaps == gap].any():
            mask[gaps == gap] = k
