"""Released files of related methods: each layout, made here with known numbers, gives a plain forward pass's output."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from models.features import load_features, weight_files
from tests.helpers import golden_weights
from utils.errors import UserError
from utils.images import imagenet_normalise

pytestmark = pytest.mark.slow

FRAMES = torch.rand((1, 3, 48, 80), generator=torch.Generator().manual_seed(0))


def resnet(depth: int = 18) -> dict[str, torch.Tensor]:
    """The state of a ResNet of `torchvision` without its classifier."""
    state = torchvision.models.get_model(f"resnet{depth}").state_dict()
    return golden_weights({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})


def plain_forward(state: dict[str, torch.Tensor], stages: int, padding: str = "constant") -> torch.Tensor:
    """Unit features after `stages` stages of strides 1, 2, 1, 1."""
    def convolve(x, name, stride=1):
        weight = state[name + ".weight"]
        side = weight.shape[2] // 2
        return F.conv2d(F.pad(x, (side,) * 4, mode=padding), weight, stride=stride)

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = F.max_pool2d(norm(convolve(imagenet_normalise(FRAMES), "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage in range(1, stages + 1):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage == 2 and block == 0 else 1
            convolutions = 3 if f"{name}.conv3.weight" in state else 2
            y = x
            for i in range(1, convolutions + 1):
                y = norm(convolve(y, f"{name}.conv{i}", stride if i == convolutions - 1 else 1), f"{name}.bn{i}")
                y = y.relu() if i < convolutions else y
            if f"{name}.downsample.0.weight" in state:
                x = norm(convolve(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x, block = (x + y).relu(), block + 1
    return F.normalize(x, dim=1)


def dul_snapshot(state):
    model = {f"module.fast_net.backbone.{name}": tensor for name, tensor in state.items()}
    model |= {"module.fast_net.emb_q.conv1.weight": torch.rand(512, 512, 1, 1)}
    return {"model": model, "opt": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
            "score": np.float64(0.69), "epoch": 60}


def crw_checkpoint(state):
    model = {f"encoder.model.{name}": tensor for name, tensor in state.items()}
    return {"model": model | {"selfsim_fc.0.weight": torch.rand(128, 512)}, "epoch": 24}


def crw_checkpoint_with_padding_modules(state):
    contents = crw_checkpoint(state)
    contents["model"] = {re.sub(r"(conv\d)\.weight", r"\1.1.weight", name): tensor
                         for name, tensor in contents["model"].items()}
    return contents


def vfs_checkpoint(state):
    """Convolutions and normalisations side by side in modules, as mmcv's ConvModule has them."""
    model = {}
    for name, tensor in state.items():
        name = re.sub(r"(conv\d)\.weight", r"\1.conv.weight", name)
        name = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", name)
        model["backbone." + name.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.bn")] \
            = tensor
    return {"meta": {"mmcv_version": "1.3.0", "epoch": 100}, "state_dict": model | {
        "img_head.projection_fcs.0.conv.weight": torch.rand(512, 512)}}


def encode(spec, file):
    with torch.no_grad():
        return load_features(spec, None, weight_files(spec, [str(file)])).encode(FRAMES)


@pytest.mark.parametrize("spec, write, stages, padding", [
    ("dul", dul_snapshot, 4, "constant"), ("dul@layer3", dul_snapshot, 3, "constant"),
    ("crw", crw_checkpoint, 3, "reflect"), ("crw", crw_checkpoint_with_padding_modules, 3, "reflect"),
    ("vfs", vfs_checkpoint, 3, "constant"), ("vfs@layer4", vfs_checkpoint, 4, "constant")])
def test_a_resnet_18(spec, write, stages, padding, tmp_path):
    state = resnet()
    torch.save(write(state), tmp_path / "file.pth")
    torch.testing.assert_close(encode(spec, tmp_path / "file.pth"), plain_forward(state, stages, padding),
                               rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_resnet_50_of_vfs(tmp_path):
    state = resnet(50)
    torch.save(vfs_checkpoint(state), tmp_path / "r50.pth")
    found = encode("vfs", tmp_path / "r50.pth")
    assert found.shape[1] == 1024
    torch.testing.assert_close(found, plain_forward(state, 3), rtol=1e-3, atol=1e-5)


def test_a_file_may_end_with_the_layer_that_counts(tmp_path):
    state = {name: tensor for name, tensor in resnet().items() if not name.startswith("layer4")}
    torch.save(crw_checkpoint(state), tmp_path / "file.pth")
    assert encode("crw", tmp_path / "file.pth").shape == (1, 256, 6, 10)
    with pytest.raises(UserError, match="lacks layer4"):
        encode("crw@layer4", tmp_path / "file.pth")


def vit(channels: int, patch: int, depth: int = 2, side: int = 4) -> dict[str, torch.Tensor]:
    shapes = {"cls_token": (1, 1, channels), "pos_embed": (1, side**2 + 1, channels), "norm.weight": (channels,),
              "norm.bias": (channels,), "patch_embed.proj.weight": (channels, 3, patch, patch),
              "patch_embed.proj.bias": (channels,)}
    for i in range(depth):
        for name, out, inputs in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes |= {f"blocks.{i}.{name}.weight": (out * channels, inputs * channels),
                       f"blocks.{i}.{name}.bias": (out * channels,)}
        shapes |= {f"blocks.{i}.norm{n}.{part}": (channels,) for n in (1, 2) for part in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]) or 1)
            + ("norm" in name and name.endswith("weight")) for name, shape in shapes.items()}


def plain_vit(state: dict[str, torch.Tensor], patch: int) -> torch.Tensor:
    """Unit features, attention written out; the position embedding is at hand for 3x5 patches."""
    linear = lambda x, name: x @ state[name + ".weight"].T + state[name + ".bias"]
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], 1e-6)
    x = F.conv2d(imagenet_normalise(FRAMES), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], patch)
    h, w = x.shape[2:]
    x = torch.cat([state["cls_token"][0], x[0].flatten(1).T])  # [1+hw,C]
    places, grid = state["pos_embed"][0, :1], state["pos_embed"][0, 1:].T.view(1, x.shape[1], 4, 4)
    grid = F.interpolate(grid, scale_factor=((h + 0.1) / 4, (w + 0.1) / 4), mode="bicubic")
    x = x + torch.cat([places, grid[0].flatten(1).T])
    heads = x.shape[1] // 64
    for i in range(2):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").view(-1, 3, heads, 64).unbind(1)
        attended = [(q[:, n] @ k[:, n].T / 8).softmax(1) @ v[:, n] for n in range(heads)]
        x = x + linear(torch.cat(attended, 1), f"blocks.{i}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
    return F.normalize(norm(x, "norm")[1:].T.view(1, -1, h, w), dim=1)


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("whole", [False, True])
def test_a_vit_of_dino(patch, whole, tmp_path):
    state = vit(128, patch)
    contents = state
    if whole:
        contents = {"student": {}, "teacher": {f"backbone.{name}": tensor for name, tensor in state.items()}
                    | {"head.last_layer.weight": torch.rand(3, 2)}, "epoch": 100}
    torch.save(contents, tmp_path / "dino.pth")
    torch.testing.assert_close(encode("dino", tmp_path / "dino.pth"), plain_vit(state, patch), rtol=1e-3, atol=1e-5)


def test_a_vit_takes_frames_that_are_no_multiple_of_its_patch(tmp_path):
    torch.save(vit(64, 14), tmp_path / "dino.pth")
    assert encode("dino", tmp_path / "dino.pth").shape == (1, 64, 4, 6)


def broken(state, **changes):
    return {name: tensor for name, tensor in (state | changes).items() if tensor is not None}


@pytest.mark.parametrize("spec, contents, message", [
    ("crw", lambda: dul_snapshot(resnet()), "begin with encoder.model"),
    ("dul", lambda: vfs_checkpoint(resnet()), "begin with fast_net.backbone"),
    ("dul", lambda: dul_snapshot(broken(resnet(), **{"layer3.1.conv2.weight": None})), "lacks layer3.1.conv2.weight"),
    ("dul", lambda: dul_snapshot(broken(resnet(), **{"layer3.1.conv9.weight": torch.rand(3)})), "has unknown layer3"),
    ("vfs", lambda: vfs_checkpoint(broken(resnet(), **{"bn1.bias": torch.rand(32)})), "other shapes for bn1.bias"),
    ("crw", lambda: crw_checkpoint(broken(resnet(), **{"bn1.bias": torch.full((64,), torch.nan)})), "NaN"),
    ("dino", lambda: crw_checkpoint(resnet()), "format dino"),
    ("dino", lambda: broken(vit(128, 16), **{"blocks.1.attn.proj.bias": None}), "lacks blocks.1.attn.proj.bias"),
    ("dino", lambda: broken(vit(128, 16), pos_embed=torch.rand(1, 16, 128)), "square pos_embed"),
    ("dino", lambda: {"teacher": {}}, "holds names and tensors"), ("vfs", lambda: [1, 2], "holds names and tensors"),
    ("vfs", lambda: {"state_dict": {"backbone.conv1": np.random.default_rng}}, "not a readable checkpoint")])
def test_files_that_do_not_fit_are_refused_in_words(spec, contents, message, tmp_path):
    torch.save(contents(), tmp_path / "file.pth")
    with pytest.raises(UserError, match=message):
        encode(spec, tmp_path / "file.pth")
