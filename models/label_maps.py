"""Soft labels [M,h,w] on their way to the argmax: parts of cells, weights, sizes (DESIGN section 8)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.upsampling import CLASSES_AT_ONCE, argmax_of_parts

DETAIL = 0.5  # 1 gains more on thin objects, and loses more where an object grows (docs/experiments/subcells.md)


def resize(maps: Tensor, shape: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Resize maps [C,H,W] bilinearly, with the corners aligned as every resizing of this method is."""
    return F.interpolate(maps[None], size=tuple(shape), mode="bilinear", align_corners=align_corners)[0]


def parts_of_cells(labels: Tensor, n: int) -> Tensor:
    """Labels [M,n*h,n*w] by cells of n x n, [M,n*n,h,w]."""
    return F.pixel_unshuffle(labels[:, None], n)


def map_of_parts(parts: Tensor, n: int) -> Tensor:
    """The inverse of `parts_of_cells`: [M,n*n,h,w] to [M,n*h,n*w]."""
    return F.pixel_shuffle(parts, n)[:, 0]


def interpolated(labels: Tensor, n: int) -> Tensor:
    """Labels [M,n*h,n*w] of n x n parts of cells, without the borders that cells leave.

    Neighbouring cells may come from places that do not fit together. Between them the means of the cells are resized
    bilinearly, and what a part differs from its cell's mean is added with weight DETAIL.
    """
    if n == 1:
        return labels
    means = F.avg_pool2d(labels, n)
    smooth = F.interpolate(means[None], scale_factor=n, mode="bilinear")[0]
    return smooth + DETAIL * (labels - F.interpolate(means[None], scale_factor=n)[0])


def min_max_of(labels: Tensor) -> Tensor:
    """Soft labels [M,h,w] with the range of each class brought to [0,1]; a class that is nowhere stays so."""
    least, most = labels.amin((1, 2), keepdim=True), labels.amax((1, 2), keepdim=True)
    return torch.where(most > least, (labels - least) / (most - least), labels.clamp(max=1))


def stretched(labels: Tensor) -> Tensor:
    """Soft labels [M,h,w] with the range of each class stretched to [0,1], by moving and scaling it by a half at most.

    A class that has faded everywhere counts again where it is strongest; traces of one that is gone do not.
    """
    least = labels.amin((1, 2), keepdim=True).clamp(max=0.5)
    return (labels - least) / (labels.amax((1, 2), keepdim=True) - least).clamp(min=0.5)


def weighed(labels: Tensor, *, min_max: bool = False, stretch: bool, background: float) -> Tensor:
    """Soft labels [M,h,w] as they count in the argmax; see `VideoPropagator`."""
    labels = min_max_of(labels) if min_max else labels
    labels = stretched(labels) if stretch else labels
    return torch.cat([labels[:1] * background, labels[1:]])


def upsampled_argmax(labels: Tensor, shape: tuple[int, int], align_corners: bool = True) -> Tensor:
    """The argmax over channels of soft labels [M,h,w] resized to the full size, [H,W]; of equals the first."""
    return argmax_of_parts(resize(part, shape, align_corners) for part in labels.split(CLASSES_AT_ONCE))
