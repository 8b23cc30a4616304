"""Exhaustive label propagation, each position against the whole context: reference of tests, baseline of benchmarks."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(1)
def radius_mask(h: int, w: int, radius: float, device: torch.device) -> Tensor:
    """0 for two positions strictly within the radius of each other, else -inf, [hw,hw]; made once a video."""
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float()  # [hw,2]
    outside = sum((axis[:, None] - axis).square() for axis in places.unbind(1)) >= radius**2
    return torch.zeros(outside.shape, device=device).masked_fill_(outside, -torch.inf)


def propagate_plainly(query: Tensor, context: Tensor, labels: Tensor, *, knn: int, radius: float, temperature: float,
                      references: int = 1, queries_at_once: int = 100) -> Tensor:
    """Soft labels of a frame by its nearest neighbours in the context (DESIGN section 8).

    Args:
        query: [C,h,w] features, L2-normalised over C.
        context: [N,C,h,w] features; the first are unrestricted, the others count strictly within `radius` [positions].
        labels: [N,M,h,w] soft labels of the context.
        knn: neighbours of a position; all candidates where there are fewer.
        radius: largest Euclidean distance on the feature map, itself excluded.
        temperature: divides similarities before the softmax.
        references: how many frames of the context are unrestricted.
        queries_at_once: rows of the similarity matrix that exist at one time.

    Returns:
        [M,h,w] predicted soft labels.
    """
    N, C, h, w = context.shape
    mask = radius_mask(h, w, radius, query.device)
    keys = context.permute(0, 2, 3, 1).reshape(N * h * w, C)
    values = labels.permute(0, 2, 3, 1).reshape(N * h * w, -1)
    output = []
    for some, far in zip(query.flatten(1).t().split(queries_at_once), mask.split(queries_at_once)):
        similarity = some @ keys.t()  # [q,N*hw]
        similarity[:, references * h * w:] += far.repeat(1, N - references)
        best, index = similarity.topk(min(knn, N * h * w), dim=1)
        weights = (best / temperature).softmax(1)  # a masked candidate weighs exp(-inf) = 0
        output.append((weights[:, :, None] * values[index]).sum(1))
    return torch.cat(output).t().reshape(-1, h, w)  # [M,h,w]
