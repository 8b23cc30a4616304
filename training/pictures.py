"""What the objective sees of one clip, as pictures for the log."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import Batch
from losses.color import rebuild_colors, rebuilt_pixels


@torch.no_grad()
def training_pictures(model: nn.Module, batch: Batch, *, temperature: float, color_mode: str,
                      size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Views, edge weights, warped view, target and its reconstruction of the batch's first clip, frames side by side.

    Args:
        model: the network, left in the mode it is in.
        temperature: as in `color_loss`; the pictures are rebuilt without negatives.
        color_mode: what the target's channels are: LAB, AB or RGB.
        size: [width, height] of one frame, pixels.

    Returns:
        name to uint8 RGB [height, T*width, 3].
    """
    color, dense = batch.views["color"], batch.views.get("dense")
    views = {name: value[0].float() for name, value in color.items()}
    frames, target = color["view_a"][:1], color["target"][:1]
    mode = model.training
    model.eval()  # statistics of a single clip must not enter the running ones
    features = model(frames[0], dense=False).q_color[None]
    model.train(mode)
    rebuilt = rebuild_colors(features, target, temperature=temperature, negatives=False)[0]  # [T,(T-1)hw,P]
    others = len(rebuilt) - 1  # frames that each one rebuilds: all but itself, so that i+1 is number i of those of i
    after = [frames[i % others] for i, frames in enumerate(rebuilt.unflatten(1, (others, -1)))]
    pixels = torch.stack([rebuilt_pixels(patches, features, target) for patches in after])
    show = {"view a": _denormalised(views["view_a"]), "target": _as_rgb(views["target"], color_mode),
            "target rebuilt from the frame before": _as_rgb(pixels.roll(1, 0), color_mode)}
    if "edge" in views:
        show["edge weight"] = _bytes((views["edge"] - 1).expand(-1, 3, -1, -1) / 4)
    if "view_b" in views:
        show["view b"] = _denormalised(views["view_b"])
        grid = F.interpolate(views["grid"].permute(0, 3, 1, 2), views["view_a"].shape[-2:], mode="bilinear")
        show["view a warped to b"] = _denormalised(F.grid_sample(views["view_a"], grid.permute(0, 2, 3, 1),
                                                                 padding_mode="reflection", align_corners=False))
    if dense:
        show |= {f"dense {name.replace('_', ' ')}": _denormalised(dense[name][0].float())
                 for name in ("view_1", "view_2")}
    return {f"views/{name}": _strip(frames, size) for name, frames in show.items()}


def _denormalised(frames: Tensor) -> np.ndarray:
    """Normalised [T,3,H,W] to uint8 [T,H,W,3], contrast stretched over the clip."""
    low, high = frames.amin((0, 2, 3), keepdim=True), frames.amax((0, 2, 3), keepdim=True)
    return _bytes((frames - low) / (high - low).clamp_min(1e-6))


def _as_rgb(target: Tensor, color_mode: str) -> np.ndarray:
    """[T,3,H,W] in [0,1] to uint8 RGB; chroma that was stretched stays so, AB is shown at middle lightness."""
    pixels = _bytes(target)
    if color_mode == "RGB":
        return pixels
    if color_mode == "AB":
        pixels[..., 0] = 128
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_LAB2RGB) for frame in pixels])


def _bytes(frames: Tensor) -> np.ndarray:
    return (frames.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def _strip(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.concatenate([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames], axis=1)
