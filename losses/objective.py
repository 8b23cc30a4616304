"""The method on one screen: three terms, each of what it needs of the network (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losses.color import color_loss
from losses.consistency import consistency_loss
from losses.dense import dense_loss, draw_grid_cells
from utils.errors import UserError


class Losses(NamedTuple):
    """Scalars; `total` carries the gradient. A term that is switched off is 0."""

    total: Tensor
    color: Tensor
    consistency: Tensor
    dense: Tensor


def refuse_non_finite(losses: Losses, step: int, clips: list[str]) -> None:
    """End training at a loss that is not a number, naming the term, the step (counted from 1) and the batch's clips."""
    bad = [name for name, value in losses._asdict().items() if not value.isfinite()]
    if bad:
        raise UserError(f"losses must be finite; {', '.join(bad)} is not at step {step} (clips {', '.join(clips)}); "
                        "lower MODEL.LR, and instead of fp16 use fp32 or bf16")


@dataclass(frozen=True)
class Objective:
    """total = consistency + color + dense_weight * dense; see the three terms for the fields."""

    color_temperature: float
    color_weight: float
    negatives: bool
    ohem_range: tuple[float, float]
    consistency: bool
    dense: bool
    dense_weight: float
    dense_temperature: float
    anchor_grid: int
    cross_view_grid: int
    cross_view_weight: float

    def __call__(self, model: nn.Module, batch: Mapping[str, Mapping[str, Tensor]],
                 generator: torch.Generator) -> Losses:
        """The losses of a batch of clips.

        Args:
            model: network whose call gives `q_color` and `q_cls`.
            batch: `color` views (`view_a`, `view_b` [B,T,3,H,W] normalised, `grid` [B,T,h,w,2], `target` [B,T,3,H,W],
                optionally `edge` [B,T,1,H,W]) and `dense` views (`view_1`, `view_2` [B,T,3,H,W], `theta` [B,2,3]).
            generator: CPU generator of the anchors' offsets, seeded alike in all processes.
        """
        views = batch["color"]
        features = self._local(model, views["view_a"])
        color = self.color_weight * color_loss(features, views["target"], views.get("edge"), negatives=self.negatives,
                                               temperature=self.color_temperature, ohem_range=self.ohem_range)
        zero = color.new_zeros(())
        consistency = self._consistency(model, features, views) if self.consistency else zero
        dense = self._dense(model, generator, **batch["dense"]) if self.dense else zero
        total = consistency + color + self.dense_weight * dense
        return Losses(total, color.detach(), consistency.detach(), dense.detach())

    def _local(self, model: nn.Module, frames: Tensor) -> Tensor:
        """[B,T,3,H,W] to `q_color` [B,T,C,h,w]; the global branch does not run."""
        return model(frames.flatten(0, 1), dense=False).q_color.unflatten(0, frames.shape[:2])

    def _consistency(self, model: nn.Module, features: Tensor, views: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            target = self._local(model, views["view_b"])
        return consistency_loss(features.flatten(0, 1), views["grid"].flatten(0, 1), target.flatten(0, 1),
                                ohem_range=self.ohem_range)

    def _dense(self, model: nn.Module, generator: torch.Generator, view_1: Tensor, view_2: Tensor,
               theta: Tensor) -> Tensor:
        """All of view 1 and the first frame of view 2 learn; the rest of view 2 only labels (DUL, section 3.2)."""
        learning = torch.cat([view_1, view_2[:, :1]], dim=1)  # [B,T+1,3,H,W]
        learnt = model(learning.flatten(0, 1), local=False).q_cls.unflatten(0, learning.shape[:2])
        labelling = view_2[:, 1:]
        with torch.no_grad():
            labels = model(labelling.flatten(0, 1), local=False).q_cls.unflatten(0, labelling.shape[:2])
        cells = lambda size: draw_grid_cells(len(view_1), learnt.shape[-1], size, generator)
        return dense_loss(learnt[:, :-1], torch.cat([learnt[:, -1:], labels], dim=1), theta,
                          anchor_cells=cells(self.anchor_grid), point_cells=cells(self.cross_view_grid),
                          temperature=self.dense_temperature, cross_view_weight=self.cross_view_weight)
