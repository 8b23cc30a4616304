"""The colours that are rebuilt: Lab (or RGB) of view A before any photometric change."""

from __future__ import annotations

import cv2
import numpy as np


def colour_target(frames: np.ndarray, mode: str, clip: bool) -> np.ndarray:
    """RGB uint8 [T,H,W,3] to the reconstruction target float32 [T,3,H,W] in [0,1] (DESIGN section 5).

    `mode` LAB: L divided by 255, a and b of all frames, taken together, stretched to [0,1] (after clipping to mean
    +- 3 standard deviations where `clip`); AB: the same with L zero; RGB: divided by 255.
    """
    T, H, W, _ = frames.shape
    tall = frames.reshape(T * H, W, 3)
    unit = np.arange(256, dtype=np.float32) / 255  # a level has one value: 256 of them are computed, not T*H*W
    tables = [unit, unit, unit]
    if mode != "RGB":
        tall = cv2.cvtColor(tall, cv2.COLOR_RGB2LAB)
        stretched = _stretch(tall, unit, clip)
        tables = [unit if mode == "LAB" else 0 * unit, stretched, stretched]
    target = np.empty((T, 3, H, W), np.float32)
    for frame, planes in zip(tall.reshape(T, H, W, 3), target):
        for channel, table, plane in zip(cv2.split(frame), tables, planes):
            cv2.LUT(channel, table, dst=plane)
    return target


def _stretch(lab: np.ndarray, unit: np.ndarray, clip: bool) -> np.ndarray:
    """The values that the 256 levels of a and b get; their own where a and b span less than one level."""
    count = cv2.calcHist([lab], [1], None, [256], [0, 256]) + cv2.calcHist([lab], [2], None, [256], [0, 256])
    count, value = count[:, 0].astype(np.float64), unit.astype(np.float64)
    if clip:
        mean = np.average(value, weights=count)
        deviation = np.sqrt(np.average((value - mean) ** 2, weights=count))
        value = value.clip(mean - 3 * deviation, mean + 3 * deviation)
    low, high = value[count > 0][[0, -1]]
    return (((value - low) / (high - low)).clip(0, 1) if high - low >= 1 / 256 else value).astype(np.float32)
