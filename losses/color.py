"""Rebuild the colours of one frame from another through feature similarity (DESIGN section 6; MAST, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.common import mean_of_hardest, smooth_l1
from utils.distributed import gather, rank


def color_loss(features: Tensor, target: Tensor, edge_weight: Tensor | None, *, temperature: float, negatives: bool,
               ohem_range: tuple[float, float]) -> Tensor:
    """Smooth L1 of every frame rebuilt from every other one of its clip, over the hardest items.

    Args:
        features: unit `q_color` of B clips of T frames [B,T,C,h,w].
        target: colours in [0,1], [B,T,3,H,W]; a cell of the feature map stands for a patch of H/h x W/w pixels.
        edge_weight: weight of each pixel in [1,5], [B,T,1,H,W]; None weighs all by 1.
        temperature: factor on the similarity before the softmax.
        negatives: also offer the cells of the clip mirrored in the global batch as sources.
        ohem_range: see `mean_of_hardest`.
    """
    rebuilt = rebuild_colors(features, target, temperature=temperature, negatives=negatives)
    truth = _destinations(_patches(target, features))
    if edge_weight is not None:
        weight = _destinations(_patches(edge_weight.expand_as(target), features))
        rebuilt, truth = rebuilt * weight, truth * weight
    items = smooth_l1(rebuilt, truth).unflatten(2, (features.shape[1] - 1, -1)).mean((3, 4))  # [B,T,T-1]
    return mean_of_hardest(items.flatten(), ohem_range)


def rebuild_colors(features: Tensor, target: Tensor, *, temperature: float, negatives: bool) -> Tensor:
    """The patches of all other frames rebuilt from frame i, for each i: [B,T,(T-1)hw,P]; arguments as `color_loss`.

    Each patch is the mean of the source's patches weighted by softmax(temperature * q_j . q_i): exactly attention with
    the features as queries and keys and the patches as values, whose kernels never store the hw x 2hw weights.
    """
    tokens = features.flatten(3).transpose(2, 3)  # [B,T,hw,C]
    patches = _patches(target, features)  # [B,T,hw,P]
    keys, values = tokens, patches
    if negatives:
        clips = slice(rank() * len(tokens), (rank() + 1) * len(tokens))
        keys = torch.cat([tokens, gather(tokens).flip(0)[clips]], dim=2)  # [B,T,2hw,C]
        values = torch.cat([patches, gather(patches).flip(0)[clips]], dim=2)  # [B,T,2hw,P]
    width = max(tokens.shape[-1], patches.shape[-1])  # fused kernels want equal widths; zeros change no product
    widen = lambda x: F.pad(x, (0, width - x.shape[-1]))
    rebuilt = F.scaled_dot_product_attention(widen(_destinations(tokens)), widen(keys), widen(values.to(keys.dtype)),
                                             scale=temperature)
    return rebuilt[..., :patches.shape[-1]]


def _patches(pixels: Tensor, features: Tensor) -> Tensor:
    """[B,T,3,H,W] to the pixels of each feature cell [B,T,hw,3*(H/h)*(W/w)]."""
    return F.pixel_unshuffle(pixels, pixels.shape[-1] // features.shape[-1]).flatten(3).transpose(2, 3)


def _destinations(cells: Tensor) -> Tensor:
    """For each source frame i the cells of all other frames, in order: [B,T,hw,D] to [B,T,(T-1)hw,D]."""
    T = cells.shape[1]
    others = torch.tensor([[j for j in range(T) if j != i] for i in range(T)], device=cells.device)
    return cells[:, others].flatten(2, 3)
