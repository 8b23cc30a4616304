"""Liquid warp: a picture pulled at 8 points, as a surface would be (DESIGN section 5)."""

from __future__ import annotations

import functools

import cv2
import numpy as np

POINTS = 8
RADIUS = 100  # [pixels] how far the pull of a point reaches
OFFSET = (12, 24)  # [pixels] how far a point is pulled along each axis, both ends included


def draw_pulls(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw points int [8,2] (x,y) on the picture or up to a fifth of its size outside, and their offsets int [8,2]."""
    size = np.array([width, height])
    points = rng.integers(np.ceil(-0.2 * size), np.floor(1.2 * size) + 1, size=(POINTS, 2))
    offsets = rng.integers(OFFSET[0], OFFSET[1] + 1, size=(POINTS, 2)) * rng.choice((-1, 1), size=(POINTS, 2))
    return points, offsets


def liquid_map(height: int, width: int, points: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where each pixel takes its value from: [pixels] float32 [2,H,W], a plane for x and one for y."""
    pixels = np.empty((2, height, width), np.float32)
    pixels[0] = np.arange(width)
    pixels[1] = np.arange(height)[:, None]
    falloff = _falloff()
    for (x, y), offset in zip(points, offsets):
        # Points are whole pixels, so that the pull of each is a window of one table.
        left, right = max(x - RADIUS, 0), min(x + RADIUS, width)
        top, bottom = max(y - RADIUS, 0), min(y + RADIUS, height)
        if left < right and top < bottom:
            window = falloff[top - y + RADIUS:bottom - y + RADIUS, left - x + RADIUS:right - x + RADIUS]
            for plane, pull in zip(pixels, offset.astype(np.float32)):
                plane[top:bottom, left:right] += pull * window
    return pixels


def apply_map(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Warp uint8 [H,W,3] by a liquid map, bilinear with reflection.

    Equals `grid_sample(align_corners=False)` on `sampling_grid(pixels)`: there 2x/W-1 means x - 0.5 pixels.
    """
    x, y = pixels - np.float32(0.5)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def sampling_grid(pixels: np.ndarray, reduction: int = 1) -> np.ndarray:
    """A liquid map [2,H,W] as `grid_sample` wants it, in [-1,1] and beyond, [H/reduction,W/reduction,2]."""
    _, H, W = pixels.shape
    planes = [cv2.resize(plane, (W // reduction, H // reduction)) / side * 2 - 1 for plane, side in zip(pixels, (W, H))]
    return np.stack(planes, axis=-1)


@functools.cache
def _falloff() -> np.ndarray:
    """1 - distance/RADIUS around a point, 0 beyond, float32 [2*RADIUS,2*RADIUS]."""
    axis = np.arange(-RADIUS, RADIUS, dtype=np.float32)
    return (1 - np.hypot(axis, axis[:, None]) / RADIUS).clip(0)
