"""Frames as networks take them."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(frames: Tensor) -> Tensor:
    """RGB frames [...,3,H,W], uint8 in [0,255] or float in [0,1], to float32 with ImageNet's mean and deviation."""
    scale = 255 if frames.dtype == torch.uint8 else 1
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=frames.device).view(3, 1, 1)
    return (frames.float() / scale - mean) / std
