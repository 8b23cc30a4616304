"""The neighbour search as one CUDA kernel, which keeps the best while it computes and never writes the similarities.

A program holds 8x8 queries against one context frame and walks over that frame's 8x8 patches within reach. Its k best
are 64-bit keys, similarity above the complement of the candidate's number, so that keys order as the search does.
The k best of all frames are chosen from the k of each; the labels are gathered outside.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from models.frame_store import FrameStore

SIDE = 8  # of a patch: 64 queries meet 64 candidates in one product, a size that tensor cores take
CHANNELS = 32  # in one step of a product


@triton.jit
def _search_frame(features, slots, references, found, query_slot, lines, line, C, reach, radius_squared,
                  K: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr, FAST: tl.constexpr):
    """features [slots,hw,C], slots [N] to found [N,hw,K]; program (patch of queries, number of the context frame).

    The first `references` frames are searched whole, the others within the radius.
    """
    patch, number = tl.program_id(0), tl.program_id(1)
    size = lines * line
    patches_across = tl.cdiv(line, SIDE)
    first, first_across = patch // patches_across * SIDE, patch % patches_across * SIDE
    cells = tl.arange(0, SIDE * SIDE)
    channels = tl.arange(0, CHANNELS)
    q_line, q_across = first + cells // SIDE, first_across + cells % SIDE
    q_inside = (q_line < lines) & (q_across < line)
    q_position = q_line * line + q_across
    queries = features + (query_slot.to(tl.int64) * size + q_position) * C
    frame = features + tl.load(slots + number).to(tl.int64) * size * C

    whole = number < references
    line_from = tl.where(whole, 0, tl.maximum(first - reach, 0))
    line_to = tl.where(whole, lines, tl.minimum(first + SIDE + reach, lines))
    across_from = tl.where(whole, 0, tl.maximum(first_across - reach, 0))
    across_to = tl.where(whole, line, tl.minimum(first_across + SIDE + reach, line))

    lowest = tl.full([SIDE * SIDE, SIDE * SIDE], -(2**63), tl.int64)
    best = tl.full([SIDE * SIDE, K], -(2**63), tl.int64) + 1 + tl.arange(0, K)[None, :]  # all different, none is lowest
    worst = tl.min(best, 1)
    for c_first in range(line_from, line_to, SIDE):
        for c_first_across in range(across_from, across_to, SIDE):
            c_line, c_across = c_first + cells // SIDE, c_first_across + cells % SIDE
            c_inside = (c_line < line_to) & (c_across < across_to)
            c_position = c_line * line + c_across
            similarity = tl.zeros([SIDE * SIDE, SIDE * SIDE], tl.float32)
            for channel in range(0, C, CHANNELS):
                c_channels = channel + channels
                q = tl.load(queries[:, None] + c_channels, (q_inside[:, None]) & (c_channels < C), 0.0)
                c = tl.load(frame + c_position[:, None] * C + c_channels, (c_inside[:, None]) & (c_channels < C), 0.0)
                if FAST:
                    similarity = tl.dot(q.to(tl.float16), tl.trans(c.to(tl.float16)), similarity)
                else:
                    similarity = tl.dot(q, tl.trans(c), similarity, input_precision="tf32x3")
            between, along = c_line[None, :] - q_line[:, None], c_across[None, :] - q_across[:, None]
            near = whole | (between * between + along * along < radius_squared)
            valid = q_inside[:, None] & c_inside[None, :] & near
            bits = tl.where(similarity == 0, 0.0, similarity).to(tl.int32, bitcast=True)
            order = bits ^ (bits >> 31 & 0x7FFFFFFF)  # integers that order like the floats
            hopeful = valid & (order >= (worst >> 32).to(tl.int32)[:, None])
            if tl.max(tl.max(hopeful.to(tl.int32), 1), 0) > 0:
                numbers = 0xFFFFFFFF - (number * size + c_position).to(tl.int64)
                keys = tl.where(hopeful, (order.to(tl.int64) << 32) + numbers[None, :], lowest)
                top = tl.max(keys, 1)
                while tl.max((top > worst).to(tl.int32), 0) > 0:
                    replaced = (top > worst)[:, None] & (best == worst[:, None])
                    best = tl.where(replaced, top[:, None], best)
                    keys = tl.where(keys == top[:, None], lowest, keys)
                    top, worst = tl.max(keys, 1), tl.min(best, 1)
    target = found + (number.to(tl.int64) * size + q_position)[:, None] * K + tl.arange(0, K)[None, :]
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
    K, slots = triton.next_power_of_2(max(knn, 2)), [*references, *recent]
    found = torch.empty(len(slots), store.size, K, dtype=torch.int64, device=store.device)
    patches = math.ceil(store.lines / SIDE) * math.ceil(store.line / SIDE)
    reach = math.ceil(min(radius, store.lines + store.line)) - 1
    _search_frame[(patches, len(slots))](
        store.features, torch.tensor(slots, device=store.device), len(references), found, query, store.lines,
        store.line, store.shape[0], reach, float(radius) ** 2, K=K, SIDE=SIDE, CHANNELS=CHANNELS, FAST=fast)
    keys = found.transpose(0, 1).flatten(1)  # [hw,N*K]
    keys = keys.topk(min(knn, keys.shape[1]), dim=1).values
    keys = F.pad(keys, (0, knn - keys.shape[1]), value=-(2**63))
    order = keys >> 32
    missing = order == -(2**31)
    similarity = (order ^ (order >> 31 & 0x7FFFFFFF)).int().view(torch.float32)
    candidate = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    return similarity.masked_fill(missing, -torch.inf), candidate.masked_fill(missing, 0)
