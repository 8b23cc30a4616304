"""One seed for every generator that is not passed around."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices) with a whole number in [0, 2^32)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
