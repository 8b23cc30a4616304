"""How features are named."""

from __future__ import annotations

import pytest

from utils.config import load_settings
from utils.errors import UserError
from utils.feature_spec import folder_name, parse_features


@pytest.mark.parametrize("spec, wanted", [
    ("merge", [("merge", 1, "merge", "", None, None)]),
    ("color+0.5*cls", [("color", 1, "color", "", None, None), ("cls", 0.5, "cls", "", None, None)]),
    ("merge+1.0*timm:vit_small_patch16_224.dino@blocks.11",
     [("merge", 1, "merge", "", None, None),
      ("timm:vit_small_patch16_224.dino@blocks.11", 1, "timm", "vit_small_patch16_224.dino", "blocks.11", None)]),
    ("2*torchvision:resnet18@layer3/8",
     [("torchvision:resnet18@layer3/8", 2, "torchvision", "resnet18", "layer3", 8)]),
    ("timm:resnet50/16", [("timm:resnet50/16", 1, "timm", "resnet50", None, 16)]),
    (".25*dul@layer3+efficientnet-lite0", [("dul@layer3", 0.25, "dul", "", "layer3", None),
                                           ("efficientnet-lite0", 1, "efficientnet-lite0", "", None, None)])])
def test_terms(spec, wanted):
    assert [tuple(term) for term in parse_features(spec)] == wanted
    assert spec == load_settings(overrides=["TEST.KEY", spec]).TEST.KEY


@pytest.mark.parametrize("spec", [
    "", "merged", "merge+", "+merge", "merge + cls", "0*merge", "-1*merge", "merge*2", "merge+merge", "2*cls+cls",
    "merge@layer3", "merge/8", "timm", "timm:", "timm:x@", "timm:x/7", "timm:x/", "torchvision:resnet18", "crw:x",
    "dino@layer3", "crw/8", "timm:../x", "efficientnet-lite0@_blocks.10", "nan*merge", "1e3*merge"])
def test_what_is_no_name_is_refused(spec):
    with pytest.raises(ValueError):
        parse_features(spec)
    with pytest.raises(UserError, match=r"TEST\.KEY must be text, .*merge.*timm"):
        load_settings(overrides=["TEST.KEY", spec])


def test_folders_are_named_by_what_every_system_takes():
    assert [folder_name(spec) for spec in ("merge", "merge+0.5*timm:vit@blocks.3/8")] == \
        ["merge", "merge+0.5-timm-vit-blocks.3-8"]
