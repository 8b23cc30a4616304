"""What several terms share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from utils.distributed import gather


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Elementwise smooth L1 with the method's beta of 0.5."""
    return F.smooth_l1_loss(prediction, target, beta=0.5, reduction="none")


def mean_of_hardest(items: Tensor, ohem_range: tuple[float, float]) -> Tensor:
    """Mean of the global batch's sorted items in the slice [lo, hi) of their number; 0.8 to 1 is the hardest fifth.

    Args:
        items: [n], one loss an item, this process's.
        ohem_range: shares in [0,1].
    """
    items = gather(items).sort().values
    low, high = (int(len(items) * share) for share in ohem_range)
    return items[low:max(high, low + 1)].mean()
