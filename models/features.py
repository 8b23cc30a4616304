"""The features that carry labels: of a ColorNet, of other networks, or of several together (utils/feature_spec.py).

    features = load_features("merge+efficientnet-lite0", load_model("model.pth"))
    propagator = build_propagator(features, load_settings().TEST)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.colornet import Branches, ColorNet
from utils.errors import UserError
from utils.feature_spec import FEATURE_KEYS, FORMATS, RANDOM, Term, parse_features


class Features(nn.Module):
    """Features of several networks times their weights, concatenated and brought to unit length.

    Maps of coarser strides are resized bilinearly to the finest. Each of the `terms` has its network, a
    `models.propagation.Encoder`.
    """

    def __init__(self, terms: Sequence[Term], networks: Sequence[nn.Module]):
        super().__init__()
        self._terms = tuple(terms)
        self._networks: Iterable[Any] = nn.ModuleList(networks)

    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames in [0,1], [N,3,H,W], to unit float32 features [N,C,h,w]."""
        return combine([network.encode(frames) for network in self._networks], [term.weight for term in self._terms])

    def with_model(self, model: ColorNet) -> Features:
        """The same with another ColorNet; the other networks are shared."""
        return Features(self._terms, [Branches(model, term.kind) if isinstance(network, Branches) else network
                                      for term, network in zip(self._terms, self._networks)])


def combine(maps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Unit features [N,C,h,w] of several networks times their weights to one, of unit length again."""
    if len(maps) == 1:
        return maps[0]
    shape = max((tuple(x.shape[2:]) for x in maps), key=lambda shape: shape[0] * shape[1])
    maps = [x if tuple(x.shape[2:]) == shape else
            F.normalize(F.interpolate(x, shape, mode="bilinear", align_corners=True), dim=1) for x in maps]
    return F.normalize(torch.cat([weight * x for weight, x in zip(weights, maps)], dim=1), dim=1)


def needs_model(spec: str) -> bool:
    """Whether the features are, in part, a ColorNet's."""
    return any(term.kind in FEATURE_KEYS for term in parse_features(spec))


def load_features(spec: str, model: ColorNet | None = None, files: Mapping[str, str] | None = None, *,
                  device: torch.device | str = "cpu") -> Features:
    """The networks that a specification names, in eval mode on `device`.

    Args:
        spec: see `utils.feature_spec`.
        model: the ColorNet, where `needs_model`.
        files: from `weight_files`.

    Raises:
        UserError: a package is missing, a network or a layer is not known, or weights do not fit.
    """
    from models.foreign import load_network  # with torchvision, which takes a second

    files = files or {}
    networks: list[nn.Module] = []
    for term in parse_features(spec):
        if term.kind in FEATURE_KEYS:
            if model is None:
                raise ValueError(f"{term.kind} is a feature of a ColorNet; give it as `model`")
            networks.append(Branches(model, term.kind))
        else:
            networks.append(load_network(term, files.get(term.name)))
    return Features(parse_features(spec), networks).to(device).eval()


def weight_files(spec: str, words: Sequence[str]) -> dict[str, str]:
    """`[NAME=]FILE ...` (`--feature-weights`) to the file, or `random`, of each name that takes one.

    `UserError` for a name that takes none, a file that is not there, and a format without its file.
    """
    names = [term.name for term in parse_features(spec) if term.kind in ("timm", "torchvision", *FORMATS)]
    files: dict[str, str] = {}
    for word in words:
        name, _, file = word.partition("=")
        if name not in names:
            name, file = names[0] if len(names) == 1 else "", word
        if not name or name in files:
            raise UserError(f"--feature-weights is [NAME=]FILE, once for a name of --features that takes weights, here "
                            f"{', '.join(names) or 'none'}; it is {word}")
        if file != RANDOM and not Path(file).is_file():
            raise UserError(f"--feature-weights {file} does not exist; check the path, or write {RANDOM} for none")
        files[name] = file
    missing = [term.name for term in parse_features(spec) if term.kind in FORMATS and term.name not in files]
    if missing:
        raise UserError(f"features {', '.join(missing)} are of a released file; give --feature-weights "
                        + " ".join(f"{name}=FILE" for name in missing))
    return files
