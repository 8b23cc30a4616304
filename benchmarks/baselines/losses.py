"""A reference implementation of DESIGN section 6: the baseline of the training benchmark.

Every pass computes every output of the network, as the earlier implementation did, and the colours of each pair of
frames of each clip are rebuilt on their own: similarities, softmax, weighted sum. Nothing is shared with `losses/`.

    h, w  size of the feature map          B  clips          T  frames of a clip          C  channels of a head
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE, DENSE_TEMPERATURE = 25.0, 0.05
DENSE_WEIGHT, CROSS_VIEW_WEIGHT = 0.01, 0.1
ANCHORS, POINTS = 8, 4  # a side


def plain_total(model: nn.Module, batch: dict[str, dict[str, Tensor]], generator: torch.Generator) -> Tensor:
    """The published objective, all terms on, of a batch of clips as `losses.objective.Objective` takes it."""
    color, dense = batch["color"], batch["dense"]
    T = color["view_a"].shape[1]
    features = model(color["view_a"].flatten(0, 1)).q_color
    with torch.no_grad():
        features_b = model(color["view_b"].flatten(0, 1)).q_color
    total = color_term(features.unflatten(0, (-1, T)), color["target"], color["edge"])
    total = total + consistency_term(features, color["grid"].flatten(0, 1), features_b)
    learning = torch.cat([dense["view_1"], dense["view_2"][:, :1]], dim=1)
    learnt = model(learning.flatten(0, 1)).q_cls.unflatten(0, (-1, T + 1))
    with torch.no_grad():
        labels = model(dense["view_2"][:, 1:].flatten(0, 1)).q_cls.unflatten(0, (-1, T - 1))
    view_2 = torch.cat([learnt[:, T:], labels], dim=1)
    return total + DENSE_WEIGHT * dense_term(learnt[:, :T], view_2, dense["theta"], generator)


def color_term(features: Tensor, target: Tensor, edge: Tensor) -> Tensor:
    """features [B,T,C,h,w], target [B,T,3,H,W], edge [B,T,1,H,W]; every ordered pair of frames on its own."""
    B, T = features.shape[:2]
    patches = lambda x: F.unfold(x, 8, stride=8).transpose(1, 2)  # [n,hw,P]
    items = []
    for i in range(T):
        values = patches(target[:, i])
        for j in range(T):
            if i == j:
                continue
            rebuilt = []
            for b in range(B):
                query = features[b, j].flatten(1).t()  # [hw,C]
                sources = torch.cat([features[b, i].flatten(1), features[B - 1 - b, i].flatten(1)], dim=1)  # [C,2hw]
                weights = (TEMPERATURE * query @ sources).softmax(dim=1)  # [hw,2hw]
                rebuilt.append(weights @ torch.cat([values[b], values[B - 1 - b]]))
            weight = patches(edge[:, j].expand(-1, 3, -1, -1))
            error = F.smooth_l1_loss(torch.stack(rebuilt) * weight, patches(target[:, j]) * weight, beta=0.5,
                                     reduction="none")
            items.append(error.mean((1, 2)))
    return torch.cat(items).sort().values.mean()


def consistency_term(features_a: Tensor, grid: Tensor, features_b: Tensor) -> Tensor:
    """features [N,C,h,w], grid [N,h,w,2]."""
    warped = F.grid_sample(features_a, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    error = F.smooth_l1_loss(warped, features_b, beta=0.5, reduction="none").mean((1, 2, 3))
    return error.sort().values.mean()


def dense_term(view_1: Tensor, view_2: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Views [B,T,C,h,w], theta [B,2,3]; scores of all cells of view 1 are warped into view 2."""
    B, T = view_1.shape[:2]
    anchors = grid_features(view_1[:, 0], ANCHORS, generator)  # [n,C]
    warp = lambda x: F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), mode="nearest",
                                   padding_mode="zeros", align_corners=False)
    temporal = view_1.new_zeros(())
    own = torch.arange(len(anchors), device=anchors.device).div(ANCHORS**2, rounding_mode="floor")
    for t in range(1, T):
        scores = warp(torch.einsum("bchw,nc->bnhw", view_1[:, t], anchors) / DENSE_TEMPERATURE)
        with torch.no_grad():
            guesses = (torch.einsum("bchw,nc->bnhw", view_2[:, t], anchors) / DENSE_TEMPERATURE).softmax(1)
            for b in range(B):
                guesses[b, own != b] = 0
            labels = guesses.argmax(1)
        temporal = temporal + F.cross_entropy(scores, labels) / (T - 1)
    # One generator state for both views: the points lie at the same cells.
    state = generator.get_state()
    queries = grid_features(warp(view_1[:, 0]), POINTS, generator)
    generator.set_state(state)
    candidates = grid_features(view_2[:, 0], POINTS, generator)
    own_point = torch.arange(len(queries), device=queries.device)
    cross_view = F.cross_entropy(queries @ candidates.t() / DENSE_TEMPERATURE, own_point)
    return temporal + CROSS_VIEW_WEIGHT * cross_view


def grid_features(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """[B,C,h,w] at a `size` x `size` grid with one random offset a clip: [B*size^2,C]."""
    spacing = features.shape[-1] // size
    offsets = torch.randint(spacing, (len(features), 2), generator=generator).tolist()
    picked = [clip[:, y:y + spacing * size:spacing, x:x + spacing * size:spacing].flatten(1).t()
              for clip, (x, y) in zip(features, offsets)]
    return torch.cat(picked)
