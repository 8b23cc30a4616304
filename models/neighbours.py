"""k-nearest-neighbour label propagation (DESIGN section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(eq=False)
class PreparedFeatures:
    """One frame's features in the layout of the search; made by `NeighbourPropagation.prepare`."""

    rows: Tensor  # [hw,C]
    height: int
    width: int


class Memory(NamedTuple):
    """One entry of the context."""

    features: PreparedFeatures
    labels: Tensor  # [M,h,w] soft labels


class NeighbourPropagation:
    """Carries soft labels to a frame from its `knn` most similar positions in a context of frames."""

    def __init__(
        self, *, knn: int, radius: float, temperature: float, method: str = "exact", max_memory: int | None = None
    ):
        self.knn, self.radius, self.temperature = knn, radius, temperature
        self.method, self.max_memory = method, max_memory

    def prepare(self, features: Tensor) -> PreparedFeatures:
        """Lay out features [C,h,w], L2-normalised over C, for the search; once a frame."""
        C, h, w = features.shape
        return PreparedFeatures(features.flatten(1).t().contiguous(), h, w)

    def __call__(self, query: PreparedFeatures, reference: Memory, recent: Sequence[Memory]) -> Tensor:
        """Predicted soft labels [M,h,w]: all positions of `reference`, those of `recent` strictly within `radius`."""
        h, w = query.height, query.width
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()], 1).float().to(query.rows.device)  # [hw,2]
        keys = torch.cat([memory.features.rows for memory in [reference, *recent]])  # [N*hw,C]
        values = torch.cat([memory.labels.flatten(1).t() for memory in [reference, *recent]])  # [N*hw,M]
        output = []
        for some, where in zip(query.rows.split(256), places.split(256)):
            outside = (where[:, None] - places).square().sum(2) >= self.radius**2  # [q,hw]
            similarity = some @ keys.t()  # [q,N*hw]
            similarity[:, h * w :].masked_fill_(outside.repeat(1, len(recent)), -torch.inf)
            best, index = similarity.topk(min(self.knn, similarity.shape[1]), dim=1)
            weights = (best / self.temperature).softmax(1)
            output.append((weights[:, :, None] * values[index]).sum(1))
        return torch.cat(output).t().reshape(-1, h, w)  # [M,h,w]
