"""From the coarse label map to the picture's pixels, by the colours of the picture (DESIGN section 8).

    classes = BilateralUpsampling().argmax(labels, picture)      # [M,h,w] and uint8 [H,W,3] to [H,W]

Bilinear resizing takes a pixel's labels from the cells around it and ends masks in round boundaries. What the picture
knows better is added: with the cells c of a window around pixel p,

    labels_p = bilinear_p + sum over c of (share_c - smooth_c) labels_c,

where share_c is proportional to exp(-|colour_p - colour_c|^2 / 2 sigma_colour^2 - |p - c|^2 / 2 sigma_distance^2) and
smooth_c to the second part of it alone. The difference is what colours say beyond distances: 0 in a flat picture, which
is resized bilinearly, and where colours change labels move to their side of the change. Taking the mean by `share_c`
alone, as joint bilateral upsampling does, loses more to blur than it gives back (docs/RESULTS.md).

Positions are those of bilinear resizing with the corners aligned, so both ways put a cell in the same place. Sharing
out the weights is attention of the pixels to the cells of their window: with f = (colour/sigma_colour, position/
sigma_distance), shares are the softmax of f_p.f_c - |f_c|^2/2, because |f_p|^2/2 is the same for all cells of a pixel.

M classes; [h,w] is the label map, [H,W] the picture; K = window^2 cells of a window. The work is done in tiles, pixels
with the same nearest cell and so with the same window: N tiles at a time, P pixels in each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.threads import side_by_side, single_threaded

CLASSES_AT_ONCE = 16  # soft labels of pixels held at a time, so that memory does not grow with the number of objects
WEIGHTS_AT_ONCE = {"cpu": 2**19, "cuda": 2**24}  # few calls, yet within a cache; enough to keep a GPU busy
LONGEST_TILE = 16  # pixels a side, where a cell covers more
ROWS_AT_ONCE = 128  # of the picture, where colours are summed


class Axis(NamedTuple):
    """One axis of the label map laid over the same axis of the picture: S pixels in T tiles of at most L."""

    nearest: Tensor  # [S] the cell nearest to each pixel
    offset: Tensor  # [S] from the centre of that cell to the pixel, in [-0.5, 0.5] cells
    tile_cell: Tensor  # [T] the cell nearest to all pixels of a tile
    tile_pixels: Tensor  # [T,L] the pixels of a tile; a shorter one repeats its last
    sample_pixel: Tensor  # [Q] with `sample_cell`, which pixels make the colour of a cell: those nearest to its centre,
    sample_cell: Tensor  # [Q] of which each cell has at least one


@functools.lru_cache(maxsize=16)
def lay_axis(cells: int, pixels: int, device: torch.device) -> Axis:
    """`cells` cells over `pixels` pixels, first on first and last on last; a single cell lies under all pixels."""
    # Whole numbers, with 1/span of a cell as the unit: which cell is nearest must not depend on rounding.
    span = max(pixels - 1, 1)
    position = torch.arange(pixels) * (cells - 1)
    nearest = (2 * position + span) // (2 * span)
    offset = (position - nearest * span) / span

    place = torch.arange(pixels) - torch.searchsorted(nearest, nearest)  # of a pixel among those of its cell
    longest = int(place.max()) + 1
    length = -(-longest // -(-longest // LONGEST_TILE))
    first = (place % length == 0).nonzero()[:, 0]
    last = torch.cat([first[1:], torch.tensor([pixels])]) - 1
    tile_pixels = torch.minimum(first[:, None] + torch.arange(length), last[:, None])

    bare = torch.tensor(sorted({*range(cells)} - {*nearest.tolist()}), dtype=torch.long)  # where cells outnumber pixels
    closest = (2 * bare * span + cells - 1) // (2 * max(cells - 1, 1))
    axis = Axis(nearest, offset, nearest[first], tile_pixels, torch.cat([torch.arange(pixels), closest]),
                torch.cat([nearest, bare]))
    return Axis(*(part.to(device) for part in axis))


class BilateralUpsampling:
    """Soft labels of the coarse map to the pixels of a picture, by its colours.

    Args:
        window: odd, above 1, [cells] a side of the window around the cell nearest to a pixel; clipped at the border of
            the map.
        sigma_color: the distance of colours, each channel in [0,1], at which a weight has fallen to exp(-1/2).
        sigma_distance: the same of positions [cells].

    `ValueError` for other values.
    """

    def __init__(self, *, window: int = 5, sigma_color: float = 0.1, sigma_distance: float = 1.5):
        if window < 3 or window % 2 == 0:
            raise ValueError(f"the window is an odd whole number above 1; got {window}")
        if not (sigma_color > 0 and sigma_distance > 0):
            raise ValueError(f"both sigmas are above 0; got {sigma_color} and {sigma_distance}")
        self.window, self.sigma_color, self.sigma_distance = window, sigma_color, sigma_distance

    @torch.inference_mode()
    def argmax(self, labels: Tensor, picture: Tensor | np.ndarray) -> Tensor:
        """Soft labels [M,h,w] and the picture, uint8 RGB [H,W,3], to each pixel's largest channel, int64 [H,W].

        Of equals the first. Memory beyond the result and copies of picture and labels hardly grows with H*W and M.
        `ValueError` for other shapes or types.
        """
        with self._windows(labels, picture) as windows:
            of_cells = argmax_of_parts(labels.split(CLASSES_AT_ONCE))  # [h,w]
            result = of_cells[:, windows.columns.nearest][windows.rows.nearest]  # [H,W]

            def fill(tiles: Tensor) -> None:
                weights, cells, pixels = windows.weigh(tiles)
                maps = (mix(part, cells, weights) for part in labels.split(CLASSES_AT_ONCE))
                result.view(-1)[pixels] = argmax_of_parts(maps)

            # Where the weights of a window cannot change its class none are needed: see `undecided`.
            windows.for_tiles(fill, undecided(labels, self.window))
        return result

    @torch.inference_mode()
    def soft_labels(self, labels: Tensor, picture: Tensor | np.ndarray) -> Tensor:
        """The soft labels [M,H,W] of the pixels, of which `argmax` is the argmax; arguments as there.

        They sum to what those of the cells do; single ones may leave [0,1].
        """
        with self._windows(labels, picture) as windows:
            result = labels.new_empty(len(labels), *picture.shape[:2])

            def fill(tiles: Tensor) -> None:
                weights, cells, pixels = windows.weigh(tiles)
                result.view(len(labels), -1)[:, pixels] = mix(labels, cells, weights)

            windows.for_tiles(fill, torch.ones_like(labels[0], dtype=torch.bool))
        return result

    @contextmanager
    def _windows(self, labels: Tensor, picture: Tensor | np.ndarray) -> Iterator[Windows]:
        """The arguments, checked, as windows; in the block operations use one thread, and tiles go side by side."""
        if labels.ndim != 3 or labels.dtype != torch.float32 or 0 in labels.shape:
            raise ValueError(f"soft labels are float32 [M,h,w]; got {labels.dtype} {tuple(labels.shape)}")
        if isinstance(picture, np.ndarray):
            picture = torch.from_numpy(np.ascontiguousarray(picture))
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"a picture is uint8 [H,W,3]; got {picture.dtype} {tuple(picture.shape)}")
        with single_threaded() as threads:
            threads = threads if labels.device.type == "cpu" else 1
            yield Windows(picture.to(labels.device).contiguous(), (labels.shape[1], labels.shape[2]),
                          window=self.window, threads=threads, sigma_color=255 * self.sigma_color,
                          sigma_distance=self.sigma_distance)


class Windows:
    """The windows of label cells [h,w] = `shape` around the pixels of one picture, and the weights in them.

    `colors` are uint8 RGB [H,W,3]; `sigma_color` is in levels, the other in cells.
    """

    def __init__(self, colors: Tensor, shape: tuple[int, int], *, window: int, sigma_color: float,
                 sigma_distance: float, threads: int = 1):
        device = colors.device
        self._colors, (self._h, self._w) = colors, shape
        self._sigma_color, self._sigma_distance, self._threads = sigma_color, sigma_distance, threads
        self.rows, self.columns = (lay_axis(cells, pixels, device) for cells, pixels in zip(shape, colors.shape))
        reach = torch.arange(window, device=device) - window // 2
        self._steps = torch.cartesian_prod(reach, reach)  # [K,2] from a window's middle to its cells, down and right
        self._cell_colors = self._average()
        self._by_row, self._by_column = (self._colorless(axis, cells, reach)
                                         for axis, cells in ((self.rows, self._h), (self.columns, self._w)))

    def for_tiles(self, function: Callable[[Tensor], None], cells: Tensor) -> None:
        """Call `function` with the tiles [N,2], row and column, of the chosen cells, bool [h,w], some at a time."""
        tiles = cells[self.rows.tile_cell][:, self.columns.tile_cell].nonzero()
        weights = len(self._steps) * self.rows.tile_pixels.shape[1] * self.columns.tile_pixels.shape[1]  # of a tile
        if len(tiles):
            side_by_side(function, tiles.split(max(WEIGHTS_AT_ONCE[tiles.device.type] // weights, 1)), self._threads)

    def weigh(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tiles [N,2] to the weights [N,K,P] of the cells of their windows, which sum to 1; which cells these are
        [N,K], of h*w; and which pixels a tile has [N,P], of H*W. Cells outside the map have weight 0 and stand as their
        neighbours in it.
        """
        row, column = tiles.T  # [N] both
        i, j = self.rows.tile_cell[row], self.columns.tile_cell[column]  # [N] both
        down, right = self._steps.T  # [K] both
        cell_row, cell_column = i[:, None] + down, j[:, None] + right  # [N,K]
        outside = (cell_row < 0) | (cell_row >= self._h) | (cell_column < 0) | (cell_column >= self._w)
        cells = cell_row.clamp_(0, self._h - 1) * self._w + cell_column.clamp_(0, self._w - 1)  # [N,K]
        y, x = self.rows.tile_pixels[row], self.columns.tile_pixels[column]  # [N,L]
        pixels = y[:, :, None] * self._colors.shape[1] + x[:, None, :]  # [N,L,L]

        # Positions and colours are taken from the tile's middle cell: only differences count, and small numbers keep
        # their digits in the products.
        middle = self._cell_colors[i * self._w + j]  # [N,3]
        of_cells = middle.new_empty(*cells.shape, 5)  # [N,K,5]: three channels, down, right
        of_cells[..., :3] = (pick(self._cell_colors, cells) - middle[:, None]) / self._sigma_color
        of_cells[..., 3:] = self._steps / self._sigma_distance
        of_pixels = middle.new_empty(*pixels.shape, 5)  # [N,L,L,5]
        of_pixels[..., :3] = (pick(self._colors.view(-1, 3), pixels) - middle[:, None, None]) / self._sigma_color
        of_pixels[..., 3] = self.rows.offset[y][:, :, None] / self._sigma_distance
        of_pixels[..., 4] = self.columns.offset[x][:, None, :] / self._sigma_distance
        start = (of_cells.square().sum(2) / -2).masked_fill_(outside, -torch.inf)[..., None]  # [N,K,1]
        logits = torch.baddbmm(start, of_cells, of_pixels.flatten(1, 2).transpose(1, 2))  # [N,K,P]
        weights = logits.softmax(1)
        (bilinear_y, smooth_y), (bilinear_x, smooth_x) = self._by_row[:, row], self._by_column[:, column]  # [N,k,L]
        square = weights.view(len(tiles), *bilinear_y.shape[1:2], *bilinear_x.shape[1:2], *pixels.shape[1:])
        square.addcmul_(smooth_y[:, :, None, :, None], smooth_x[:, None, :, None, :], value=-1)
        square.addcmul_(bilinear_y[:, :, None, :, None], bilinear_x[:, None, :, None, :])
        return weights, cells, pixels.flatten(1)

    def _colorless(self, axis: Axis, cells: int, reach: Tensor) -> Tensor:
        """Bilinear and smooth shares along one axis, [2,T,k,L], k cells a side; a cell's are products of both axes'."""
        away = reach[:, None] - axis.offset[axis.tile_pixels][:, None]  # [T,k,L]
        cell = (axis.tile_cell[:, None] + reach)[..., None]  # [T,k,1]
        logits = (away / self._sigma_distance).square() / -2
        smooth = logits.masked_fill((cell < 0) | (cell >= cells), -torch.inf).softmax(1)
        return torch.stack([(1 - away.abs()).clamp(min=0), smooth])

    def _average(self) -> Tensor:
        """The colour of each cell, [h*w,3]: the mean of the pixels nearest to its centre."""
        h, w, rows, columns = self._h, self._w, self.rows, self.columns
        sums = self._colors.new_zeros((h, self._colors.shape[1], 3), dtype=torch.int32)  # whole: exact in any order
        for pixels, cells in zip(rows.sample_pixel.split(ROWS_AT_ONCE), rows.sample_cell.split(ROWS_AT_ONCE)):
            sums.index_add_(0, cells, self._colors[pixels].int())
        sums = sums.new_zeros(h, w, 3).index_add_(1, columns.sample_cell, sums[:, columns.sample_pixel])
        counts = rows.sample_cell.bincount(minlength=h)[:, None] * columns.sample_cell.bincount(minlength=w)  # [h,w]
        return (sums / counts[..., None]).view(-1, 3)


def pick(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table [S,C] by numbers [...], to [...,C]; faster than indexing."""
    return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])


def mix(labels: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    """Labels [m,h,w] to their means [m,N,P] over `cells` [N,K], numbers in h*w, with `weights` [N,K,P]."""
    return torch.bmm(pick(labels.flatten(1).T, cells).transpose(1, 2), weights).transpose(0, 1)


def argmax_of_parts(parts: Iterable[Tensor]) -> Tensor:
    """Soft labels [M,...], in successive parts [m,...], to the largest channel, [...]; of equals the first."""
    remaining = iter(parts)
    part = next(remaining)
    (best, winner), start = part.max(0), len(part)
    del part  # before the next one is made
    for part in remaining:
        value, index = part.max(0)
        better = value > best
        best, winner = torch.where(better, value, best), torch.where(better, index + start, winner)
        start += len(part)
        del part
    return winner


def undecided(labels: Tensor, window: int) -> Tensor:
    """Where the colours around a cell could decide on the class of its pixels: labels [M,h,w] to bool [h,w].

    Bilinear labels are within the range of the window's cells, and what is added is at most as large as that range.
    """
    if len(labels) == 1:
        return torch.zeros_like(labels[0], dtype=torch.bool)
    highest = F.max_pool2d(labels, window, 1, window // 2)
    lowest = -F.max_pool2d(-labels, window, 1, window // 2)
    most = (2 * highest - lowest).topk(2, dim=0)  # what each class can reach at most
    least = (2 * lowest - highest).gather(0, most.indices[:1])[0]
    return least <= most.values[1]
