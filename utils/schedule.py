"""Learning rates of the epochs (DESIGN section 7)."""

from __future__ import annotations

import math

PUBLISHED_EPOCHS = 300


def learning_rate(epoch: int, *, base: float, epochs: int, cosine: bool) -> float:
    """Learning rate of an epoch.

    Args:
        epoch: from 1 to `epochs`.
        base: the configured rate.
        epochs: length of the run; one that is not the published 300 passes through the same curve, stretched.
        cosine: warm-up over 25 epochs, cosine to epoch 260, then held; otherwise halved every 100 epochs.
    """
    published = epoch * PUBLISHED_EPOCHS / epochs
    if not cosine:
        return base * 0.5 ** (published // 100)
    published = min(260, published)
    if published < 25:
        return base * published / 25
    return base * (1 + math.cos(math.pi * (published - 25) / 275)) / 2
