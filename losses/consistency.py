"""Features move with the pixels: warping a frame's features gives the warped frame's features (DESIGN section 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.common import at_least_float32, ohem_mean, smooth_l1


def consistency_loss(features_a: Tensor, grid: Tensor, features_b: Tensor, *,
                     ohem_range: tuple[float, float]) -> Tensor:
    """Smooth L1 between A's features sampled by `grid` and B's, one item a frame.

    Args:
        features_a: unit `q_color` of view A [N,C,h,w].
        grid: where each cell of B lies in A, [N,h,w,2], x and y in [-1,1] with align_corners=False.
        features_b: unit `q_color` of view B [N,C,h,w], without gradient.
        ohem_range: see `ohem_mean`.
    """
    features_a, features_b, grid = at_least_float32(features_a, features_b, grid)
    with torch.autocast(features_a.device.type, enabled=False):
        warped = F.grid_sample(features_a, grid, mode="nearest", padding_mode="reflection", align_corners=False)
        return ohem_mean(smooth_l1(warped, features_b).mean((1, 2, 3)), ohem_range)
