"""ColorNet: frames to the local and global features of their 8x8-pixel cells (DESIGN section 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet import residual_stage
from utils.errors import UserError
from utils.feature_spec import FEATURE_KEYS
from utils.images import imagenet_normalise

# Channels of the stem and layer1, of layer2, of layer3, and of a branch: layer4 alone, or each half of it.
SIZES = {"L": (64, 128, 256, 512), "M": (48, 96, 192, 256), "S": (32, 64, 128, 128)}


class Features(NamedTuple):
    """Feature maps [N,C,h,w] with h = H/8, w = W/8, of unit length over C; None where a branch was not asked for.

    `q_*` have the heads' FEATURE_DIM channels and serve the losses; `color` and `cls` have the branch's channels and
    serve label propagation.
    """

    q_color: Tensor | None
    q_cls: Tensor | None
    color: Tensor | None
    cls: Tensor | None


class ColorNet(nn.Module):
    """One trunk; its last stage holds the local branch and, with a global head, the input of the global one.

    The trunk is an 18-layer residual network of output stride 8. Submodule names are those of released weights.

    Args:
        size: "L", "M" or "S".
        has_global: whether `layer5`, `layer6` and `query_cls` exist (the training config's `is_dul`).
        stem_kernel: kernel of the first convolution, odd [pixels].
        feature_dim: channels of the two heads.
    """

    def __init__(self, *, size: str, has_global: bool, stem_kernel: int, feature_dim: int):
        super().__init__()
        stem, second, third, branch = SIZES[size]
        self.conv1 = nn.Conv2d(3, stem, stem_kernel, stride=2, padding=stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(stem, stem)
        self.layer2 = residual_stage(stem, second, stride=2)
        self.layer3 = residual_stage(second, third)
        self.layer4 = residual_stage(third, 2 * branch if has_global else branch)
        self.has_global = has_global
        heads = "both heads" if has_global else "the local head alone"
        self.shape = f"size {size} with {heads}, a stem of {stem_kernel}x{stem_kernel} and {feature_dim} channels"
        self.branch_channels = branch
        self.query_color = _head(branch, feature_dim)
        if has_global:
            self.layer5 = residual_stage(branch, branch)
            self.layer6 = residual_stage(branch, branch)
            self.query_cls = _head(branch, feature_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, frames: Tensor, *, local: bool = True, dense: bool | None = None) -> Features:
        """Normalised frames [N,3,H,W] to the features that the losses and propagation use.

        Args:
            frames: RGB by `utils.images.imagenet_normalise`; H and W multiples of 8.
            local: compute `q_color` and `color`.
            dense: compute `q_cls` and `cls`; by default whether the model has them.
        """
        color, cls = self.branches(frames, local=local, dense=self.has_global if dense is None else dense)
        unit = lambda x: None if x is None else F.normalize(x, dim=1)
        return Features(q_color=unit(None if color is None else self.query_color(color)),
                        q_cls=unit(None if cls is None else self.query_cls(cls)), color=unit(color), cls=unit(cls))

    def branches(self, frames: Tensor, *, local: bool, dense: bool) -> tuple[Tensor | None, Tensor | None]:
        """Frames [N,3,H,W] to the maps before heads and normalisation: local and global, [N,branch,h,w] each."""
        if dense and not self.has_global:
            raise ValueError("this model was built without a global head (is_dul false)")
        x = self.maxpool(self.relu(self.bn1(self.conv1(frames))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # one branch's channels after the other's
        split = self.branch_channels
        return (x[:, :split] if local else None, self.layer6(self.layer5(x[:, split:])) if dense else None)

    def embed(self, frames: Tensor, key: str) -> Tensor:
        """Normalised frames [N,3,H,W] to the propagation feature `color`, `cls` or `merge`, unit float32 [N,C,h,w]."""
        maps = self.branches(frames, local=key != "cls", dense=key != "color")
        parts = [F.normalize(x.float(), dim=1) for x in reversed(maps) if x is not None]
        return F.normalize(torch.cat(parts, dim=1), dim=1) if len(parts) > 1 else parts[0]


class Branches(nn.Module):
    """A ColorNet, in eval mode, as what propagation takes: frames to its feature "color", "cls" or "merge".

    `UserError` for another `key`, and for the last two without a global head.
    """

    def __init__(self, model: ColorNet, key: str):
        super().__init__()
        if key not in FEATURE_KEYS:
            raise UserError(f"a ColorNet has the features {', '.join(FEATURE_KEYS)}, and TEST.KEY is {key}; those of "
                            "other networks are for infer_vos_dul.py --features")
        if key != "color" and not model.has_global:
            raise UserError(f"feature {key} needs a model trained with is_dul: true, and this one has no global head; "
                            "use TEST.KEY color or another model")
        self.model, self.key = model, key

    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames in [0,1], [N,3,H,W] with H and W multiples of 8, to unit float32 features [N,C,H/8,W/8]."""
        return self.model.embed(imagenet_normalise(frames), self.key)


def _head(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, in_channels, 1), nn.BatchNorm2d(in_channels),
                         nn.ReLU(inplace=True), nn.Conv2d(in_channels, out_channels, 1))
