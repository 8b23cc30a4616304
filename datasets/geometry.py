"""Geometric transforms: the free ones of the colour view, and the guided ones that relate two views of a clip.

A chain of flips, rotation, crop and resize is one affine map, so a frame is interpolated once. Coordinates of maps are
continuous: pixel i covers [i, i+1], a picture of width W covers [0, W].
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

CROP_ORIGIN = (0.0, 0.25)
CROP_SIZE = (0.5, 0.75)
MAX_ANGLE = 30  # [degrees]


def draw_crop(rng: np.random.Generator, *, random_origin: bool) -> np.ndarray:
    """Draw (x, y, width, height) of the colour view's crop as fractions of the frame; centred without random origin."""
    size = rng.uniform(*CROP_SIZE, size=2)
    origin = rng.uniform(*CROP_ORIGIN, size=2) if random_origin else (1 - size) / 2
    return np.concatenate([origin, size])


def color_frame(frame: np.ndarray, short_side: float, size: int, *, vertical_flip: bool, angle: float,
                 crop: np.ndarray, horizontal_flip: bool) -> np.ndarray:
    """A frame of view A, uint8 [H,W,3] to [size,size,3]: the chain of DESIGN section 5 in its order.

    `vertical_flip`, resize so that the short side has `short_side` pixels (reflect-pad to `size` where smaller), turn
    by `angle` [degrees] about the centre with black corners, `crop` (x, y, width, height as fractions), resize to the
    square, `horizontal_flip`.
    """
    frame, width, height = _padded(frame, short_side, size)
    H, W = frame.shape[:2]
    x, y, w, h = crop
    chain = _scale(1 / size, 1 / size)  # from the square, backwards to the frame as it is decoded
    if horizontal_flip:
        chain = _scale(-1, 1, 1, 0) @ chain
    turn = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1), (0, 0, 1)])
    chain = _scale(W / width, H / height) @ turn @ _scale(w * width, h * height, x * width, y * height) @ chain
    if vertical_flip:
        chain = _scale(1, -1, 0, H) @ chain

    # Resolution is lost where the chain loses it, and before interpolation, so that nothing aliases: to the short side
    # asked for, or below it where the crop is shown at less.
    density = np.minimum((width, height), (size / w, size / h)) / (W, H)
    frame, chain = _resize_shown(frame, chain, size, density)
    return _warp(frame, chain, size, cv2.BORDER_CONSTANT if angle else cv2.BORDER_REFLECT)


def crop_frame(frame: np.ndarray, short_side: float, size: int, *, origin: np.ndarray,
               horizontal_flip: bool) -> np.ndarray:
    """A frame of dense view 1, uint8 [H,W,3] to [size,size,3]: resize to the short side, reflect-pad, crop, flip.

    `origin` is the crop's (x, y) as a share of what it can move: (0, 0) top left, (1, 1) bottom right. The crop is cut
    from the frame first and only that is resized: the same picture to less than a pixel.
    """
    frame, width, height = _padded(frame, short_side, size)
    H, W = frame.shape[:2]
    w, h = round(W * size / width), round(H * size / height)
    x, y = np.rint(origin * (W - w, H - h)).astype(int)
    cropped = resize(frame[y:y + h, x:x + w], size, size)
    return cv2.flip(cropped, 1) if horizontal_flip else cropped


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 [H,W,3], bilinear and antialiased: PIL's result, in a third of the time of OpenCV's INTER_AREA."""
    stacked = torch.from_numpy(image).permute(2, 0, 1)[None]  # [1,3,H,W]
    planes = F.interpolate(stacked, size=(height, width), mode="bilinear", antialias=True)[0]
    return cv2.merge(list(planes.numpy()))


def rotate(image: np.ndarray, angle: float) -> np.ndarray:
    """Turn [H,W,3] by `angle` [degrees] about its centre, bilinear, black corners."""
    H, W = image.shape[:2]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((W / 2 - 0.5, H / 2 - 0.5), angle, 1), (W, H))


def draw_theta(rng: np.random.Generator, *, flip: bool, zoom_range: tuple[float, float] | None) -> np.ndarray:
    """Draw the guided transform of a view, float32 [2,3] as `affine_grid(align_corners=False)` takes it.

    A horizontal flip with probability .5 (where `flip`) and a crop of scale U(zoom_range) anywhere (unless None).
    """
    scale = rng.uniform(*zoom_range) if zoom_range else 1.0
    x, y = 2 * rng.uniform(0, 1 - scale, size=2) + scale - 1  # the crop's centre, in [-1, 1]
    sign = -1 if flip and rng.random() < 0.5 else 1
    return np.array([[sign * scale, 0, x], [0, scale, y]], np.float32)


def apply_theta(image: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Sample a square picture uint8 [S,S,3] at `affine_grid(theta)`, bilinear with reflection."""
    S = image.shape[0]
    to_unit, from_unit = _scale(2 / S, 2 / S, -1, -1), _scale(S / 2, S / 2, S / 2, S / 2)
    return _warp(image, from_unit @ np.vstack([theta, (0, 0, 1)]) @ to_unit, S, cv2.BORDER_REFLECT)


def theta_grid(theta: np.ndarray, size: int) -> np.ndarray:
    """`affine_grid(theta)` with `align_corners=False`, float32 [size,size,2], for transforms without rotation."""
    centres = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    x, y = np.meshgrid(theta[0, 0] * centres + theta[0, 2], theta[1, 1] * centres + theta[1, 2])
    return np.stack([x, y], axis=-1)


def _padded(frame: np.ndarray, short_side: float, size: int) -> tuple[np.ndarray, int, int]:
    """The frame, reflected at its borders where its resized sides would be under `size`; and those sides [pixels]."""
    H, W = frame.shape[:2]
    scale = short_side / min(H, W)
    x, y = (max(round(size / scale) - side, 0) for side in (W, H))
    if x or y:
        frame = cv2.copyMakeBorder(frame, y // 2, y - y // 2, x // 2, x - x // 2, cv2.BORDER_REFLECT_101)
    return frame, max(round(W * scale), size), max(round(H * scale), size)


def _resize_shown(frame: np.ndarray, matrix: np.ndarray, size: int,
                  density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of a frame that `matrix` shows in the square, resized to `density` (x, y); and the matrix for it."""
    H, W = frame.shape[:2]
    corners = matrix[:2] @ [(0, 0, size, size), (0, size, 0, size), (1, 1, 1, 1)]
    start = np.clip(corners.min(1) - 3, 0, (W - 1, H - 1)).astype(int)  # a margin for interpolation
    stop = np.clip(corners.max(1) + 4, start + 1, (W, H)).astype(int)
    resized = np.maximum(np.rint(density * (stop - start)), 1).astype(int)
    frame = resize(frame[start[1]:stop[1], start[0]:stop[0]], *resized)
    scale = resized / (stop - start)
    return frame, _scale(*scale, *(-scale * start)) @ matrix


def _scale(x: float, y: float, shift_x: float = 0, shift_y: float = 0) -> np.ndarray:
    return np.array([[x, 0, shift_x], [0, y, shift_y], [0, 0, 1]], np.float64)


def _warp(image: np.ndarray, matrix: np.ndarray, size: int, border: int) -> np.ndarray:
    """Sample `image` where `matrix` [3,3] takes the continuous coordinates of a `size` x `size` picture."""
    matrix = _scale(1, 1, -0.5, -0.5) @ matrix @ _scale(1, 1, 0.5, 0.5)  # from and to indices of pixel centres
    return cv2.warpAffine(image, matrix[:2], (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=border)
