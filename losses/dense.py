"""Dense unsupervised learning: anchors of a clip's first frame, pseudo labels from its second view (DUL, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.common import at_least_float32
from utils.distributed import gather, rank, world_size
from utils.errors import UserError


def dense_loss(view_1: Tensor, view_2: Tensor, theta: Tensor, *, anchor_cells: Tensor, point_cells: Tensor,
               temperature: float, cross_view_weight: float) -> Tensor:
    """Temporal cross-entropy against the anchors of the whole batch, and cross-view InfoNCE of the first frames.

    Args:
        view_1: unit `q_cls` of B clips of T frames [B,T,C,h,w].
        view_2: the same of the second view; only its first frame carries a gradient.
        theta: [B,2,3], the affine map that samples view 1 to give view 2 (`affine_grid`, align_corners=False).
        anchor_cells: cells of frame 0 of view 1 that are anchors [B,n], y*w + x.
        point_cells: cells of the aligned first frames that the cross-view term compares [B,m].
        temperature: divisor of the similarities.
        cross_view_weight: weight of the cross-view term (CE_REF).
    """
    clips, T = view_1.shape[:2]
    view_1, view_2, theta = at_least_float32(view_1, view_2, theta)
    with torch.autocast(view_1.device.type, enabled=False):
        aligned = _align(view_1.flatten(0, 1), theta.repeat_interleave(T, dim=0)).unflatten(0, (clips, T))
        anchors = _pick(view_1[:, 0], anchor_cells)
        temporal = _temporal_loss(aligned[:, 1:], view_2[:, 1:], anchors, temperature)
        cross_view = _cross_view_loss(_pick(aligned[:, 0], point_cells), _pick(view_2[:, 0], point_cells), temperature)
        return gather((temporal + cross_view_weight * cross_view)[None]).mean()  # over the processes


def draw_grid_cells(clips: int, width: int, size: int, generator: torch.Generator) -> Tensor:
    """Cells of a `size` x `size` grid over a square map for each clip of the global batch: this process's [clips,n].

    Args:
        clips: clips of this process.
        width: width and height of the feature map [cells].
        size: points a side; the grid's spacing is width // size.
        generator: seeded alike in all processes; gives each clip one offset in [0, spacing) along x and one along y.

    Raises:
        UserError: the grid has more points a side than the map has cells.
    """
    spacing = width // size
    if not spacing:
        raise UserError(f"a view has at least as many cells of 8 pixels a side as MODEL.GRID_SIZE and GRID_SIZE_REF; "
                        f"it has {width}, and the grid {size} points; raise DATASET.CROP_SIZE or lower the grid")
    offsets = torch.randint(spacing, (clips * world_size(), 2), generator=generator)
    return grid_cells(offsets[rank() * clips:(rank() + 1) * clips], width, size)


def grid_cells(offsets: Tensor, width: int, size: int) -> Tensor:
    """Offsets (x, y) in cells [B,2] to the cells y*width + x of the grid that starts there [B,size^2]."""
    steps = torch.arange(size) * (width // size)
    x, y = offsets[:, :1] + steps, offsets[:, 1:] + steps  # [B,size] each
    return (y[:, :, None] * width + x[:, None, :]).flatten(1)


def _temporal_loss(view_1: Tensor, view_2: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of view 1's cells [B,t,C,h,w] over all anchors [B,n,C]; labels: view 2's best of the own clip."""
    with torch.no_grad():
        own = torch.einsum("btchw,bnc->btnhw", view_2, anchors)
        first = (rank() * len(anchors) + torch.arange(len(anchors), device=anchors.device)) * anchors.shape[1]
        labels = own.argmax(dim=2) + first.view(-1, 1, 1, 1)  # [B,t,h,w]
    everyone = gather(anchors).flatten(0, 1)  # [world*B*n,C]
    scores = torch.einsum("btchw,nc->btnhw", view_1, everyone) / temperature
    return F.cross_entropy(scores.flatten(0, 1).float(), labels.flatten(0, 1))


def _cross_view_loss(points_1: Tensor, points_2: Tensor, temperature: float) -> Tensor:
    """InfoNCE of the same points [B,m,C] in two views, the points of the whole batch being the candidates."""
    queries, candidates = points_1.flatten(0, 1), gather(points_2).flatten(0, 1)
    own = rank() * len(queries) + torch.arange(len(queries), device=queries.device)
    return F.cross_entropy((queries @ candidates.t()).float() / temperature, own)


def _align(features: Tensor, theta: Tensor) -> Tensor:
    """[N,C,h,w] sampled by the affine maps theta [N,2,3], nearest, zeros outside."""
    grid = F.affine_grid(theta.to(features.dtype), list(features.shape), align_corners=False)
    return F.grid_sample(features, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _pick(features: Tensor, cells: Tensor) -> Tensor:
    """Features [B,C,h,w] at cells [B,n]: [B,n,C]."""
    index = cells.to(features.device, non_blocking=True)[:, None].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, index).transpose(1, 2)
