"""Frames as networks take them, and colours as they are compared."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # sRGB
WHITE = (0.950456, 1.0, 1.088754)  # D65


def imagenet_normalise(frames: Tensor) -> Tensor:
    """RGB frames [...,3,H,W], uint8 in [0,255] or float in [0,1], to float32 with ImageNet's mean and deviation."""
    scale = 255 if frames.dtype == torch.uint8 else 1
    mean, std = (_per_channel(values, frames.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (frames.float() / scale - mean) / std


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value a channel, [C,1,1]; filled in on the device, since it would be waited for to copy them there."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])


def rgb_to_lab(pixels: Tensor) -> Tensor:
    """sRGB pixels, uint8 [...,3], to CIE Lab as 8-bit pictures hold it, uint8 [...,3]: L * 2.55, a + 128, b + 128."""
    level = torch.arange(256, device=pixels.device) / 255
    linear = torch.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)[pixels.int()]
    to_xyz = torch.tensor(RGB_TO_XYZ, device=pixels.device) / torch.tensor(WHITE, device=pixels.device)[:, None]
    relative = linear @ to_xyz.T  # X, Y and Z in [0,1], the white being 1
    x, y, z = torch.where(relative > 0.008856, relative ** (1 / 3), 7.787 * relative + 16 / 116).unbind(-1)
    lab = torch.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], -1)
    return lab.round().clamp(0, 255).byte()
