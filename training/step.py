"""One optimiser step."""

from __future__ import annotations

import torch

from datasets import Batch
from losses.objective import Losses, Objective
from training.state import TrainingState
from utils import distributed
from utils.device import PRECISIONS
from utils.errors import UserError


class TrainingStep:
    """Takes optimiser steps on batches.

    Args:
        state: what a step changes; its `progress.step` tells the anchors' generator which step it is.
        precision: of the forward pass, a key of `PRECISIONS`.
        parts: a batch is computed in so many parts, whose gradients are averaged.
        seed: of the anchors.
    """

    def __init__(self, state: TrainingState, objective: Objective, *, precision: str, parts: int, seed: int):
        self._state, self._objective, self._parts, self._seed = state, objective, parts, seed
        self._dtype = PRECISIONS[precision]

    def __call__(self, batch: Batch) -> Losses:
        """Change the network by one step; the losses, means over the parts, stay on the device."""
        state, parts = self._state, []
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + state.progress.step)
        for views in batch.parts(self._parts):
            with torch.autocast(state.device.type, self._dtype, enabled=self._dtype != torch.float32):
                losses = self._objective(state.model, views, generator)
            state.scaler.scale(losses.total / self._parts).backward()
            parts.append(torch.stack([loss.detach().float() for loss in losses]))
        distributed.average_gradients(state.model.parameters())
        state.scaler.step(state.optimiser)
        state.scaler.update()
        state.optimiser.zero_grad()
        if state.average is not None:
            state.average.update(state.model)
        return Losses(*torch.stack(parts).mean(dim=0))


def check_parts(batch_size: int, parts: int, *, negatives: bool) -> None:
    """`UserError` where the batch of all processes does not split into `parts`, or one leaves a clip its own negative.

    A clip's negatives are its mirror's in the part, and the middle one of an odd number is its own mirror.
    """
    processes = distributed.world_size()
    if parts < 1 or batch_size % (parts * processes):
        raise UserError(f"--accumulate must divide the clips of a process's batch; {parts} does not divide "
                        f"{batch_size // processes}")
    clips = batch_size // parts
    if negatives and clips % 2:
        raise UserError(f"with is_neg the clips are paired, and an even number of them is computed at a time; it is "
                        f"{clips} (TRAIN.BATCH_SIZE {batch_size}, --accumulate {parts}); change these or set is_neg to "
                        "false")
