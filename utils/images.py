"""Frames as networks take them."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_normalise(frames: Tensor) -> Tensor:
    """RGB frames [...,3,H,W], uint8 in [0,255] or float in [0,1], to float32 with ImageNet's mean and deviation."""
    scale = 255 if frames.dtype == torch.uint8 else 1
    mean, std = (_per_channel(values, frames.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (frames.float() / scale - mean) / std


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value a channel, [C,1,1]; filled in on the device, since it would be waited for to copy them there."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
