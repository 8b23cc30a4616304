"""The neighbour search as one CUDA kernel, which keeps the best while it computes and never writes the similarities.

A program holds 8x8 queries against one context frame and walks over that frame's 8x8 patches within reach. Its k best
are 64-bit keys, similarity above the complement of the candidate's number, so that keys order as the search does.
The k best of all frames are chosen from the k of each; the labels are gathered outside.

**What saves most of the work.** A first launch meets each frame only where the queries themselves lie. The k-th best
of these few candidates is at most the k-th best of all, so the second launch, which meets everything, leaves out what
stays below it. That is seen from a product in float16 alone: rounding two unit vectors to 11 digits changes their
product by at most 2 * 2^-11 + 2^-22. Only patches with a candidate that comes this near are multiplied exactly.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from models.frame_store import FrameStore
from utils.device import numbers_on

SIDE = 8  # of a patch: 64 queries meet 64 candidates in one product, a size that tensor cores take
CHANNELS = 32  # in one step of a product
HALF_ERROR = tl.constexpr(2**-10 + 2**-14)  # of a product in float16; its smallest numbers and lengths of 1.01 included
ROUNDING = 2**-22  # a channel adds at most this to the difference of two sums of the same products
NOTHING = -0x7F800001 << 32  # below the key of every candidate: that of similarity -inf


@triton.jit
def _multiply(queries, candidates, q_inside, c_inside, C, CHANNELS: tl.constexpr, HALF: tl.constexpr):
    """Products of the rows at `queries` and `candidates`: in float16, or as three in TF32 that make one in float32."""
    channels = tl.arange(0, CHANNELS)
    product = tl.zeros([queries.shape[0], candidates.shape[0]], tl.float32)
    for channel in range(0, C, CHANNELS):
        inside = channel + channels < C
        q = tl.load(queries[:, None] + channel + channels, q_inside[:, None] & inside, 0.0)
        c = tl.load(candidates[:, None] + channel + channels, c_inside[:, None] & inside, 0.0)
        if HALF:
            product = tl.dot(q.to(tl.float16), tl.trans(c.to(tl.float16)), product)
        else:
            product = tl.dot(q, tl.trans(c), product, input_precision="tf32x3")
    return product


@triton.jit
def _keep_largest(best, keys):
    """The largest of `best` [q,K] and `keys` [q,n] in each row, [q,K]; all that count are different."""
    top, worst = tl.max(keys, 1), tl.min(best, 1)
    while tl.max((top > worst).to(tl.int32), 0) > 0:
        replaced = (top > worst)[:, None] & (best == worst[:, None])
        best = tl.where(replaced, top[:, None], best)
        keys = tl.where(keys == top[:, None], -(2**63), keys)
        top, worst = tl.max(keys, 1), tl.min(best, 1)
    return best


# Not specialised: a value of 1 would become a constant, and a slot of 0, 1 or 16 a kernel of its own.
@triton.jit(do_not_specialize=["query_slot", "references", "lines", "line", "reach"])
def _search_frame(features, slots, references, found, query_slot, lines, line, C, reach, radius_squared,
                  K: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr, FAST: tl.constexpr):
    """features [slots,hw,C], slots [N]; program (patch of queries, number of the context frame).

    found [N,hw,K] holds different keys that candidates have to exceed, and then the K largest of these and theirs. The
    first `references` frames are searched whole, the others within the radius, none further than `reach` from a patch.
    """
    patch, number = tl.program_id(0), tl.program_id(1)
    size = lines * line
    patches_across = tl.cdiv(line, SIDE)
    first, first_across = patch // patches_across * SIDE, patch % patches_across * SIDE
    cells = tl.arange(0, SIDE * SIDE)
    q_line, q_across = first + cells // SIDE, first_across + cells % SIDE
    q_inside = (q_line < lines) & (q_across < line)
    q_position = q_line * line + q_across
    queries = features + (query_slot.to(tl.int64) * size + q_position) * C
    frame = features + tl.load(slots + number).to(tl.int64) * size * C

    whole = number < references
    line_from = tl.where(whole, 0, tl.maximum(first - reach, 0))
    line_to = tl.where(whole, lines, tl.minimum(first + SIDE + reach, lines))

    target = found + (number.to(tl.int64) * size + q_position)[:, None] * K + tl.arange(0, K)[None, :]
    best = tl.load(target, q_inside[:, None], 0)
    worst = tl.min(best, 1)
    for c_first in range(line_from, line_to, SIDE):
        # Lines that are further away leave less of the radius across.
        away = tl.maximum(tl.maximum(first - c_first - SIDE + 1, c_first - first - SIDE + 1), 0)
        left = tl.sqrt_rn(tl.maximum(radius_squared - away * away, 0.0)).to(tl.int32)
        left = tl.minimum(left, reach)
        across_from = tl.where(whole, 0, tl.maximum(first_across - left, 0))
        across_to = tl.where(whole, line, tl.minimum(first_across + SIDE + left, line))
        for c_first_across in range(across_from, across_to, SIDE):
            c_line, c_across = c_first + cells // SIDE, c_first_across + cells % SIDE
            c_inside = (c_line < line_to) & (c_across < across_to)
            c_position = c_line * line + c_across
            candidates = frame + c_position * C
            between, along = c_line[None, :] - q_line[:, None], c_across[None, :] - q_across[:, None]
            near = whole | (between * between + along * along < radius_squared)
            valid = q_inside[:, None] & c_inside[None, :] & near
            least = (worst >> 32).to(tl.int32)
            similarity = _multiply(queries, candidates, q_inside, c_inside, C, CHANNELS, True)
            nearest = (least ^ (least >> 31 & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
            if not FAST:
                nearest -= HALF_ERROR
            # Over both axes at once: one by one ends in an assertion of Triton's compiler on sm_100.
            if tl.max((valid & (similarity >= nearest[:, None])).to(tl.int32), None) > 0:
                if not FAST:
                    similarity = _multiply(queries, candidates, q_inside, c_inside, C, CHANNELS, False)
                bits = tl.where(similarity == 0, 0.0, similarity).to(tl.int32, bitcast=True)
                order = bits ^ (bits >> 31 & 0x7FFFFFFF)  # integers that order like the floats
                hopeful = valid & (order >= least[:, None])
                numbers = 0xFFFFFFFF - (number * size + c_position).to(tl.int64)
                keys = tl.where(hopeful, (order.to(tl.int64) << 32) + numbers[None, :], -(2**63))
                best = _keep_largest(best, keys)
                worst = tl.min(best, 1)
    tl.store(target, best, q_inside[:, None])


def search_fused(store: FrameStore, query: int, references: list[int], recent: list[int], knn: int, radius: float, *,
                 fast: bool) -> tuple[Tensor, Tensor]:
    """The `knn` best candidates of every position of slot `query` in the frames in slots `references` and `recent`.

    Args:
        radius: [positions] Euclidean distance that candidates in recent frames stay strictly below.
        fast: multiply in float16 (features are at most 1) instead of in three TF32 products for one of float32.

    Returns:
        Similarity float32 and number of the frame * hw + position int64, [hw,knn] each, best first; of equal
        similarities the lower number; -inf and 0 where there are fewer candidates.
    """
    K, slots = triton.next_power_of_2(max(knn, 2)), numbers_on(store.device, [*references, *recent])
    radius = min(radius, store.lines + store.line)
    patches = math.ceil(store.lines / SIDE) * math.ceil(store.line / SIDE)
    unlike = torch.arange(K, device=store.device)  # the last digits of keys that no candidate has

    def search(beaten: Tensor, references: int, reach: int) -> Tensor:
        """The largest keys of candidates that exceed `beaten` [hw,1], [hw,knn]."""
        found = (beaten + unlike).expand(len(slots), -1, -1).contiguous()
        with torch.cuda.device(store.device) if store.device.type == "cuda" else nullcontext():
            _search_frame[(patches, len(slots))](
                store.features, slots, references, found, query, store.lines, store.line, store.shape[0], reach,
                float(radius) ** 2, K=K, SIDE=SIDE, CHANNELS=CHANNELS, FAST=fast)
        keys = found.transpose(0, 1).flatten(1)  # [hw,N*K]
        keys = keys.topk(min(knn, keys.shape[1]), dim=1).values
        return F.pad(keys, (0, knn - keys.shape[1]), value=NOTHING)

    nothing = torch.full((store.size, 1), NOTHING, device=store.device)
    certain = similarity_of(search(nothing, 0, 0)[:, -1:]) - ROUNDING * store.shape[0]  # the k best are at least these
    keys = search(order_of(certain).long() << 32, len(references), math.ceil(radius) - 1)
    similarity = similarity_of(keys)
    return similarity, (0xFFFFFFFF - (keys & 0xFFFFFFFF)).masked_fill(similarity == -torch.inf, 0)


def order_of(similarity: Tensor) -> Tensor:
    """float32 to int32 that order like it."""
    bits = similarity.view(torch.int32)
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def similarity_of(keys: Tensor) -> Tensor:
    """The float32 in the upper half of keys."""
    order = (keys >> 32).int()
    return (order ^ (order >> 31 & 0x7FFFFFFF)).view(torch.float32)
