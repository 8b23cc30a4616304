"""Synthetic videos with exact masks: textured objects that move, turn, grow, change light and hide one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.masks import write_mask
from utils.overlay import write_jpeg

JPEG_QUALITY = 92


class Clip(NamedTuple):
    """A synthetic video: `frames` uint8 RGB [T,H,W,3] and `masks` uint8 [T,H,W], 0 background, 1, 2, ... objects."""

    frames: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class _Sprite:
    """A textured shape and its motion; times run from 0 to 1 over the clip."""

    texture: np.ndarray  # float RGB [S,S,3] in [0,1]
    shape: np.ndarray  # coverage [S,S] in [0,1]
    start: np.ndarray  # centre (x, y) in shares of the frame
    travel: np.ndarray  # what the centre moves by over the clip
    turn: float  # [degrees] over the clip
    growth: float  # scale at the end; 1 at the beginning
    appears: float  # time before which it is not there

    def place(self, time: float, width: int, height: int) -> np.ndarray:
        """The affine map 2x3 from sprite to frame pixels at `time`."""
        size, scale = len(self.shape), self.growth**time
        centre = (self.start + self.travel * time) * (width, height)
        matrix = cv2.getRotationMatrix2D((size / 2, size / 2), self.turn * time, scale)
        matrix[:, 2] = matrix[:, 2] + (centre - size / 2)
        return matrix


def make_clip(rng: np.random.Generator, *, frames: int, size: tuple[int, int], objects: int,
              late: bool = False) -> Clip:
    """Render a clip.

    Args:
        rng: the source of everything random in it.
        frames: T.
        size: (width, height) [pixels].
        objects: number of labelled objects, drawn in order, so that later ones hide earlier ones.
        late: the last object appears after a third of the clip.
    """
    width, height = size
    background = _texture(rng, int(1.5 * max(size)))
    pan = rng.uniform(0, 0.3 * max(size), (2, 2))
    sprites = [_sprite(rng, size, appears=0.34 if late and i == objects - 1 else 0) for i in range(objects)]
    occluder = _sprite(rng, size, appears=0.0)  # hides objects and has no label
    gain, tint = rng.uniform(0.6, 1.4), rng.uniform(-0.12, 0.12, 3)
    pictures, masks = [], []
    for time in np.linspace(0, 1, frames):
        x, y = (pan[0] + (pan[1] - pan[0]) * time).astype(int)
        picture, mask = background[y:y + height, x:x + width].copy(), np.zeros((height, width), np.uint8)
        for label, sprite in enumerate([*sprites, occluder], start=1):
            if time < sprite.appears:
                continue
            matrix = sprite.place(time, width, height)
            cover = cv2.warpAffine(sprite.shape, matrix, size)
            colors = cv2.warpAffine(sprite.texture, matrix, size, borderMode=cv2.BORDER_REFLECT)
            picture += (colors - picture) * cover[..., None]
            mask[cover > 0.5] = label if sprite is not occluder else 0
        light = gain**time * (1 + 0.25 * time * np.linspace(-1, 1, width))[None, :, None] + tint * time
        pictures.append((np.clip(picture * light, 0, 1) * 255).astype(np.uint8))
        masks.append(mask)
    return Clip(np.stack(pictures), np.stack(masks))


def write_video(folder: Path, frames: np.ndarray) -> None:
    """Write frames uint8 RGB [T,H,W,3] as `folder/00000.jpg`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(frames):
        write_jpeg(folder / f"{t:05d}.jpg", frame, JPEG_QUALITY, sync=False)


def write_davis(root: Path, clips: dict[str, Clip]) -> None:
    """Write labelled clips in DAVIS-2017's layout: frames, palette masks and the list of sequences."""
    for name, clip in clips.items():
        write_video(root / "JPEGImages/480p" / name, clip.frames)
        for t, mask in enumerate(clip.masks):
            write_mask(root / "Annotations/480p" / name / f"{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in clips))


def _sprite(rng: np.random.Generator, size: tuple[int, int], appears: float) -> _Sprite:
    side = int(rng.uniform(0.35, 0.6) * min(size))
    start = rng.uniform(0.2, 0.8, 2)
    towards = rng.uniform(0.2, 0.8, 2)
    return _Sprite(_texture(rng, side), _blob(rng, side), start, towards - start, turn=rng.uniform(-90, 90),
                   growth=rng.uniform(0.7, 1.5), appears=appears)


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Float RGB [side,side,3] in [0,1]: noise of several scales between a few colours, with spots of others."""
    field = sum(cv2.resize(rng.random((n, n)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC) / n**0.4
                for n in (3, 6, 12, max(13, side // 6)))
    field = (field - field.min()) / (field.max() - field.min())
    colors = rng.random((4, 3)).astype(np.float32)
    position = field * (len(colors) - 1)
    lower = np.minimum(position.astype(int), len(colors) - 2)
    share = (position - lower)[..., None]
    texture = colors[lower] * (1 - share) + colors[lower + 1] * share
    for _ in range(side // 6):
        centre, radius = rng.integers(0, side, 2), int(rng.integers(2, max(3, side // 14)))
        cv2.circle(texture, tuple(map(int, centre)), radius, rng.random(3).tolist(), -1, cv2.LINE_AA)
    return texture


def _blob(rng: np.random.Generator, side: int) -> np.ndarray:
    """Coverage [side,side] in [0,1] of a smooth closed shape."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = 0.32 + sum(rng.uniform(0, 0.1 / n) * np.cos(n * angles + rng.uniform(0, 6.3)) for n in (2, 3, 4))
    points = side / 2 + radius[:, None] * side * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cover = np.zeros((side, side), np.float32)
    cv2.fillPoly(cover, [(points * 16).astype(np.int32)], 1.0, cv2.LINE_AA, shift=4)
    return cover
