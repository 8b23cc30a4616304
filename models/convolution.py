"""Winograd convolutions: 3x3 with a quarter of the multiplications, for training on CPUs (Lavin and Gray, 2016).

A tile of 4x4 outputs depends on 6x6 inputs. Moved into another basis by three small matrices, tile and filter need 36
multiplications for each pair of channels instead of 144: their algorithm F(4x4,3x3).

    n  tiles of all images        C  channels in        K  channels out
    V = B x  [n,36,C]   inputs        U = G w  [36,K,C]   filters        y = A (V U^T)  [n,16,K]   outputs
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from utils.products import products

# Lavin and Gray, section 4.3, in one dimension; the Kronecker square acts on both.
INPUTS = torch.tensor([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                       [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float64)
FILTERS = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]).double() / 24
OUTPUTS = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).double()
B, G, A = (torch.kron(matrix, matrix) for matrix in (INPUTS, FILTERS, OUTPUTS))  # [36,36], [36,9], [16,36]
WORTH_IT = 64  # channels in, from which on the changes of basis take less than they save


def use_winograd(network: nn.Module) -> nn.Module:
    """Let the wide 3x3 convolutions of stride 1 train as Winograd convolutions, in place; no name changes."""
    for module in network.modules():
        if (type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module.stride == (1, 1)
                and module.in_channels >= WORTH_IT):
            module.__class__ = WinogradConv2d
    return network


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1 without bias, a Winograd convolution in training."""

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] to [N,K,H,W]; rounds at 3e-6 where PyTorch's rounds at 1e-6, so that inference keeps the latter."""
        if not self.training or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return _Winograd.apply(x, self.weight)


class _Winograd(torch.autograd.Function):
    """y = A (V U^T); backwards the same steps in reverse, from dy by A^T over V and U to x by B^T and U by G^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        K, C = weight.shape[:2]
        filters = (G.to(x.dtype) @ weight.permute(2, 3, 0, 1).reshape(9, K * C)).view(36, K, C)
        inputs = _transformed(B, x, 6)
        ctx.save_for_backward(inputs, filters)
        return _images(A, products(inputs, filters), x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        inputs, filters = ctx.saved_tensors
        K, C = filters.shape[1:]
        d_products = _transformed(A.t(), dy, 4)  # [n,36,K]
        d_filters = torch.bmm(d_products.permute(1, 2, 0), inputs.transpose(0, 1))  # [36,K,C]
        d_weight = (G.t().to(dy.dtype) @ d_filters.flatten(1)).view(3, 3, K, C).permute(2, 3, 0, 1)
        return _images(B.t(), products(d_products, filters.transpose(1, 2)), dy.shape), d_weight


def _transformed(matrix: Tensor, x: Tensor, size: int) -> Tensor:
    """All windows of 4x4 or, with an edge of a cell around them, 6x6 cells, 4 apart, in another basis.

    x [N,C,H,W] by matrix [p,size^2] to [n,p,C]. One image at a time and in the same memory, here and in `_images`: what
    one step wrote is in the processor's cache when the next one reads it.
    """
    N, C, H, W = x.shape
    rows, columns, edge = -(-H // 4), -(-W // 4), (size - 4) // 2
    padded = x.new_zeros(4 * rows + 2 * edge, 4 * columns + 2 * edge, C)
    inside = padded[edge:edge + H, edge:edge + W]
    windows = padded.unfold(0, size, 4).unfold(1, size, 4).permute(0, 1, 3, 4, 2)  # [rows,columns,size,size,C]
    tiles = x.new_empty(windows.shape)
    flat = tiles.view(rows * columns, -1, C)
    bases = matrix.to(x.dtype).expand(rows * columns, -1, -1)
    made = x.new_empty(N, rows * columns, len(matrix), C)
    for image, out in zip(x.permute(0, 2, 3, 1), made):
        inside.copy_(image)
        tiles.copy_(windows)
        torch.bmm(bases, flat, out=out)
    return made.flatten(0, 1)


def _images(matrix: Tensor, made: Tensor, shape: torch.Size) -> Tensor:
    """The reverse: made [n,36,C] by matrix [16 or 36,36] to tiles of 4x4 or 6x6 cells, summed where they overlap.

    Gives [N,C,H,W] of the N, H and W in `shape`.
    """
    (N, _, H, W), C = shape, made.shape[-1]
    rows, columns, size = -(-H // 4), -(-W // 4), 4 if len(matrix) == 16 else 6
    tiles = made.new_empty(rows, columns, size, size, C)
    flat = tiles.view(rows * columns, -1, C)
    own, overlaps = (tiles.transpose(1, 2), []) if size == 4 else _overlaps(tiles)
    bases = matrix.to(tiles.dtype).expand(rows * columns, -1, -1)
    images = tiles.new_empty(N, rows, 4, columns, 4, C)
    for source, image in zip(made.chunk(N), images):
        torch.bmm(bases, source, out=flat)
        for cells, neighbours in overlaps:
            cells.add_(neighbours)
        image.copy_(own)
    return images.view(N, 4 * rows, 4 * columns, C)[:, :H, :W].permute(0, 3, 1, 2)


def _overlaps(tiles: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Views of tiles [rows,columns,6,6,C], 4 cells apart: the own cells of each [rows,4,columns,4,C], and what is to be
    added to what, in this order, for these to hold the sums.
    """
    across = tiles[:, :, 1:5]
    along = across.transpose(1, 2)  # [rows,4,columns,6,C]
    return along[:, :, :, 1:5], [(across[:-1, :, 3], tiles[1:, :, 0]), (across[1:, :, 0], tiles[:-1, :, 5]),
                                 (along[:, :, :-1, 4], along[:, :, 1:, 0]), (along[:, :, 1:, 1], along[:, :, :-1, 5])]
