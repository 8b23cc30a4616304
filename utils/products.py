"""Matrix products by the library that computes convolutions on CPUs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def products(rows: Tensor, filters: Tensor) -> Tensor:
    """rows [n,g,C] times filters [g,m,C] transposed, for each of g groups: [n,g,m].

    As a 1x1 convolution with groups: PyTorch hands convolutions on CPUs to oneDNN, and float32 matrix products to a
    library of the same speed on some processors and of half of it on others (docs/BENCHMARKS.md, Training).
    """
    n, groups, channels = rows.shape
    image = rows.reshape(1, n, 1, groups * channels).permute(0, 3, 1, 2)  # [1,g*C,n,1], channels last: no copy
    # The dilation of a 1x1 filter means nothing; it keeps a single thread from falling back to the plain product.
    made = F.conv2d(image, filters.reshape(-1, channels, 1, 1), groups=groups, dilation=2)  # [1,g*m,n,1]
    return made.permute(0, 2, 3, 1).reshape(n, groups, -1)
