"""The networks as torch.hub gives them."""

from __future__ import annotations

import pytest
import torch

import hubconf
from models import load_model
from utils.config import REPOSITORY, SHIPPED_MODEL
from utils.errors import UserError


def test_the_hub_gives_the_bundled_model():
    model = torch.hub.load(str(REPOSITORY), "colornet_s", source="local", pretrained=True)
    frames = torch.rand((1, 3, 32, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.embed(frames, "merge"), load_model(SHIPPED_MODEL).embed(frames, "merge"))


@pytest.mark.parametrize("name, channels, has_global", [("s", 128, True), ("m", 256, True), ("l", 512, False)])
def test_sizes_without_weights(name, channels, has_global):
    model = getattr(hubconf, f"colornet_{name}")()
    assert (model.branch_channels, model.has_global, model.training) == (channels, has_global, False)


def test_weights_that_do_not_come_along_are_refused():
    with pytest.raises(UserError, match=r"size L.*colornet_s"):
        hubconf.colornet_l(pretrained=True)
