"""Photometric augmentation of one frame: shadow, colour jitter, grey, blur, solarise (DESIGN section 5).

All act on uint8 RGB [H,W,3].
"""

from __future__ import annotations

import cv2
import numpy as np

from datasets.shadow import LEVELS, cast_shadow

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
SOLARISED = np.where(LEVELS < 128, LEVELS, 255 - LEVELS).astype(np.uint8)


def photometric(image: np.ndarray, rng: np.random.Generator, *, shadow: bool, blur_probability: float,
                solarise_probability: float) -> np.ndarray:
    """Draw and apply the whole photometric change of a frame."""
    if shadow and rng.random() < 0.8:
        image = cast_shadow(image, rng)
    if rng.random() < 0.8:
        image = color_jitter(image, rng)
    if rng.random() < 0.2:
        image = to_grey(image)
    if rng.random() < blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.1, 2))
    if rng.random() < solarise_probability:
        image = cv2.LUT(image, SOLARISED)
    return image


def color_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue in random order, each as torchvision's ColorJitter draws it."""
    changes = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    amounts = [*(rng.uniform(1 - x, 1 + x) for x in (BRIGHTNESS, CONTRAST, SATURATION)), rng.uniform(-HUE, HUE)]
    for i in rng.permutation(4):
        image = changes[i](image, amounts[i])
    return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply all levels."""
    return cv2.convertScaleAbs(image, alpha=factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Spread the levels about the mean of the grey picture."""
    mean = round(np.ravel(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)))[0])
    return cv2.addWeighted(image, factor, image, 0, (1 - factor) * mean)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Spread the channels about the pixel's grey."""
    return cv2.addWeighted(image, factor, to_grey(image), 1 - factor, 0)


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue by `shift` of the circle."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hue = hsv[..., 0]
    np.add(hue, np.uint8(round(256 * shift) % 256), out=hue)  # uint8 goes round as the circle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def to_grey(image: np.ndarray) -> np.ndarray:
    """The image's brightness in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
