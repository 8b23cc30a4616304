"""The colours that are rebuilt: Lab (or RGB) of view A before any photometric change."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor


def color_target(frames: np.ndarray, mode: str, clip: bool) -> Tensor:
    """RGB uint8 [T,H,W,3] to the reconstruction target float32 [T,3,H,W] in [0,1] (DESIGN section 5).

    `mode` LAB: L divided by 255, a and b of all frames, taken together, stretched to [0,1] (after clipping to mean
    +- 3 standard deviations where `clip`); AB: the same with L zero; RGB: divided by 255.
    """
    levels, values = color_levels(frames, mode, clip)
    return values_of(levels[None], values[None])[0]


def color_levels(frames: np.ndarray, mode: str, clip: bool) -> tuple[Tensor, Tensor]:
    """What `color_target` is made of, a quarter of its size: uint8 levels [T,3,H,W] and their values [3,256]."""
    T, H, W, _ = frames.shape
    tall = frames.reshape(T * H, W, 3)
    unit = np.arange(256, dtype=np.float32) / 255
    values = [unit, unit, unit]
    if mode != "RGB":
        tall = cv2.cvtColor(tall, cv2.COLOR_RGB2LAB)
        stretched = _stretch(tall, unit, clip)
        values = [unit if mode == "LAB" else 0 * unit, stretched, stretched]
    return channels_first(tall.reshape(T, H, W, 3)), torch.from_numpy(np.stack(values))


def channels_first(frames: np.ndarray | Sequence[np.ndarray]) -> Tensor:
    """T pictures uint8 [H,W,3] to one tensor uint8 [T,3,H,W]."""
    planes = np.empty((len(frames), 3, *frames[0].shape[:2]), np.uint8)
    for frame, out in zip(frames, planes):
        cv2.split(frame, list(out))  # writes into `planes`
    return torch.from_numpy(planes)


def values_of(levels: Tensor, values: Tensor) -> Tensor:
    """Each level's value: uint8 [B,T,3,H,W] by float32 [B,3,256] to float32 [B,T,3,H,W]."""
    tables = 256 * torch.arange(values.shape[0] * values.shape[1], device=values.device)
    return torch.take(values, levels.long() + tables.view(*values.shape[:2], 1, 1)[:, None])


def _stretch(lab: np.ndarray, unit: np.ndarray, clip: bool) -> np.ndarray:
    """The values that the 256 levels of a and b get; their own where a and b span less than one level."""
    count = cv2.calcHist([lab], [1], None, [256], [0, 256]) + cv2.calcHist([lab], [2], None, [256], [0, 256])
    count, value = count.ravel().astype(np.float64), unit.astype(np.float64)  # OpenCV 5 has one axis, 4 two
    if clip:
        mean = np.average(value, weights=count)
        deviation = np.sqrt(np.average((value - mean) ** 2, weights=count))
        value = value.clip(mean - 3 * deviation, mean + 3 * deviation)
    low, high = value[count > 0][[0, -1]]
    return (((value - low) / (high - low)).clip(0, 1) if high - low >= 1 / 256 else value).astype(np.float32)
