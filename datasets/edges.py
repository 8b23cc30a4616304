"""Edge weights: where a picture has an isolated contour, a wrong colour costs up to five times as much."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 16  # every 16th column and row is walked
GAP = 16  # an edge counts after more than 16 pixels without one, so texture does not
STAMP = np.ones((8, 8), np.uint8)


def edge_weight(image: np.ndarray) -> np.ndarray:
    """RGB uint8 [H,W,3] to weights float32 [H,W] in [1,5] (DESIGN section 5, edge weight map)."""
    mask = torch.from_numpy(contour_mask(image))
    return _weights(mask[None, None], image.shape[:2])[0, 0].numpy()


def pack_contours(images: list[np.ndarray]) -> Tensor:
    """The contours of T square pictures uint8 [S,S,3], a bit a pixel of half the size: uint8 [T,S/2,S/16 or more]."""
    return torch.from_numpy(np.packbits(np.stack([contour_mask(image) for image in images]), axis=2))


def unpack_weights(packed: Tensor, side: int) -> Tensor:
    """`pack_contours` of B clips [B,T,S/2,...] to the weights of S = `side` pixels a side, float32 [B,T,1,S,S]."""
    bits = 2 ** torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    mask = (packed[..., None] & bits).bool().flatten(3)[..., :side // 2]  # [B,T,S/2,S/2]
    return _weights(mask.flatten(0, 1)[:, None], (side, side)).unflatten(0, mask.shape[:2])


def contour_mask(image: np.ndarray) -> np.ndarray:
    """RGB uint8 [H,W,3] to the 8x8 blocks around isolated contours, uint8 0 or 1 at half the size [H//2,W//2]."""
    height, width = image.shape[:2]
    half = cv2.resize(image, (width // 2, height // 2))
    edges = cv2.Canny(cv2.GaussianBlur(half, (5, 5), 3), 100, 200) > 0
    top, left = int(0.1 * edges.shape[0]), int(0.1 * edges.shape[1])
    edges[:top] = edges[edges.shape[0] - top:] = False
    edges[:, :left] = edges[:, edges.shape[1] - left:] = False

    isolated = np.zeros(edges.shape, np.uint8)
    isolated[:, ::STEP] |= after_gap(edges[:, ::STEP].T).T
    isolated[::STEP] |= after_gap(edges[::STEP])
    isolated[:4] = isolated[:, :4] = 0  # their stamp would begin at a negative index
    # dst(y) = max of src(y-3 .. y+4): each isolated pixel j stamps [j-4, j+4)
    return cv2.dilate(isolated, STAMP, anchor=(3, 3), borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _weights(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [N,1,h,w] to weights in [1,5] at full `size` (height, width): [N,1,H,W]."""
    return 1 + 4 * F.interpolate(mask.float(), size=size, mode="bilinear", align_corners=False)


def after_gap(lines: np.ndarray) -> np.ndarray:
    """Walk each line of bool [L,N] both ways and mark, uint8 [L,N], the edges met after more than `GAP` free pixels.

    The pixel right behind an edge is not counted; the ends of a line stand for edges two pixels outside it.
    """
    L, N = lines.shape
    padded = np.zeros((L, N + 4), bool)
    padded[:, 2:-2] = lines
    padded[:, [0, -1]] = True
    row, position = np.nonzero(padded)
    free = np.diff(position) - 2 > GAP  # between neighbouring edges; negative from one line's end to the next line
    after = np.zeros(padded.shape, np.uint8)
    after[row[1:][free], position[1:][free]] = 1  # walking forwards
    after[row[:-1][free], position[:-1][free]] = 1  # walking backwards
    return after[:, 2:-2]
