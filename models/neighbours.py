"""k-nearest-neighbour label propagation: soft labels of a frame from its most similar context positions (DESIGN 8).

    engine = NeighbourPropagation(knn=10, radius=12, temperature=0.05)
    memory = Memory(engine.prepare(features), labels)       # [C,h,w] of unit length over C, [M,h,w]
    labels, similarity = engine(engine.prepare(next_features), [memory], [memory])

A query is a position of the new frame, a candidate a position of a context frame. Candidates are numbered: frame by
frame, the references first, then the recent ones by first appearance; within a frame in the order of `FrameStore`. Of
equal similarities the candidate with the lower number counts.

On a CPU the exact search has three steps (`frame_store` has the mathematics). Candidates are taken in groups: up to
seven frames at one position, or seven positions of a reference. (1) One cheap product bounds every group's
similarities. (2) The most promising groups' similarities are computed in float32. Where the k-th best of them exceeds
what the bound leaves to the other groups, the k best are found: proven. (3) The remaining queries are tried again with
more of the groups, and what is left then is compared with every candidate.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from models.frame_store import GROUP, FrameStore, PreparedFeatures, row_products
from utils.device import free_memory, kernels_start, numbers_on
from utils.errors import UserError
from utils.threads import side_by_side, single_threaded

METHODS = ("exact", "fast")
TRY_GROUPS = {"exact": (32, 160), "fast": (24,)}  # groups computed for a query, in turn; fast takes what it finds
QUERIES = 180  # searched at a time on a CPU where memory allows; more takes more of it and saves little time
EXHAUSTIVE_SHARE = 8  # an exhaustive search takes this many times fewer: its rows are as long as the context
LINES = 8  # windows are whole multiples of so many lines: few different shapes
LIBRARY_BYTES = 40_000_000  # bytes that the library of products keeps for these shapes, measured
CHUNK = 64  # similarities whose maximum stands for them in the first step of choosing the best
INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # above zero, numbers order as their bits do
GPU_SHARE = 0.5  # of a GPU's free memory that a search without Triton may take: what it leaves to the rest
KEY_COPIES = 3  # of a fused search's keys that exist at a time
STALE_SHARE = 0.25  # share of queries unproven at a try that calls for a new basis
BASIS_LIFE = 20  # frames that a basis serves at least

warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")


class Memory(NamedTuple):
    """One entry of the context."""

    features: PreparedFeatures  # from `NeighbourPropagation.prepare`
    labels: Tensor  # [M,h,w] soft labels, or several a position, [M,P,h,w]


class Carried(NamedTuple):
    """What a search brings to a frame."""

    labels: Tensor  # soft labels, in the shape of the context's
    similarity: Tensor  # [h,w] mean similarity of the neighbours, in [-1,1]


class Slots(NamedTuple):
    """Where the frames of a context lie in their store; candidates are numbered in this order."""

    references: list[int]  # searched whole
    recent: list[int]  # searched within the radius


class Best(NamedTuple):
    """The neighbours of queries, best first; where there are fewer than k, the last have similarity -inf."""

    similarity: Tensor  # [q,k] float32
    candidate: Tensor  # [q,k] int64


class Window(NamedTuple):
    """The positions that queries can meet in a recent frame: a slice of them, and which of it are too far."""

    positions: slice
    far: Tensor  # [q,n] bool


class NeighbourPropagation:
    """Carries soft labels to a frame from its k most similar positions in a context of frames.

    Args:
        knn: neighbours of a position; all candidates where there are fewer.
        radius: [positions] recent frames count within this distance on the feature map: of a "circle" strictly below
            it, of a "square" up to it along lines and columns.
        near_references: references, too, count within the radius only.
        temperature: divides similarities before the softmax over the neighbours.
        method: "exact", or "fast", which may miss a neighbour (CPU) or compares in float16 (CUDA).
        max_memory: [bytes] that features kept and the search may take together; None is no limit. `UserError` by
            `prepare` and the search where it is too small.
    """

    def __init__(self, *, knn: int, radius: float, temperature: float, window: str = "circle",
                 near_references: bool = False, method: str = "exact", max_memory: int | None = None):
        if method not in METHODS:
            raise UserError(f"propagation is one of {', '.join(METHODS)}; got {method}; choose one of them")
        self.knn, self.radius, self.temperature = knn, radius, temperature
        self.window, self.near_references = window, near_references
        self.method, self.max_memory = method, max_memory
        self._stores: WeakValueDictionary[object, FrameStore] = WeakValueDictionary()  # gone with their last frame

    @torch.inference_mode()
    def prepare(self, features: Tensor) -> PreparedFeatures:
        """Store features [C,h,w] of unit length over C, once a frame; they stay for as long as the result lives."""
        kind = features.shape, features.device
        store = self._stores.get(kind)
        if store is None:
            store = self._stores[kind] = FrameStore(*kind, bound_dtype(features.device))
        if self.max_memory is not None and not store.free and store.growing_bytes() > self.max_memory:
            raise _too_small(store.growing_bytes(), self.max_memory)
        with single_threaded() as threads, torch.autocast(store.device.type, enabled=False):
            return store.add(features, threads)

    @torch.inference_mode()
    def __call__(self, query: PreparedFeatures, references: Sequence[Memory], recent: Sequence[Memory]) -> Carried:
        """Labels of a frame: from all positions of `references`, and from `recent` strictly within the radius.

        `recent` is a multiset: an entry that stands in it n times is searched once and counts as n candidates.
        """
        store = query.store
        keys = [(id(memory.features), id(memory.labels)) for memory in recent]
        copies = Counter(keys)
        context = [*references, *dict(zip(keys, recent)).values()]
        if any(memory.features.store is not store for memory in context):
            raise ValueError("query and context must be prepared by one engine from features of one shape and device")
        numbers = [memory.features.slot for memory in context]
        whole = 0 if self.near_references else len(references)
        slots = Slots(numbers[:whole], numbers[whole:])
        # Whatever precision the caller computes in, neighbours are chosen by and weighed with float32.
        with single_threaded() as threads, torch.autocast(store.device.type, enabled=False):
            best = self._search(store, query.slot, slots, self._tile(store, context, threads), threads)
            counts = numbers_on(store.device, [1] * len(references) + list(copies.values()))
            labels = torch.cat([store.to_lines(memory.labels.flatten(0, -3)) for memory in context])  # [N*hw,M*P]
            mixed, similarity = self._mix(best, counts, labels, store.size)
            of_cell = context[0].labels.shape[:-2]
            return Carried(store.from_lines(mixed).unflatten(0, of_cell), store.from_lines(similarity)[0])

    def _search(self, store: FrameStore, query: int, slots: Slots, tile: int, threads: int) -> Best:
        """The k best candidates of every position of the frame in slot `query` among those of the frames in `slots`."""
        if self._is_fused(store):
            from models.neighbours_triton import search_fused

            return Best(*search_fused(store, query, *slots, self.knn, self.radius, fast=self.method == "fast"))
        best = Best(store.features.new_full((store.size, self.knn), -torch.inf),
                    torch.zeros(store.size, self.knn, dtype=torch.long, device=store.device))
        left: Tensor | range = range(store.size)
        if store.bound_dtype:
            left = self._search_by_bounds(store, query, slots, best, tile, threads)
        if store.device.type == "cpu":
            tile = max(tile // EXHAUSTIVE_SHARE, 1)

        def compare_all(queries: Tensor | range) -> None:
            rows = numbers_on(store.device, queries)
            best.similarity[rows], best.candidate[rows] = self._search_all(store, query, slots, queries)

        tiles = [left[first:first + tile] for first in range(0, len(left), tile)]
        side_by_side(compare_all, tiles, threads if store.bound_dtype else 1)
        return best

    def _is_fused(self, store: FrameStore) -> bool:
        """Whether the kernel does it; it knows circles, not the squares of other protocols."""
        return store.device.type == "cuda" and self.window == "circle" and kernels_start()

    def _search_by_bounds(self, store: FrameStore, query: int, slots: Slots, best: Best, tile: int,
                          threads: int) -> Tensor:
        """Fill `best` where the bounds prove it; the queries that are left."""
        everything, probes = torch.arange(store.size), store.probes(query)
        # All tiles have one size, because a bfloat16 product keeps 0.6 MB for every new shape.
        filled = torch.cat([everything, everything[-1:].expand(-store.size % tile)])
        search = partial(self._search_tile, store, query, probes, slots, best)
        first, left = zip(*side_by_side(search, filled.split(tile), threads))
        if sum(first) > STALE_SHARE * store.size and store.age > BASIS_LIFE:
            store.learn_basis(query, threads)  # for the frames to come
        return torch.cat(left).unique()

    def _search_tile(self, store: FrameStore, query: int, probes: Tensor, slots: Slots, best: Best,
                     queries: Tensor) -> tuple[int, Tensor]:
        """Fill `best` for `queries` [q]: how many the first try left unproven, and those that all tries leave."""
        bounds, members = self._bound_groups(store, probes[queries], slots, queries)
        fewest, first = TRY_GROUPS[self.method][0], 0
        rows = torch.arange(len(queries))
        for number, groups in enumerate(TRY_GROUPS[self.method]):
            left = []
            for some in rows.split(max(len(queries) * fewest // groups, 1)):  # more groups of fewer queries
                found, proven = self._compute_groups(store, query, slots, queries[some], bounds[some], members, groups)
                best.similarity[queries[some]], best.candidate[queries[some]] = found
                left.append(some[~proven])
            rows = torch.cat(left)
            first = first if number else len(rows)
            if not len(rows):
                break
        return first, queries[rows]

    def _compute_groups(self, store: FrameStore, query: int, slots: Slots, queries: Tensor, bounds: Tensor,
                        members: Tensor, groups: int) -> tuple[Best, Tensor]:
        """The k best of the `groups` most promising groups for `queries` [q], and whether these are the k best of all.

        `bounds` [q,G] and `members` are from `_bound_groups`.
        """
        dtype, groups = store.bounds.dtype, min(groups, bounds.shape[1])
        least, chosen = bounds.topk(groups, dim=1, largest=False, sorted=False)  # [q,g]
        candidate = members[chosen]  # [q,g,GROUP]
        candidate[least.view(dtype) == torch.inf] = -1  # groups too far away
        candidate = candidate.flatten(1)
        everywhere = [*slots.references, *slots.recent]
        rows = (torch.tensor(everywhere)[:, None] * store.size + torch.arange(store.size)).flatten()[candidate]
        similarity = row_products(store.features[query, queries], store.features.flatten(0, 1), rows)
        best = _best(similarity.masked_fill_(candidate < 0, -torch.inf), candidate, self.knn)
        if self.method == "fast" or groups == bounds.shape[1]:
            return best, torch.ones(len(queries), dtype=torch.bool)
        last = least.amax(1).view(dtype)  # no group that was not chosen comes nearer
        return best, best.similarity[:, -1] > store.largest_similarity(query, queries, everywhere, last)

    def _bound_groups(self, store: FrameStore, probes: Tensor, slots: Slots,
                      queries: Tensor) -> tuple[Tensor, Tensor]:
        """The least D of each group as integers that order like it, [q,G], and its candidates, [G,GROUP] (-1: none)."""
        (positions, far), integer = self._window(store, queries), INTEGER[probes.dtype]
        window = torch.arange(positions.start, positions.stop)
        product = probes.new_empty(far.shape)
        bounds, members = [], []
        for first in range(0, len(slots.recent), GROUP):
            some = slots.recent[first:first + GROUP]
            least = probes.new_full(far.shape, torch.inf).view(integer)
            for slot in some:
                torch.mm(probes, store.bounds[slot, positions].t(), out=product)
                torch.minimum(least, product.view(integer), out=least)
            bounds.append(least.view(probes.dtype).masked_fill_(far, torch.inf).view(integer))
            frames = torch.arange(len(some)) + len(slots.references) + first
            members.append(F.pad(window[:, None] + store.size * frames, (0, GROUP - len(some)), value=-1))  # [n,GROUP]
        everywhere = torch.arange(store.bounds.shape[1]).view(GROUP, -1).t()  # [hw/GROUP,GROUP]: spread over the frame
        for number, slot in enumerate(slots.references):
            product = torch.mm(probes, store.bounds[slot].t()).view(integer)
            bounds.append(product.view(len(probes), GROUP, -1).amin(1))
            members.append(torch.where(everywhere < store.size, everywhere + store.size * number, -1))
        return torch.cat(bounds, 1), torch.cat(members)

    def _search_all(self, store: FrameStore, query: int, slots: Slots, queries: Tensor | range) -> Best:
        """The k best of all candidates for `queries` [q], by all their similarities."""
        positions, far = self._window(store, queries)
        rows = store.features[query, numbers_on(store.device, queries)]
        whole = torch.arange(store.size, device=store.device)
        near = whole[positions]
        met = [whole] * len(slots.references) + [near] * len(slots.recent)  # positions of each frame
        candidate = torch.cat([part + store.size * number for number, part in enumerate(met)])
        candidate = F.pad(candidate, (0, -len(candidate) % CHUNK))
        similarity = rows.new_full((len(rows), len(candidate)), -torch.inf)
        parts = similarity.split([len(part) for part in met] + [similarity.shape[1] - sum(map(len, met))], dim=1)
        for part, slot in zip(parts, slots.references):
            torch.mm(rows, store.features[slot].t(), out=part)
        for part, slot in zip(parts[len(slots.references):], slots.recent):
            torch.mm(rows, store.features[slot, positions].t(), out=part)
            part.masked_fill_(far, -torch.inf)
        # The k best lie in the k chunks of largest maximum, of equal ones the first.
        peaks = similarity.view(len(rows), -1, CHUNK).amax(2)
        numbers = torch.arange(peaks.shape[1], device=store.device)
        chunks = _best(peaks, numbers, min(self.knn, len(numbers))).candidate
        columns = (chunks[:, :, None] * CHUNK + torch.arange(CHUNK, device=store.device)).flatten(1)  # [q,k*CHUNK]
        return _best(similarity.gather(1, columns), candidate[columns], self.knn)

    def _window(self, store: FrameStore, queries: Tensor | range) -> Window:
        """The lines that `queries` [q], in ascending order and on the CPU, reach in a recent frame."""
        reach = min(self.radius, store.lines + store.line)
        reach = math.floor(reach) if self.window == "square" else math.ceil(reach) - 1  # the largest distance within
        first = max(int(queries[0]) // store.line - reach, 0)
        last = min(int(queries[-1]) // store.line + reach + 1, store.lines)
        span = min(math.ceil((last - first) / LINES) * LINES, store.lines)
        first = min(first, store.lines - span)
        last, queries = first + span, numbers_on(store.device, queries)
        lines = torch.arange(first, last, device=store.device)
        across = torch.arange(store.line, device=store.device)
        between = (lines - queries[:, None] // store.line).int().square()  # [q,lines]
        along = (across - queries[:, None] % store.line).int().square()  # [q,line]
        if self.window == "square":
            far = torch.maximum(between[:, :, None], along[:, None, :]) > self.radius**2
        else:
            far = between[:, :, None] + along[:, None, :] >= self.radius**2
        return Window(slice(first * store.line, last * store.line), far.flatten(1))

    def _mix(self, best: Best, counts: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Neighbours' labels [N*hw,M] weighed by similarity, [hw,M], and their mean similarity [hw,1].

        A frame's candidates count `counts` [N] times.
        """
        candidate = best.candidate.clamp(min=0)
        copies = counts[candidate // size]  # [hw,k]
        counted = torch.minimum(copies, (self.knn - (copies.cumsum(1) - copies)).clamp(min=0))  # k in all
        weights = counted * ((best.similarity - best.similarity[:, :1]) / self.temperature).exp()
        weights /= weights.sum(1, keepdim=True)
        counted = counted * (best.similarity > -torch.inf)
        similarity = (counted * best.similarity.clamp(min=-1)).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        return F.embedding_bag(candidate, labels, per_sample_weights=weights, mode="sum"), similarity

    def _tile(self, store: FrameStore, context: list[Memory], threads: int) -> int:
        """How many queries to search at a time; `UserError` where the memory is too small for the fewest."""
        frames, positions, on_cpu = len(context), store.size, store.device.type == "cpu"
        if self.max_memory is None and (on_cpu or self._is_fused(store)):
            return min(QUERIES, positions)
        labels = sum(4 * memory.labels.numel() for memory in context)
        fixed = store.held_bytes() + 2 * labels + positions * (16 * frames + 12 * self.knn)
        room, fewest, most = self.max_memory or math.inf, 1, positions
        rows = 4 * positions * (frames + 4)  # of similarities, and what says which are too far
        if on_cpu:
            fixed, fewest, most = fixed + LIBRARY_BYTES, EXHAUSTIVE_SHARE, QUERIES
            a_query = threads * max(rows / EXHAUSTIVE_SHARE + 16 * CHUNK * self.knn,
                                    20 * positions + 60 * GROUP * TRY_GROUPS[self.method][0])  # of both searches
        elif self._is_fused(store):
            fewest, a_query = positions, KEY_COPIES * 8 * frames * 2 * self.knn
        else:
            room, a_query = min(room, fixed + GPU_SHARE * free_memory(store.device)), rows + 48 * CHUNK * self.knn
        tile = int((room - fixed) / a_query)
        if tile < fewest and self.max_memory is not None:
            raise _too_small(fixed + fewest * a_query, self.max_memory)
        return max(min(most, positions, tile), 1)


def _too_small(needed: float, allowed: float) -> UserError:
    return UserError(f"--max-memory must hold the features of the context and a tile of the search, here "
                     f"{needed / 1e6:.0f} MB; it is {allowed / 1e6:.0f} MB; raise it, or lower TEST.INFER_WH or "
                     "TEST.CXT_SIZE")


def bound_dtype(device: torch.device) -> torch.dtype | None:
    """The arithmetic of the bounds: bfloat16 where the processor multiplies it faster; on a GPU there are none."""
    if device.type != "cpu":
        return None
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch has it from 2.11 on
    return torch.bfloat16 if capabilities.get("avx512_bf16") else torch.float32


def _best(similarity: Tensor, candidate: Tensor, k: int) -> Best:
    """The k largest of `similarity` [q,n], of equals those with the lower `candidate` ([q,n] or [n]), best first."""
    bits = (similarity + 0.0).view(torch.int32)  # -0 becomes 0
    # Both numbers in one 64-bit key: floats order as integers once the lower bits of negative ones are inverted.
    keys = ((bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32) - candidate
    chosen = keys.topk(min(k, keys.shape[1]), dim=1).indices
    missing = (0, k - chosen.shape[1])
    return Best(F.pad(similarity.gather(1, chosen), missing, value=-torch.inf),
                F.pad(candidate.expand_as(similarity).gather(1, chosen), missing))
