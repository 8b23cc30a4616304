"""A model file to hand on: half the size, the same network, and it says what made it."""

from __future__ import annotations

import json

import pytest
import torch

from models import load_model
from tests.helpers import released_state
from tools.publish_model import main
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import load_settings, load_train_config, resolved
from utils.errors import UserError


@pytest.fixture
def trained(tmp_path):
    """What the training command leaves, with its optimiser's state."""
    settings = resolved(load_settings(overrides=["DATASET.ROOT", "/home/somebody/data",
                                                 "DATASET.STILLS", "/home/somebody/stills"]))
    provenance = {"data": {"source": "/home/somebody/data", "videos": 48}, "seed": 777, "epoch": 3}
    save_checkpoint(tmp_path / "final.pth", {
        "model": released_state("S_color_dul"), "train_config": resolved(load_train_config()) | {"model_size": "S"},
        "settings": settings, "provenance": provenance, "training": {"optimiser": {"state": torch.zeros(1_000_000)}}})
    return tmp_path / "final.pth"


def test_it_is_half_as_large_and_says_what_made_it(trained, tmp_path):
    (tmp_path / "results-val.json").write_text(json.dumps({"global": {"J&F-Mean": 0.7, "J-Mean": 0.6, "F-Mean": 0.8}}))
    (tmp_path / "run.json").write_text(json.dumps({"method": {"KNN": 10, "model_sha256": "ab"}}))
    out = tmp_path / "out.pth"
    main([str(trained), "--out", str(out), "--source", "48 clips", "--score", str(tmp_path / "results-val.json")])
    assert out.stat().st_size < 9e6
    contents = read_checkpoint(out)
    assert "somebody" not in str({key: value for key, value in contents.items() if key != "model"})
    assert contents["provenance"] == {"data": {"source": "48 clips", "videos": 48}, "seed": 777, "epoch": 3}
    assert contents["scores"] == [{"J&F": 0.7, "J": 0.6, "F": 0.8, "method": {"KNN": 10}}]
    whole, half = load_model(trained).state_dict(), load_model(out).state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(half[name], tensor, rtol=1e-3, atol=1e-4)
        assert half[name].dtype == tensor.dtype


def test_what_cannot_be_published_is_refused(trained, tmp_path):
    words = ["--source", "x", "--out", str(tmp_path / "out.pth")]
    torch.save({"model": released_state("S_color")}, tmp_path / "old.pkl")
    with pytest.raises(UserError, match=r"old\.pkl does not say what made it"):
        main([str(tmp_path / "old.pkl"), *words])
    with pytest.raises(UserError, match=r"--score takes results-val\.json.*none\.json"):
        main([str(trained), *words, "--score", str(tmp_path / "none.json")])
    torch.save({"model": released_state("S_color"), "train_config": {}, "settings": {}, "provenance": {}},
               tmp_path / "odd.pkl")
    with pytest.raises(UserError, match=r"odd\.pkl does not say what made it"):
        main([str(tmp_path / "odd.pkl"), *words])
    (tmp_path / "results-val.json").write_text('{"global": {"J&F-Mean": "high"}}')
    (tmp_path / "run.json").write_text('{"method": []}')
    with pytest.raises(UserError, match="--score takes"):
        main([str(trained), *words, "--score", str(tmp_path / "results-val.json")])
    assert not (tmp_path / "out.pth").exists()
    (tmp_path / "out.pth").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"out\.pth exists.*--overwrite"):
        main([str(trained), *words])
    main([str(trained), *words, "--overwrite"])
    assert load_model(tmp_path / "out.pth")
