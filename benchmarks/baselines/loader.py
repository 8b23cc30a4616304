"""A reference implementation of DESIGN section 5: the loader benchmark's baseline, and what its statistics are held to.

Pictures are PIL images, changed by torchvision one operation at a time; the edge walk goes pixel by pixel; warps are
`grid_sample`. Nothing is shared with `datasets/`.
"""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

SIZE = 256
JITTER = T.ColorJitter(0.4, 0.4, 0.2, 0.1)


def plain_sample(video: list[Path], length: int = 5, gap: int = 2) -> dict[str, dict[str, Tensor]]:
    """One training sample of a video with every switch on; randomness from the global generators."""
    window = min(len(video), gap * length)
    stride = window // length
    start = random.randint(0, len(video) - 1 - stride * (length - 1))
    chosen = [video[start + i * stride] for i in range(length)]
    random.shuffle(chosen)
    frames = [Image.open(path).convert("RGB") for path in chosen]
    return {"color": color_views(frames), "dense": dense_views(frames)}


def color_views(frames: list[Image.Image]) -> dict[str, Tensor]:
    """Views A and B, grid, Lab target, edge weights."""
    short = random.randint(256, 319)
    frames = [TF.vflip(frame) if random.random() < 0.3 else frame for frame in frames]
    frames = [pad(TF.resize(frame, short)) for frame in frames]
    plain = [free_transform(frame) for frame in frames]
    view_a = [photometric(frame, blur=0.2, solarise=0) for frame in plain]
    view_b = to_tensor([photometric(frame, blur=0.3, solarise=0.1) for frame in plain])
    if random.random() < 0.5:
        maps = [liquid_map(SIZE, SIZE) for _ in frames]
        grid = torch.stack([torch.from_numpy(m / SIZE * 2 - 1).float() for m in maps])
        maps = [cv2.resize(m, None, fx=1 / 8, fy=1 / 8) for m in maps]
        small = torch.stack([torch.from_numpy(m / SIZE * 2 - 1).float() for m in maps])
    else:
        theta = guided_theta().expand(len(frames), 2, 3)
        grid, small = (F.affine_grid(theta, (len(frames), 3, s, s), align_corners=False) for s in (SIZE, SIZE // 8))
    view_b = F.grid_sample(view_b, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    edge = torch.stack([edge_weight(np.array(frame)) for frame in view_a])[:, None]
    return {"view_a": to_tensor(view_a), "view_b": view_b, "grid": small, "target": lab_target(plain), "edge": edge}


def dense_views(frames: list[Image.Image]) -> dict[str, Tensor]:
    """Views 1 and 2 and the transform between them."""
    short, flip = random.randint(256, 319), random.random() < 0.5
    frames = [pad(TF.resize(frame, short)) for frame in frames]
    top, left, height, width = T.RandomCrop.get_params(frames[0], (SIZE, SIZE))
    frames = [TF.crop(frame, top, left, height, width) for frame in frames]
    view_1 = to_tensor([TF.hflip(frame) if flip else frame for frame in frames])
    theta = guided_theta()
    grid = F.affine_grid(theta.expand(len(frames), 2, 3), view_1.shape, align_corners=False)
    view_2 = F.grid_sample(view_1, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return {"view_1": view_1, "view_2": view_2, "theta": theta}


def pad(frame: Image.Image) -> Image.Image:
    """Reflect-pad to the crop where smaller."""
    x, y = (max(SIZE - side, 0) for side in frame.size)
    return TF.pad(frame, [x // 2, y // 2, x - x // 2, y - y // 2], padding_mode="reflect") if x or y else frame


def free_transform(frame: Image.Image) -> Image.Image:
    """Rotation, crop, resize, horizontal flip of one frame."""
    if random.random() < 0.5:
        frame = TF.rotate(frame, random.uniform(-30, 30), interpolation=T.InterpolationMode.BILINEAR)
    if random.random() < 0.7:
        width, height = frame.size
        x, y, w, h = (random.uniform(*bounds) for bounds in ((0, 0.25), (0, 0.25), (0.5, 0.75), (0.5, 0.75)))
        frame = TF.crop(frame, round(y * height), round(x * width), round(h * height), round(w * width))
    frame = TF.resize(frame, [SIZE, SIZE])
    return TF.hflip(frame) if random.random() < 0.5 else frame


def guided_theta() -> Tensor:
    """Horizontal flip p .5 and a zoom-in crop of scale U(.5,1)."""
    scale, sign = random.uniform(0.5, 1), random.choice((-1, 1))
    x, y = (2 * random.uniform(0, 1 - scale) + scale - 1 for _ in range(2))
    return torch.tensor([[sign * scale, 0, x], [0, scale, y]])


def photometric(frame: Image.Image, blur: float, solarise: float) -> Image.Image:
    """Shadow, jitter, grey, blur, solarise."""
    if random.random() < 0.8:
        frame = shadow(frame)
    if random.random() < 0.8:
        frame = JITTER(frame)
    if random.random() < 0.2:
        frame = TF.to_grayscale(frame, 3)
    if random.random() < blur:
        frame = frame.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
    return ImageOps.solarize(frame) if random.random() < solarise else frame


def shadow(frame: Image.Image) -> Image.Image:
    """Painted quadrilaterals or a smooth change of gamma."""
    x = np.array(frame).astype(np.float64)
    height, width = x.shape[:2]
    if random.random() < 0.75:
        mask = np.zeros((height, width))
        for _ in range(random.randint(3, 6)):
            first, third = ((random.uniform(0, width), random.uniform(0, height)) for _ in range(2))
            second, fourth = ((x + random.uniform(-0.5, 0.5) * width, y + random.uniform(-0.5, 0.5) * height)
                              for x, y in (first, third))
            points = np.clip([first, second, third, fourth], 0, [width - 1, height - 1]).astype(np.int32)
            cv2.fillConvexPoly(mask, cv2.convexHull(points), 1)
        if random.random() < 0.8:
            kernel = random.choice((3, 5, 7, 9))
            mask = cv2.GaussianBlur(mask, (kernel, kernel), random.uniform(7, 12))
        x = (x - x.min()) / max(x.max(), 1)
        gamma = random.uniform(0.5, 1) if random.random() < 0.5 else random.uniform(1, 1.5)
        x = x * (1 - mask[..., None]) + x ** gamma * mask[..., None]
    else:
        waves = [sum(np.cos(2 * np.pi * random.randint(1, 4) * np.arange(n) / n + random.uniform(0, 2 * np.pi))
                     for _ in range(2)) for n in (width, height)]
        g = (waves[0][None, :] + waves[1][:, None]) / 2
        g = (g - g.min()) / (g.max() - g.min())
        x = (x / 255) ** np.where(g >= 0.5, 2 * g, g + 0.5)[..., None]
    return Image.fromarray((255 * x).astype(np.uint8))


def liquid_map(height: int, width: int) -> np.ndarray:
    """Where each pixel takes its value from, [H,W,2]."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    pixels = np.stack([x, y], -1)
    for _ in range(8):
        px, py = (random.randint(int(-0.2 * side), int(1.2 * side)) for side in (width, height))
        offset = np.array([random.randint(12, 24) * random.choice((-1, 1)) for _ in range(2)])
        distance = np.sqrt((x - px) ** 2 + (y - py) ** 2)
        pixels += offset * np.clip(1 - distance / 100, 0, 1)[..., None]
    return pixels


def lab_target(frames: list[Image.Image]) -> Tensor:
    """Lab of all frames, a and b clipped and rescaled together."""
    lab = np.stack([cv2.cvtColor(np.array(frame), cv2.COLOR_RGB2LAB) for frame in frames]).astype(np.float32) / 255
    ab = lab[..., 1:]
    ab = np.clip(ab, ab.mean() - 3 * ab.std(), ab.mean() + 3 * ab.std())
    if ab.max() - ab.min() >= 1 / 256:
        ab = (ab - ab.min()) / (ab.max() - ab.min())
    return torch.from_numpy(np.concatenate([lab[..., :1], ab], -1)).permute(0, 3, 1, 2).contiguous()


def edge_weight(image: np.ndarray) -> Tensor:
    """Walk every 16th column and row both ways and stamp isolated edge pixels."""
    height, width = image.shape[:2]
    edges = cv2.Canny(cv2.GaussianBlur(cv2.resize(image, (width // 2, height // 2)), (5, 5), 3), 100, 200)
    H, W = edges.shape
    edges[:int(0.1 * H)] = edges[H - int(0.1 * H):] = 0
    edges[:, :int(0.1 * W)] = edges[:, W - int(0.1 * W):] = 0
    mask = np.zeros((H, W), np.float32)

    def walk(line: list[tuple[int, int]]) -> None:
        free = 0
        for number, (j, i) in enumerate(line):
            if edges[j, i] == 0:
                free += 1
                continue
            if free > (16 if free == number else 17) and j >= 4 and i >= 4:  # at a line's start all free pixels count
                mask[j - 4:j + 4, i - 4:i + 4] = 1
            free = 0

    for i in range(0, W, 16):
        column = [(j, i) for j in range(H)]
        walk(column)
        walk(column[::-1])
    for j in range(0, H, 16):
        row = [(j, i) for i in range(W)]
        walk(row)
        walk(row[::-1])
    return torch.from_numpy(1 + 4 * cv2.resize(mask, (width, height)))


def to_tensor(frames: list[Image.Image]) -> Tensor:
    """PIL images to float [T,3,H,W] in [0,1]."""
    return torch.stack([TF.to_tensor(frame) for frame in frames])
