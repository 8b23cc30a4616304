"""One seed for every generator that is not passed around."""

from __future__ import annotations

import random

import numpy as np
import torch

from utils.errors import UserError


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices) with a whole number in [0, 2^32)."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is a whole number from 0 to 2^32 - 1; it is {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
