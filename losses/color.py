"""Rebuild the colours of one frame from another through feature similarity (DESIGN section 6; MAST, section 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.common import at_least_float32, ohem_mean, smooth_l1
from utils.distributed import gather, rank
from utils.products import products

BLOCK = 1024  # queries that attention on the CPU takes at a time


def color_loss(features: Tensor, target: Tensor, edge_weight: Tensor | None, *, temperature: float, negatives: bool,
               ohem_range: tuple[float, float]) -> Tensor:
    """Smooth L1 of every frame rebuilt from every other one of its clip, mean over the items that `ohem_range` takes.

    Args:
        features: unit `q_color` of B clips of T frames [B,T,C,h,w].
        target: colours in [0,1], [B,T,3,H,W]; a cell of the feature map stands for a patch of H/h x W/w pixels.
        edge_weight: weight of each pixel in [1,5], [B,T,1,H,W]; None weighs all by 1.
        temperature: factor on the similarity before the softmax.
        negatives: also offer the cells of the clip mirrored in the global batch as sources.
        ohem_range: see `ohem_mean`.
    """
    rebuilt = rebuild_colors(features, target, temperature=temperature, negatives=negatives).to(target.dtype)
    truth = _destinations(_patches(target, features))
    if edge_weight is not None:
        weight = _destinations(_patches(edge_weight.expand_as(target), features))
        rebuilt, truth = rebuilt * weight, truth * weight
    items = smooth_l1(rebuilt, truth).unflatten(2, (features.shape[1] - 1, -1)).mean((3, 4))  # [B,T,T-1]
    return ohem_mean(items.flatten(), ohem_range)


def rebuild_colors(features: Tensor, target: Tensor, *, temperature: float, negatives: bool) -> Tensor:
    """The patches of all other frames rebuilt from frame i, for each i: [B,T,(T-1)hw,P]; arguments as `color_loss`.

    Each patch is the mean of the source's patches weighted by softmax(temperature * q_j . q_i): attention with the
    features as queries and keys and the patches as values. These come in the precision of the forward pass;
    similarities, softmax and sums are float32 on every device. With bfloat16 that moves the gradient by 0.7 %, and by
    nothing beside the 6 % that the network's own rounding does (size S, trained; in float32 the network 0.061, 0.060).
    """
    tokens = features.flatten(3).transpose(2, 3)  # [B,T,hw,C]
    patches = _patches(target, features).to(tokens.dtype)  # [B,T,hw,P]
    keys, values = tokens, patches
    if negatives:
        clips = slice(rank() * len(tokens), (rank() + 1) * len(tokens))
        keys = torch.cat([tokens, gather(tokens).flip(0)[clips]], dim=2)  # [B,T,2hw,C]
        values = torch.cat([patches, gather(patches).flip(0)[clips]], dim=2)  # [B,T,2hw,P]
    attend = attend_by_products if features.device.type == "cpu" else attend_fused
    return attend(_destinations(tokens), keys, values, temperature)


def rebuilt_pixels(patches: Tensor, features: Tensor, target: Tensor) -> Tensor:
    """Patches of one frame's cells [hw,P], as `rebuild_colors` gives them, back to pixels [3,H,W].

    `features` [...,h,w] and `target` [...,H,W] are those that they were rebuilt from.
    """
    cells = patches.t().unflatten(1, features.shape[-2:])  # [P,h,w]
    return F.pixel_shuffle(cells, target.shape[-1] // features.shape[-1])


def attend_fused(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """softmax(scale * queries . keys) over keys times values, [B,T,q,C], [B,T,k,C], [B,T,k,P] to [B,T,q,P].

    By kernels that never store the q x k weights.
    """
    width = max(queries.shape[-1], values.shape[-1])  # fused kernels want equal widths; zeros change no product
    widen = lambda x: F.pad(x, (0, width - x.shape[-1]))
    attended = F.scaled_dot_product_attention(widen(queries), widen(keys), widen(values), scale=scale)
    return attended[..., :values.shape[-1]]


def attend_by_products(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """As `attend_fused`, by the products of a library made for convolutions; the values get no gradient."""
    queries, keys, values = at_least_float32(queries, keys, values)
    with torch.autocast(queries.device.type, enabled=False):
        attended = _Attention.apply((scale * queries).flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1))
    return attended.unflatten(0, keys.shape[:2])


class _Attention(torch.autograd.Function):
    """softmax(queries . keys) over keys times values, [n,q,C], [n,k,C], [n,k,P] to [n,q,P], a block at a time.

    The weights [BLOCK,k] of a block stay in the processor's cache until they are used; PyTorch's own gradients of all
    queries at once would fetch each of their four [q,k] matrices from fresh memory.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attended, weights = [], []
        columns_of = values.transpose(1, 2).contiguous()  # [n,P,k]: what `_product` wants, for all blocks of a source
        for query, key, columns in zip(queries, keys, columns_of):
            for rows in query.split(BLOCK):
                weights.append(_product(rows, key).softmax(dim=1))
                attended.append(_product(weights[-1], columns))
        ctx.save_for_backward(queries, keys, values, *weights)
        return torch.cat(attended).unflatten(0, queries.shape[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, keys, values, *weights = ctx.saved_tensors
        remaining, d_queries, d_keys = iter(weights), [], torch.zeros_like(keys)
        columns_of = keys.transpose(1, 2).contiguous()  # [n,C,k]
        for query, columns, value, d_attended, d_key in zip(queries, columns_of, values, gradient, d_keys):
            for rows, d_rows in zip(query.split(BLOCK), d_attended.split(BLOCK)):
                weight = next(remaining)
                d_weight = _product(d_rows, value)
                d_similarity = torch._softmax_backward_data(d_weight, weight, 1, weight.dtype)
                d_queries.append(_product(d_similarity, columns))
                d_key.addmm_(d_similarity.t(), rows)
        return torch.cat(d_queries).view_as(queries), d_keys, None


def _product(rows: Tensor, filters: Tensor) -> Tensor:
    """rows [n,c] times filters [m,c] transposed: [n,m]."""
    return products(rows[:, None], filters[None])[:, 0]


def _patches(pixels: Tensor, features: Tensor) -> Tensor:
    """[B,T,3,H,W] to the pixels of each feature cell [B,T,hw,3*(H/h)*(W/w)]."""
    return F.pixel_unshuffle(pixels, pixels.shape[-1] // features.shape[-1]).flatten(3).transpose(2, 3).contiguous()


def _destinations(cells: Tensor) -> Tensor:
    """For each source frame i the cells of all other frames, in order: [B,T,hw,D] to [B,T,(T-1)hw,D]."""
    T = cells.shape[1]
    source, other = torch.arange(T, device=cells.device)[:, None], torch.arange(T - 1, device=cells.device)
    return cells[:, other + (other >= source)].flatten(2, 3)
