"""How features are named: TEST.KEY and `--features` (docs/experiments/features.md).

    SPEC  = TERM, or TERMs with + between: their features, concatenated and brought to unit length
    TERM  = [WEIGHT*]NAME: features times WEIGHT (1 where left out)
    NAME  = color, cls or merge: the ColorNet's
          | efficientnet-lite0
          | timm:MODEL[@LAYER][/STRIDE] | torchvision:MODEL@LAYER[/STRIDE]
          | dul[@LAYER] | crw[@LAYER] | vfs[@LAYER] | dino: of a file in the format of that release
"""

from __future__ import annotations

import re
from typing import NamedTuple

FEATURE_KEYS = ("color", "cls", "merge")  # of a ColorNet
RESNET_FORMATS = ("dul", "crw", "vfs")  # released files of ResNets
RANDOM = "random"  # in place of a file: weights as they are initialised
FORMATS = (*RESNET_FORMATS, "dino")
FEATURES_RULE = (f"{', '.join(FEATURE_KEYS)}, efficientnet-lite0, timm:MODEL[@LAYER][/STRIDE], "
                 f"torchvision:MODEL@LAYER[/STRIDE], {', '.join(FORMATS)}, or some of them as WEIGHT*NAME+WEIGHT*NAME")

_TERM = re.compile(r"(?:(?P<weight>\d+(?:\.\d*)?|\.\d+)\*)?(?P<name>(?P<kind>[a-z0-9-]+)(?::(?P<model>[\w.-]+))?"
                   r"(?:@(?P<layer>[\w.]+))?(?:/(?P<stride>\d+))?)")


class Term(NamedTuple):
    """One network's part in the features."""

    name: str  # as it stands in the specification, without the weight
    weight: float
    kind: str  # color, cls, merge, efficientnet-lite0, timm, torchvision, dul, crw, vfs or dino
    model: str  # of timm or torchvision; empty for others
    layer: str | None
    stride: int | None  # [pixels] between features; None: as the network has it


def parse_features(spec: str) -> tuple[Term, ...]:
    """The terms of a specification; `ValueError`, which says what is wrong, for text that is none."""
    terms = tuple(_parse_term(text) for text in spec.split("+"))
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ValueError("each of its names stands there once")
    return terms


def _parse_term(text: str) -> Term:
    match = _TERM.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no name")
    kind, model, layer, stride = match["kind"], match["model"] or "", match["layer"], match["stride"]
    of_library = kind in ("timm", "torchvision")
    if not of_library and kind not in (*FEATURE_KEYS, "efficientnet-lite0", *FORMATS):
        raise ValueError(f"{kind!r} is not known")
    if of_library != bool(model):
        raise ValueError(f"{text!r} lacks its model" if of_library else f"{kind} takes no model")
    if layer and not of_library and kind not in RESNET_FORMATS:
        raise ValueError(f"{kind} has no choice of layers")
    if kind == "torchvision" and not layer:
        raise ValueError(f"{text!r} lacks its layer, such as torchvision:resnet18@layer3")
    if stride and (not of_library or int(stride) not in (4, 8, 16, 32)):
        raise ValueError(f"{text!r} asks for a stride, which is 4, 8, 16 or 32 and of timm or torchvision")
    weight = float(match["weight"] or 1)
    if not weight > 0:
        raise ValueError(f"the weight of {match['name']} is not above 0")
    return Term(match["name"], weight, kind, model, layer, int(stride) if stride else None)


def folder_name(spec: str) -> str:
    """The specification as a part of folder names: `merge+timm:vit@norm` to `merge+timm-vit-norm`."""
    return re.sub(r"[^\w.+-]+", "-", spec)
