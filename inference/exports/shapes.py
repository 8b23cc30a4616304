"""An object's mask in the notations of annotation formats. Masks are bool [H,W]; boxes x, y, width, height [pixels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np


def box(mask: np.ndarray) -> Sequence[int]:
    """The smallest box around a mask that is not empty."""
    return cv2.boundingRect(mask.astype(np.uint8))


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of the mask's connected parts, each int [n,2] of (x, y) at border pixels' centres; holes are filled.

    Filling them again, borders included (`cv2.fillPoly`), gives the mask without its holes.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [outline[:, 0] for outline in found]


def edge_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Like `polygons`, along the edges of the border pixels, in coordinates whose pixel (0,0) spans [0,1] x [0,1].

    A point, a line and other degenerate outlines have an area this way, which COCO's readers ask for.
    """
    # At 3 times the size an outline runs through the centres of a pixel's outer thirds, 1/3 from its edge.
    found = polygons(np.kron(mask, np.ones((3, 3), np.uint8)))
    # thirds 0, 1, 2 of pixel i lie at 3i ... 3i+2: the outer ones go to the nearest edge, i or i + 1.
    return [(outline + 1) // 3 for outline in found]


def uncompressed_rle(mask: np.ndarray, order: Literal["F", "C"]) -> list[int]:
    """Run lengths of 0, 1, 0, 1, ... beginning with those of 0; `order` "F" runs down columns, "C" along rows."""
    flat = mask.ravel(order=order)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def compressed_rle(mask: np.ndarray) -> dict[str, object]:
    """COCO's compressed run lengths, `{"size": [H, W], "counts": text}`, by COCO's own library."""
    from pycocotools import mask as coco  # an optional requirement, of this command alone

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
