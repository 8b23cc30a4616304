"""The two recipes of DESIGN section 5: from the frames of a clip to the views that the losses compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.edges import pack_contours, unpack_weights
from datasets.geometry import MAX_ANGLE, apply_theta, color_frame, crop_frame, draw_crop, draw_theta, theta_grid
from datasets.lab import channels_first, color_levels, values_of
from datasets.liquid import apply_map, draw_pulls, liquid_map, sampling_grid
from datasets.photometric import photometric
from utils.images import imagenet_normalise

FEATURE_STRIDE = 8  # one grid point a feature
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])


@dataclass(frozen=True)
class ViewGeometry:
    """What both recipes share. `size` S is the side of every view [pixels]."""

    size: int
    short_range: tuple[int, int]
    random_crop: bool
    guided_flip: bool
    zoom_range: tuple[float, float] | None


@dataclass(frozen=True)
class ColorViews:
    """Views A and B of a clip, B's sampling grid, A's colour target and edge weights; only what a switch asks for."""

    geometry: ViewGeometry
    color_mode: str
    clip_lab: bool
    augment: bool
    shadow: bool
    liquid: bool
    edge: bool
    consistency: bool
    turned: bool  # the frames are rotated already

    def __call__(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """T frames uint8 [H,W,3] to a sample's `view_a`, `levels`, `values`, `contours`, `view_b`, `grid`."""
        short_side = int(rng.integers(*self.geometry.short_range))
        plain = np.stack([self._free_frame(frame, short_side, rng) for frame in frames])
        view_a = [self._photometric(frame, rng, blur=0.2, solarise=0) for frame in plain]
        levels, values = color_levels(plain, self.color_mode, self.clip_lab)
        views = {"view_a": channels_first(view_a), "levels": levels, "values": values}
        if self.edge:
            views["contours"] = pack_contours(view_a)
        if self.consistency:
            view_b = [self._photometric(frame, rng, blur=0.3, solarise=0.1) for frame in plain]
            warp = self._liquid if self.liquid and rng.random() < 0.5 else self._guided
            view_b, grid = warp(view_b, rng)
            views |= {"view_b": channels_first(view_b), "grid": torch.from_numpy(grid)}
        return views

    def _free_frame(self, frame: np.ndarray, short_side: int, rng: np.random.Generator) -> np.ndarray:
        vertical_flip = rng.random() < 0.3
        angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE) if not self.turned and rng.random() < 0.5 else 0
        crop = draw_crop(rng, random_origin=self.geometry.random_crop) if rng.random() < 0.7 else WHOLE
        return color_frame(frame, short_side, self.geometry.size, vertical_flip=vertical_flip, angle=angle, crop=crop,
                            horizontal_flip=rng.random() < 0.5)

    def _photometric(self, frame: np.ndarray, rng: np.random.Generator, *, blur: float, solarise: float) -> np.ndarray:
        if not self.augment:
            return frame
        return photometric(frame, rng, shadow=self.shadow, blur_probability=blur, solarise_probability=solarise)

    def _liquid(self, frames: list[np.ndarray], rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """Warp each frame by its own liquid map; the grids float32 [T,S/8,S/8,2]."""
        S = self.geometry.size
        maps = [liquid_map(S, S, *draw_pulls(S, S, rng)) for _ in frames]
        grids = np.stack([sampling_grid(pixels, FEATURE_STRIDE) for pixels in maps])
        return [apply_map(frame, pixels) for frame, pixels in zip(frames, maps)], grids

    def _guided(self, frames: list[np.ndarray], rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        """Flip and zoom all frames together; the grids float32 [T,S/8,S/8,2], all the same."""
        theta = draw_theta(rng, flip=self.geometry.guided_flip, zoom_range=self.geometry.zoom_range)
        grid = theta_grid(theta, self.geometry.size // FEATURE_STRIDE)
        return [apply_theta(frame, theta) for frame in frames], np.stack([grid] * len(frames))


@dataclass(frozen=True)
class DenseViews:
    """Views 1 and 2 of a clip for dense unsupervised learning, and the transform from one to the other."""

    geometry: ViewGeometry

    def __call__(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """T frames uint8 [H,W,3] to `view_1`, `view_2` uint8 [T,3,S,S] and `theta` float32 [2,3].

        Features of view 1 sampled at `affine_grid(theta)` lie on those of view 2.
        """
        geometry = self.geometry
        short_side = int(rng.integers(*geometry.short_range))
        origin = rng.random(2) if geometry.random_crop else np.array([0.5, 0.5])
        horizontal_flip = rng.random() < 0.5
        theta = draw_theta(rng, flip=geometry.guided_flip, zoom_range=geometry.zoom_range)
        view_1 = [crop_frame(frame, short_side, geometry.size, origin=origin, horizontal_flip=horizontal_flip)
                  for frame in frames]
        view_2 = [apply_theta(frame, theta) for frame in view_1]
        return {"view_1": channels_first(view_1), "view_2": channels_first(view_2), "theta": torch.from_numpy(theta)}


def finished(views: dict[str, Tensor]) -> dict[str, Tensor]:
    """A branch's views of B clips, small as they left the loader processes, as the objective takes them.

    uint8 `view_*` become the network's normalised input; `levels` and `values` of colours the `target` [B,T,3,S,S];
    `contours` the `edge` weights [B,T,1,S,S]; the other tensors stay.
    """
    side = next(view.shape[-1] for name, view in views.items() if name.startswith("view"))
    made = {name: imagenet_normalise(value) if name.startswith("view") else value for name, value in views.items()}
    if "levels" in made:
        made["target"] = values_of(made.pop("levels"), made.pop("values"))
    if "contours" in made:
        made["edge"] = unpack_weights(made.pop("contours"), side)
    return made
