"""Released networks of related methods: the formats of their files, and what the files do not say.

| format | file | network | layer | padding |
|---|---|---|---|---|
| dul | a snapshot of dense-ulearn-vos | ResNet-18 | layer4 (its "res4"), 512 channels | zeros |
| crw | a checkpoint of videowalk | ResNet-18 | layer3, 256 channels | reflected |
| vfs | a checkpoint of VFS (mmaction) | ResNet-18 or 50 | layer3, 256 or 1024 channels | zeros |
| dino | DINO's backbone or whole checkpoint | ViT, patches of 8 or 16 | the last, normalised | zeros |

In the ResNets `layer3` and `layer4` have stride 1, without dilation; all take ImageNet's mean and deviation.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from utils.checkpoint import read_weights, refuse_misfits
from utils.errors import UserError

STAGES = ("layer1", "layer2", "layer3", "layer4")
HEAD_CHANNELS = 64  # of one head of attention, in all of DINO's networks


class Format(NamedTuple):
    """How a release names a ResNet's weights."""

    prefix: str  # before the names of its ResNet
    renames: tuple[tuple[str, str], ...]  # regular expressions from its names to torchvision's
    layer: str  # whose output its protocol takes
    padding: Literal["zeros", "reflect"]


RESNETS = {
    "dul": Format("fast_net.backbone.", (), "layer4", "zeros"),
    "crw": Format("encoder.model.", ((r"(conv\d)\.1\.weight$", r"\1.weight"),), "layer3", "reflect"),
    "vfs": Format("backbone.", ((r"conv(\d)\.conv\.", r"conv\1."), (r"conv(\d)\.bn\.", r"bn\1."),
                                (r"downsample\.conv\.", "downsample.0."), (r"downsample\.bn\.", "downsample.1.")),
                  "layer3", "zeros"),
}


def load_resnet(kind: str, file: str | Path, layer: str | None = None) -> tuple[ResNet, str]:
    """The ResNet in a file of a format, in eval mode, and the name of the layer that counts.

    `UserError` where the file has another format or another network.
    """
    rules = RESNETS[kind]
    layer = layer or rules.layer
    if layer not in STAGES:
        raise UserError(f"the layers of {kind} are {', '.join(STAGES)}; got {layer}")
    state = {}
    for name, tensor in read_weights(file).items():
        name = name.replace("module.", "")
        if name.startswith(rules.prefix):
            name = name.removeprefix(rules.prefix)
            for pattern, replacement in rules.renames:
                name = re.sub(pattern, replacement, name)
            state[name] = tensor
    if not state:
        raise UserError(f"a file of format {kind} has names that begin with {rules.prefix}; {file} has none; give its "
                        "format as the name of the features")
    used = STAGES[:STAGES.index(layer) + 1]
    blocks = [len({name.split(".")[1] for name in state if name.startswith(stage + ".")}) for stage in STAGES]
    network = ResNet(Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock, [max(n, 1) for n in blocks])
    for stage in (network.layer3, network.layer4):
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = rules.padding
    parts = tuple(part + "." for part in ("conv1", "bn1", *used))
    state = {name: tensor for name, tensor in state.items() if name.startswith((*parts, "layer")) or "." not in name}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(STAGES[len(used):])}
    refuse_misfits(state, {name: tensor for name, tensor in network.state_dict().items() if name.startswith(parts)},
                   file)
    network.load_state_dict(state, strict=False)
    return network.eval(), layer


def load_fitting(network: nn.Module, state: dict[str, Tensor], file: str | Path) -> None:
    """Fill a network from a state dict whose names may stand behind a common prefix; its classifier may be another.

    `UserError` where names or shapes differ.
    """
    wanted = network.state_dict()
    for prefix in ("module.", "backbone.", "encoder.", "model."):
        if state and not set(state) & set(wanted):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    last = ("fc.", "head.", "heads.", "classifier.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(last)}
    refuse_misfits(state, {name: tensor for name, tensor in wanted.items() if not name.startswith(last)}, file)
    network.load_state_dict(state, strict=False)


class VisionTransformer(nn.Module):
    """DINO's: frames to the normalised tokens of the last block, the class token first (Dosovitskiy et al., 2021).

    Submodule names are those of released weights.

    Args:
        channels, depth: of tokens, and how many blocks.
        patch: [pixels] a side.
        places: tokens that the position embedding was trained for, the class token among them.
    """

    def __init__(self, channels: int, depth: int, patch: int, places: int):
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, channels, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, channels))
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised frames [N,3,H,W], H and W multiples of the patch, to tokens [N,1+hw,C]."""
        patches = self.patch_embed["proj"](frames)  # [N,C,h,w]
        tokens = torch.cat([self.cls_token.expand(len(frames), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return self.norm(self.blocks(tokens + self._positions(*patches.shape[2:])))

    def _positions(self, h: int, w: int) -> Tensor:
        """The position embedding [1,1+hw,C], resized to a map of another size."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (h, w) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        # The release resizes by factors, a tenth of a cell larger so that rounding does not lose a cell.
        grid = F.interpolate(grid, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    """Attention and a two-layer network, each after a normalisation and beside a shortcut: [N,n,C] to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(channels, 3 * channels), "proj": nn.Linear(channels, channels)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, 4 * channels), "fc2": nn.Linear(4 * channels, channels)})

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N,n,C] to tokens."""
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, -1, HEAD_CHANNELS)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # [N,heads,n,64]
        x = x + self.attn["proj"](attended.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def load_dino(file: str | Path) -> VisionTransformer:
    """The ViT in a file of DINO, its backbone or the teacher of a whole checkpoint, in eval mode.

    `UserError` where the file has another format or another network.
    """
    state = {name.replace("module.", "").removeprefix("backbone."): tensor
             for name, tensor in read_weights(file).items()}
    proj, places = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if proj is None or proj.ndim != 4 or proj.shape[2] != proj.shape[3] or places is None or places.ndim != 3 \
            or math.isqrt(places.shape[1] - 1) ** 2 != places.shape[1] - 1 or len(proj) % HEAD_CHANNELS:
        raise UserError(f"a file of format dino holds a ViT with patch_embed.proj.weight and a square pos_embed; "
                        f"{file} does not; give its format as the name of the features")
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    network = VisionTransformer(len(proj), depth, proj.shape[2], places.shape[1])
    load_fitting(network, state, file)
    return network.eval()
