"""3x3 convolutions with a quarter of the multiplications, for training on CPUs (Lavin and Gray, 2016).

A tile of 4x4 outputs depends on 6x6 inputs. Moved into another basis by three small matrices, tile and filter need 36
multiplications for each pair of channels instead of 144: their algorithm F(4x4,3x3).

    n  tiles of all images        C  channels in        K  channels out
    V = B x  [n,36,C]   inputs        U = G w  [36,K,C]   filters        y = A (V U^T)  [n,16,K]   outputs
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.products import products

# Lavin and Gray, section 4.3, in one dimension; the Kronecker square acts on both.
INPUTS = torch.tensor([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                       [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float64)
FILTERS = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]).double() / 24
OUTPUTS = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).double()
B, G, A = (torch.kron(matrix, matrix) for matrix in (INPUTS, FILTERS, OUTPUTS))  # [36,36], [36,9], [16,36]
WORTH_IT = 64  # channels in, from which on the changes of basis take less than they save


def save_multiplications(network: nn.Module) -> nn.Module:
    """Let the wide 3x3 convolutions of stride 1 train by fewer multiplications, in place; no name changes."""
    for module in network.modules():
        if (type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module.stride == (1, 1)
                and module.in_channels >= WORTH_IT):
            module.__class__ = Conv3x3
    return network


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1 without bias."""

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] to [N,K,H,W]; rounds at 3e-6 where PyTorch's rounds at 1e-6, so that inference keeps the latter."""
        if not self.training or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return _FewMultiplications.apply(x, self.weight)


class _FewMultiplications(torch.autograd.Function):
    """y = A (V U^T); backwards the same steps in reverse, from dy by A^T over V and U to x by B^T and U by G^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (N, C, H, W), K = x.shape, len(weight)
        filters = (G.to(x.dtype) @ weight.permute(2, 3, 0, 1).reshape(9, K * C)).view(36, K, C)
        inputs = _transformed(B, x, 6)
        ctx.save_for_backward(inputs, filters)
        rows, columns = -(-H // 4), -(-W // 4)
        images = torch.stack([_times(A, tiles).view(rows, columns, 4, 4, K).transpose(1, 2)
                              for tiles in products(inputs, filters).chunk(N)])  # [N,rows,4,columns,4,K]
        return images.view(N, 4 * rows, 4 * columns, K)[:, :H, :W].permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        inputs, filters = ctx.saved_tensors
        K, C = filters.shape[1:]
        d_products = _transformed(A.t(), dy, 4)  # [n,36,K]
        d_filters = torch.bmm(d_products.permute(1, 2, 0), inputs.transpose(0, 1))  # [36,K,C]
        d_weight = (G.t().to(dy.dtype) @ d_filters.flatten(1)).view(3, 3, K, C).permute(2, 3, 0, 1)
        d_inputs = products(d_products, filters.transpose(1, 2))  # [n,36,C]
        H, W = dy.shape[2:]
        dx = torch.stack([_sum_of_tiles(_times(B.t(), tiles), H, W) for tiles in d_inputs.chunk(len(dy))])
        return dx.permute(0, 3, 1, 2), d_weight


def _transformed(matrix: Tensor, images: Tensor, size: int) -> Tensor:
    """All `_tiles` of images [N,C,H,W] in another basis, matrix [p,size^2]: [n,p,C].

    One image at a time, here and where tiles become images again: its tiles are in the cache still when they are used.
    """
    N, C, H, W = images.shape
    made = images.new_empty(N, -(-H // 4) * -(-W // 4), len(matrix), C)
    for image, out in zip(images, made):
        _times(matrix, _tiles(image, size), out)
    return made.flatten(0, 1)


def _tiles(image: Tensor, size: int) -> Tensor:
    """Windows of 4x4 or, with an edge of a cell around them, 6x6 cells, 4 apart: [C,H,W] to [rows*columns,size^2,C]."""
    C, H, W = image.shape
    edge = (size - 4) // 2
    padded = image.permute(1, 2, 0)
    if edge or H % 4 or W % 4:  # a padding of nothing is a copy
        padded = F.pad(padded, (0, 0, edge, edge + -W % 4, edge, edge + -H % 4))
    windows = padded.unfold(0, size, 4).unfold(1, size, 4)  # [rows,columns,C,size,size]
    return windows.permute(0, 1, 3, 4, 2).reshape(-1, size * size, C)


def _sum_of_tiles(tiles: Tensor, H: int, W: int) -> Tensor:
    """The reverse of `_tiles(image, 6)`: tiles summed where they overlap, to [H,W,C]; overwrites `tiles`."""
    rows, columns = -(-H // 4), -(-W // 4)
    tiles = tiles.view(rows, columns, 6, 6, -1)
    own = tiles[:, :, 1:5]  # of each tile the rows that are its own; the others are those of the next tiles
    own[:-1, :, 3] += tiles[1:, :, 0]
    own[1:, :, 0] += tiles[:-1, :, 5]
    own = own.transpose(1, 2)  # [rows,4,columns,6,C]
    image = own[..., 1:5, :].contiguous()
    image[:, :, :-1, 3] += own[:, :, 1:, 0]
    image[:, :, 1:, 0] += own[:, :, :-1, 5]
    return image.view(4 * rows, 4 * columns, -1)[:H, :W]


def _times(matrix: Tensor, tiles: Tensor, out: Tensor | None = None) -> Tensor:
    """A change of basis: matrix [p,q] times each of the tiles [n,q,C], written to `out` [n,p,C] where there is one."""
    return torch.bmm(matrix.to(tiles.dtype).expand(len(tiles), -1, -1), tiles, out=out)
