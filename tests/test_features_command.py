"""`infer_vos_dul.py --features`: which model and files it takes, what it records, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import infer_vos_dul
from datasets.synthetic import make_clip
from utils.errors import UserError
from utils.masks import read_mask, write_mask

pytestmark = pytest.mark.usefixtures("restored_process")

OTHER = "torchvision:resnet18@layer2"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three frames in a folder, and the first one's mask."""
    root = tmp_path_factory.mktemp("clip")
    drawn = make_clip(np.random.default_rng(0), frames=3, size=(96, 64), objects=2)
    (root / "frames").mkdir()
    for t, frame in enumerate(drawn.frames):
        Image.fromarray(frame).save(root / f"frames/{t}.png")
    write_mask(root / "mask.png", drawn.masks[0])
    return root


def infer(clip, output, *options):
    words = ["--video", clip / "frames", "--mask", clip / "mask.png", "--mask-output-dir", output, "--device", "cpu",
             "--set", "TEST.INPUT_SIZE", 64, *options]
    return infer_vos_dul.main([str(word) for word in words])


def method(folder):
    return json.loads((folder / "run.json").read_text())["method"]


def test_a_sum_with_the_bundled_model(clip, tmp_path):
    spec = f"merge+0.5*{OTHER}"
    assert infer(clip, tmp_path, "--features", spec, "--feature-weights", "random", "--seed", 3) is None
    folder = tmp_path / "merge+0.5-torchvision-resnet18-layer2_vos"
    assert [read_mask(folder / f"frames/{t}.png").shape for t in range(3)] == [(64, 96)] * 3
    said = method(folder)
    assert (said["KEY"], said["feature_weights"], said["seed"]) == (spec, {OTHER: "random"}, 3)
    assert len(said["model_sha256"]) == 64


def test_features_of_another_network_alone_need_no_model(clip, tmp_path, caplog):
    infer(clip, tmp_path, "--features", OTHER, "--feature-weights", "random", "--precision", "bf16")
    assert "model_sha256" not in method(tmp_path / "torchvision-resnet18-layer2_vos")
    assert "the model is" not in caplog.text


@pytest.mark.slow
def test_adapting_trains_the_colornet_of_a_sum(clip, tmp_path):
    infer(clip, tmp_path, "--features", f"color+{OTHER}", "--feature-weights", "random", "--adapt", 1)
    assert method(tmp_path / "color+torchvision-resnet18-layer2_vos")["adapt"] == 1


@pytest.mark.parametrize("options, message", [
    (("--features", OTHER, "--feature-weights", "random", "--resume", "model.pth"), "--resume is of a ColorNet"),
    (("--features", OTHER, "--feature-weights", "random", "--adapt", 2), f"--adapt .*merge[+]{OTHER}"),
    (("--features", "merge", "--set", "TEST.KEY", "cls"), "--features and --set TEST.KEY .*must agree"),
    (("--features", "merged"), "TEST.KEY must be .*efficientnet-lite0"),
    (("--features", "merge", "--feature-weights", "x.pth"), "--feature-weights"),
    (("--features", "dino"), "--feature-weights dino=FILE")])
def test_what_does_not_go_together_is_refused(clip, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        infer(clip, tmp_path / "out", *options)
    assert not list(tmp_path.rglob("*.png"))


def test_the_bound_on_memory_holds_for_their_channels(clip, tmp_path):
    with pytest.raises(UserError, match="max-memory must hold"):
        infer(clip, tmp_path, "--features", OTHER, "--feature-weights", "random", "--max-memory", "10KB")
