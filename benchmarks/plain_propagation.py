"""The plain routine: every position against the whole context. The reference of the tests and the baseline of the benchmark."""

from __future__ import annotations

import torch
from torch import Tensor


def propagate_plainly(
    query: Tensor, context: Tensor, labels: Tensor, *, knn: int, radius: float, temperature: float, queries_at_once: int = 100
) -> Tensor:
    """Soft labels of a frame by its nearest neighbours in the context (DESIGN section 8).

    Args:
        query: [C,h,w] features, L2-normalised over C.
        context: [N,C,h,w] features; number 0 is unrestricted, the others count strictly within `radius` [positions].
        labels: [N,M,h,w] soft labels of the context.
        knn: Neighbours of a position; all candidates where there are fewer.
        radius: Largest Euclidean distance on the feature map, itself excluded.
        temperature: Divides similarities before the softmax.
        queries_at_once: Rows of the similarity matrix that exist at one time.

    Returns:
        [M,h,w] predicted soft labels.
    """
    N, C, h, w = context.shape
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float().to(query.device)  # [hw,2]
    keys = context.permute(0, 2, 3, 1).reshape(N * h * w, C)
    values = labels.permute(0, 2, 3, 1).reshape(N * h * w, -1)
    output = []
    for some, where in zip(query.flatten(1).t().split(queries_at_once), places.split(queries_at_once)):
        outside = (where[:, None] - places).square().sum(2) >= radius**2  # [q,hw]
        mask = torch.zeros_like(outside, dtype=torch.float32).masked_fill_(outside, -torch.inf)
        similarity = some @ keys.t()  # [q,N*hw]
        similarity[:, h * w :] += mask.repeat(1, N - 1)
        best, index = similarity.topk(min(knn, N * h * w), dim=1)
        weights = (best / temperature).softmax(1)  # a masked candidate weighs exp(-inf) = 0
        output.append((weights[:, :, None] * values[index]).sum(1))
    return torch.cat(output).t().reshape(-1, h, w)  # [M,h,w]
