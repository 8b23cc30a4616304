"""Features of the frames that a search may meet, in tables indexed across frames, with what bounds their products.

**Why most products of two frames need not be made.** Let B be the first d eigenvectors of the features' covariance,
and m their mean. For a feature x write y(x) = (B'(x - m), |the rest of x - m|), d+1 coordinates: of the rest only the
length is kept. Two lengths differ by at most the length of the difference, so |y(q) - y(x)| <= |q - x|. Let z(x) be
y(x) rounded to bfloat16 and e(x) = |y(x) - z(x)|. By the triangle inequality |q - x| >= |z(q) - z(x)| - e(q) - e(x).
With

    D = |z(q) - z(x)|^2 / 2 = |z(q)|^2 / 2 + |z(x)|^2 / 2 - z(q).z(x)
    q.x = (|q|^2 + |x|^2 - |q - x|^2) / 2 <= (|q|^2 + |x|^2 - max(0, sqrt(2 D) - e(q) - e(x))^2) / 2.

D is one product of vectors with d+5 coordinates: z, and the two halves of squares against ones, each as the sum of two
bfloat16 numbers. It comes out near zero for near neighbours, where bfloat16 is finest.
"""

from __future__ import annotations

import math
import weakref
from functools import partial

import torch
from torch import Tensor

from utils.threads import side_by_side

GROUP = 7  # candidates that share one bound in the search; rows of bounds are padded to a multiple
BOUND_EXTRAS = 4  # coordinates of a row of bounds that hold ones and half squares
BOUND_RANK = {torch.bfloat16: 155, torch.float32: 123}  # d by the arithmetic: 160 and 128 coordinates in all
PROJECTED = 1024  # positions of a frame at a time, so that bounding it takes little memory
GPU_SLOTS = 8  # that a GPU's store grows by
STORED = {torch.bfloat16: 2**-8, torch.float32: 2**-23}  # relative rounding of D when it is stored


class PreparedFeatures:
    """A frame's features as one slot of its store; the slot is free again once this object is gone."""

    def __init__(self, store: FrameStore, slot: int):
        self.store, self.slot = store, slot
        weakref.finalize(self, store.free.append, slot)


class FrameStore:
    """Features of one shape (C,h,w), and bounds of them in bfloat16 or float32, or none.

    Positions count along lines across the longer side, so that a window of lines is a slice.
    """

    def __init__(self, shape: torch.Size, device: torch.device, bound_dtype: torch.dtype | None):
        C, h, w = shape
        self.shape, self.device, self.bound_dtype = shape, device, bound_dtype
        self.wide, self.lines, self.line, self.size = w >= h, max(h, w), min(h, w), h * w
        self.rank = min(C, BOUND_RANK[bound_dtype]) if bound_dtype else 0
        padded = math.ceil(self.size / GROUP) * GROUP if bound_dtype else 0
        self.free: list[int] = []
        self.features = torch.empty(0, self.size, C, device=device)
        self.bounds = torch.empty(0, padded, self.rank + 1 + BOUND_EXTRAS, dtype=bound_dtype)
        self.errors = torch.empty(0, self.size)  # e(x)
        self.largest = torch.empty(0, 2)  # of a frame: |x|^2, half |z(x)|^2
        self.mean, self.basis = torch.empty(0), torch.empty(0, 0)  # learnt from the first frame
        self.age = 0  # frames added since the basis was learnt

    def add(self, features: Tensor, threads: int) -> PreparedFeatures:
        """Copy features [C,h,w] into a free slot."""
        if not self.free:
            self._grow()
        prepared = PreparedFeatures(self, self.free.pop())
        self.features[prepared.slot] = self.to_lines(features)
        self.age += 1
        if self.bound_dtype and not self.mean.numel():
            self.learn_basis(prepared.slot, threads)
        elif self.bound_dtype:
            self._project(prepared.slot, threads)
        return prepared

    def to_lines(self, maps: Tensor) -> Tensor:
        """Maps [N,h,w] to positions in the order of lines, [hw,N]."""
        return (maps.permute(2, 1, 0) if self.wide else maps.permute(1, 2, 0)).reshape(self.size, -1)

    def from_lines(self, values: Tensor) -> Tensor:
        """The inverse of `to_lines`: [hw,N] to [N,h,w]."""
        values = values.view(self.lines, self.line, -1)
        return (values.permute(2, 1, 0) if self.wide else values.permute(2, 0, 1)).contiguous()

    def learn_basis(self, slot: int, threads: int) -> None:
        """Take mean and basis from the frame in `slot`; bound every frame anew, so that all stay comparable."""
        rows = self.features[slot]
        self.mean, self.age = rows.mean(0), 0
        centred = (rows - self.mean).double()
        self.basis = torch.linalg.eigh(centred.t() @ centred)[1].flip(1)[:, :self.rank].float().contiguous()  # [C,d]
        for taken in set(range(len(self.features))) - set(self.free):
            self._project(taken, threads)

    def _project(self, slot: int, threads: int) -> None:
        """Fill a slot's rows of bounds: z, two ones, half |z|^2 in two parts."""
        parts = [slice(start, min(start + PROJECTED, self.size)) for start in range(0, self.size, PROJECTED)]
        largest = side_by_side(partial(self._project_part, slot), parts, threads)
        self.largest[slot] = torch.stack(largest).amax(0)
        self.bounds[slot, self.size:] = 0
        self.bounds[slot, self.size:, -2] = torch.inf  # what only fills up the last group is infinitely far

    def _project_part(self, slot: int, part: slice) -> Tensor:
        rows, dtype = self.features[slot, part], self.bounds.dtype
        centred = rows - self.mean
        inside = centred @ self.basis
        rest = (centred - inside @ self.basis.t()).norm(dim=1, keepdim=True)
        exact = torch.cat([inside, rest], 1)  # y, [n,d+1]
        rounded = exact.to(dtype)
        half = rounded.double().square().sum(1) / 2
        coarse = half.to(dtype)
        fine = (half - coarse).to(dtype)
        one = torch.ones_like(coarse)
        self.bounds[slot, part] = torch.cat([rounded, torch.stack([one, one, coarse, fine], 1)], 1)
        self.errors[slot, part] = (exact - rounded.float()).norm(dim=1)
        return torch.stack([rows.square().sum(1).max(), half.max().float()])

    def probes(self, slot: int) -> Tensor:
        """A frame's vectors [hw,d+5] whose products with the rows of bounds of any frame are D."""
        rows = self.bounds[slot, :self.size]
        return torch.cat([-rows[:, :-BOUND_EXTRAS], rows[:, -2:], rows[:, -BOUND_EXTRAS:-2]], 1)

    def largest_similarity(self, query: int, positions: Tensor, slots: list[int], least: Tensor) -> Tensor:
        """The most that q.x can be, [q], where the D computed of q with x is at least `least` [q].

        The q are `positions` [q] of frame `query`, the x those of the frames in `slots`.
        It holds for similarities as computed in float32. The error of a sum of n products in float32 is below n 2^-23
        times the sum of their absolute values (2^-24, doubled for processors that round twice); in D that sum is
        below 4 times the largest half square. The two parts of the half squares leave out 2^-17 of them.
        """
        squares, halves = self.largest[[query, *slots]].unbind(1)
        slack = halves.max() * (self.bounds.shape[2] * 2**-21 + 2**-17)
        D = (least.float() / (1 + STORED[self.bounds.dtype]) - slack).clamp(min=0)
        error = self.errors[query, positions] + self.errors[slots].max() + 2**-15  # y itself is computed in float32
        gap = ((2 * D).sqrt() - error).clamp(min=0)
        most = squares[1:].max()
        return (squares[0] + most - gap.square()) / 2 + self.shape[0] * 2**-23 * (squares[0] * most).sqrt()

    def slot_bytes(self) -> int:
        """Memory of one frame."""
        return 4 * self.size * (self.shape[0] + 1) + self.bounds[:1].numel() * self.bounds.element_size()

    def held_bytes(self) -> int:
        """Memory of all frames; on a CPU, slots never written to take none."""
        return self.slot_bytes() * (len(self.features) - (len(self.free) if self.device.type == "cpu" else 0))

    def growing_bytes(self) -> int:
        """Memory at the moment when there are more slots and the old ones are not gone yet."""
        taken = len(self.features)
        return self.slot_bytes() * (taken + (taken if self.device.type == "cpu" else self._more_slots()))

    def _more_slots(self) -> int:
        """On a CPU memory never written to takes no room, so there may be many."""
        taken = len(self.features)
        return (2 * taken or 24) if self.device.type == "cpu" else taken + GPU_SLOTS

    def _grow(self) -> None:
        taken, count = len(self.features), self._more_slots()
        for name in ("features", "bounds", "errors", "largest"):
            old = getattr(self, name)
            new = old.new_empty(count, *old.shape[1:])
            new[:taken] = old
            setattr(self, name, new)
        self.free.extend(reversed(range(taken, count)))


def row_products(queries: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Products of `queries` [q,C] with the rows [q,m] of `table` [n,C], [q,m]; -1 counts from the end."""
    # A sampled product reads rows where they lie; gathering them first takes ten times as long.
    q, m = rows.shape
    if m > len(table):  # a map of a cell or two: PyTorch refuses patterns with more entries than places
        return (queries @ table.t()).gather(1, rows % len(table))
    pattern = torch.sparse_csr_tensor(torch.arange(0, q * m + 1, m), rows.flatten(), queries.new_zeros(q * m),
                                      size=(q, len(table)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, queries, table.t(), beta=0).values().view(q, m)
