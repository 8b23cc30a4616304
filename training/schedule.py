"""The optimiser and the learning rates of the epochs (DESIGN section 7)."""

from __future__ import annotations

import math

import torch
from torch import nn

from utils.config import Settings

PUBLISHED_EPOCHS = 300


def learning_rate(epoch: int, *, base: float, epochs: int, cosine: bool) -> float:
    """Learning rate of an epoch.

    Args:
        epoch: from 1 to `epochs`.
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


def note_on_length(*, base: float, epochs: int, cosine: bool) -> str | None:
    """What a user should know of a run too short for its learning rate ever to be above the schedule's last."""
    rates = [learning_rate(epoch, base=base, epochs=epochs, cosine=cosine) for epoch in range(1, epochs + 1)]
    if max(rates) > rates[-1]:
        return None
    return (f"the learning rate changes between epochs, so that a run of {epochs} has the schedule's last, "
            f"{rates[-1]:.3g}, throughout; set TRAIN.NUM_EPOCHS 10 or more (TRAIN.CLIPS_PER_EPOCH makes epochs "
            f"shorter), or raise MODEL.LR from {base:g} to {base * base / rates[-1]:.3g}, which trains at {base:g}")


def build_optimiser(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW over all parameters, as the section MODEL has it."""
    options = settings.MODEL
    return torch.optim.AdamW(model.parameters(), lr=options.LR, betas=options.BETAS, eps=options.EPS,
                             weight_decay=options.WEIGHT_DECAY, fused=True)
