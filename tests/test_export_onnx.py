"""The encoder as ONNX gives what PyTorch gives, whatever the number and size of the frames."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnxruntime
import pytest
import torch

from models import load_model
from models.colornet import Branches
from tests.helpers import called, released_state
from tools import export_onnx
from utils.config import load_train_config, resolved


@pytest.fixture
def local(tmp_path):
    """A released file with the local branch alone."""
    path = tmp_path / "local.pkl"
    config = resolved(load_train_config()) | {"model_size": "S", "is_dul": False}
    torch.save({"model": released_state("S_color"), "train_config": config}, path)
    return path


@pytest.mark.slow
def test_onnx_gives_the_features_of_pytorch(tmp_path):
    out = tmp_path / "encoder.onnx"
    done = called(export_onnx.main, "data/weights/colornet_S.pth", "--out", out)
    assert done.returncode == 0 and "features merge" in done.stdout, done.stderr
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    [frames], [features] = session.get_inputs(), session.get_outputs()
    assert (frames.name, frames.shape) == ("frames", ["N", 3, "8*h", "8*w"])
    assert (features.name, features.shape) == ("features", ["N", 256, "h", "w"])
    encoder = Branches(load_model("data/weights/colornet_S.pth"), "merge")
    for shape in ((1, 3, 8, 8), (1, 3, 64, 96), (3, 3, 120, 56)):
        pictures = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = encoder.encode(pictures).numpy()
        assert np.abs(session.run(None, {"frames": pictures.numpy()})[0] - expected).max() < 1e-5


def test_what_is_wrong_is_said_before_anything_is_written(local, tmp_path, monkeypatch):
    out = tmp_path / "encoder.onnx"
    assert "no global head" in called(export_onnx.main, local, "--out", out, "--features", "merge").stderr
    assert "does not exist" in called(export_onnx.main, tmp_path / "none.pth", "--out", out).stderr
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    assert "pip install -r requirements-onnx.txt" in called(export_onnx.main, local, "--out", out).stderr
    assert not out.exists()
    out.write_text("mine")
    assert "overwritten unasked" in called(export_onnx.main, local, "--out", out).stderr and out.read_text() == "mine"
