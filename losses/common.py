"""What several terms share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import gather


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Elementwise smooth L1 with the method's beta of 0.5."""
    return F.smooth_l1_loss(prediction, target, beta=0.5, reduction="none")


def ohem_mean(items: Tensor, ohem_range: tuple[float, float]) -> Tensor:
    """Online hard example mining: mean of the global batch's sorted items in [lo, hi) of their number.

    Args:
        items: [n], one loss an item, this process's.
        ohem_range: shares in [0,1]; 0.8 to 1 is the hardest fifth.
    """
    items = gather(items).sort().values
    low, high = (int(len(items) * share) for share in ohem_range)
    return items[low:max(high, low + 1)].mean()


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Geometry and logits are computed in float32, whatever the precision of the forward pass; float64 stays."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
