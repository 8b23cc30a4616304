"""Synthetic shadows: light that changes over parts of a picture (DESIGN section 5, shadow)."""

from __future__ import annotations

import cv2
import numpy as np

LEVELS = np.arange(256, dtype=np.float32)


def cast_shadow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint shadows with hard or soft edges (p .75) or change the light smoothly, uint8 RGB [H,W,3]."""
    return painted_shadow(image, rng) if rng.random() < 0.75 else smooth_shadow(image, rng)


def painted_shadow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the gamma of 3 to 6 quadrilaterals, uint8 RGB [H,W,3]."""
    height, width = image.shape[:2]
    mask = cv2.cvtColor(shadow_mask(height, width, rng), cv2.COLOR_GRAY2RGB)
    gamma = rng.uniform(0.5, 1) if rng.random() < 0.5 else rng.uniform(1, 1.5)
    low, high = int(image.min()), max(int(image.max()), 1)
    light = cv2.convertScaleAbs(image, alpha=255 / high, beta=-255 * low / high)
    unit = LEVELS / 255
    change = cv2.LUT(light, np.rint(255 * abs(unit ** gamma - unit)).astype(np.uint8))
    change = cv2.multiply(change, mask, scale=1 / 255)
    return cv2.add(light, change) if gamma < 1 else cv2.subtract(light, change)


def shadow_mask(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Quadrilaterals, 255 inside and 0 outside, uint8 [H,W]; with probability .8 their edges are soft."""
    size = np.array([width, height])
    mask = np.zeros((height, width), np.uint8)
    count = rng.integers(3, 7)
    anywhere = rng.uniform(0, size, size=(count, 2, 2))  # the first and third corner of each
    nearby = anywhere + rng.uniform(-0.5, 0.5, size=(count, 2, 2)) * size  # the second and fourth
    for corners in np.concatenate([anywhere, nearby], axis=1).clip(0, size - 1).astype(np.int32):
        cv2.fillConvexPoly(mask, cv2.convexHull(corners), 255)
    if rng.random() < 0.8:
        kernel = int(rng.choice((3, 5, 7, 9)))
        return cv2.GaussianBlur(mask, (kernel, kernel), rng.uniform(7, 12))
    return mask


def smooth_shadow(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the gamma from place to place, uint8 RGB [H,W,3]."""
    logarithm = np.log((LEVELS / 255).clip(1e-8)).astype(np.float32)
    height, width = image.shape[:2]
    exponent = cv2.cvtColor(smooth_exponent(height, width, rng), cv2.COLOR_GRAY2RGB)
    power = cv2.exp(cv2.multiply(cv2.LUT(image, logarithm), exponent))
    return cv2.convertScaleAbs(power, alpha=255)


def smooth_exponent(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Waves over x and y as exponents in [.5,2], float32 [H,W]."""
    def wave(length: int) -> np.ndarray:
        frequency, phase = rng.integers(1, 5, size=(2, 1)), rng.uniform(0, 2 * np.pi, size=(2, 1))
        return np.cos(2 * np.pi * frequency * np.arange(length) / length + phase).sum(0).astype(np.float32)

    g = (wave(width) + wave(height)[:, None]) / 2
    g = (g - g.min()) / (g.max() - g.min())
    return np.where(g >= 0.5, 2 * g, g + 0.5)
