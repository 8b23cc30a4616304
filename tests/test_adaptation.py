"""Training on the video itself: what it draws, that it learns, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from datasets import build_adaptation_dataset, read_batch
from datasets.clips import DrawnClips
from losses import build_objective
from models import load_model, model_train_config
from tests.helpers import released_state
from training.adaptation import CLIP_FRAMES, Adaptation
from utils.config import load_settings, load_train_config, resolved
from utils.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_process")]

SMALL = ["DATASET.CROP_SIZE", "[64, 64]", "DATASET.SMALLEST_RANGE", "[64, 80]"]
LENGTH = 12


def video(seed: int = 0) -> list[np.ndarray]:
    """A texture that moves two pixels a frame."""
    noise = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    ground = cv2.resize(noise, (144, 96), interpolation=cv2.INTER_CUBIC)
    return [ground[:, 2 * t:2 * t + 112].copy() for t in range(LENGTH)]


@pytest.fixture(scope="module", params=["dul", "local"])
def path(request, tmp_path_factory):
    """A model file, with the global head and without."""
    config = resolved(replace(load_train_config(), model_size="S", is_dul=request.param == "dul"))
    file = tmp_path_factory.mktemp("model") / "model.pkl"
    state = released_state("S_color_dul" if request.param == "dul" else "S_color")
    torch.save({"model": state, "train_config": config}, file)
    return file


def adaptation(path, *overrides: str, steps: int = 2, seed: int = 3) -> Adaptation:
    return Adaptation(load_model(path), path, load_settings(overrides=[*SMALL, *overrides]), steps=steps, seed=seed)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# --- the clips ---

def numbered(total: int, side: int = 4) -> list[np.ndarray]:
    return [np.full((side, side + 2, 3), t, np.uint8) for t in range(total)]


@pytest.mark.parametrize("total", [1, 2, 3, 5, 9, 60])
def test_clips_are_windows_of_the_video_in_any_order(total):
    clips = DrawnClips(numbered(total), total, count=200, length=3, gap=2, short_side=9, rng=np.random.default_rng(0))
    drawn = np.array([[frame[0, 0, 0] for frame in clips.load(i, np.random.default_rng(0))] for i in range(200)])
    strides = np.diff(np.sort(drawn, axis=1), axis=1)
    assert drawn.shape == (200, 3) and (strides == min(2, total // 3)).all()
    assert drawn.min() == 0 and (total > 9 or drawn.max() == total - 1 or total % 3)
    assert total < 3 or len({tuple(np.argsort(row)) for row in drawn}) == 6
    assert clips.names[7] == f"frames {', '.join(map(str, drawn[7]))}"


def test_the_video_is_passed_once_and_large_frames_are_held_small():
    passed = []

    def frames():
        for frame in numbered(50, side=40):
            passed.append(frame)
            yield frame

    clips = DrawnClips(frames(), 50, count=2, length=3, gap=2, short_side=10, rng=np.random.default_rng(1))
    loaded = [frame for i in range(2) for frame in clips.load(i, np.random.default_rng(0))]
    assert {frame.shape for frame in loaded} == {(10, 10, 3)}  # of 40x42
    assert len(passed) == max(frame[0, 0, 0] for frame in loaded) + 1  # what lies behind the last is not decoded


# --- the network ---

def test_it_is_a_copy_that_seed_and_video_decide(path):
    adapt = adaptation(path)
    model = load_model(path)
    one, again = adapt(iter(video()), LENGTH), adapt(iter(video()), LENGTH)  # the second starts anew
    assert same(one, again) and not same(one, model) and not one.training
    assert not same(one, adapt(iter(video(1)), LENGTH))
    assert not same(one, adaptation(path, seed=4)(iter(video()), LENGTH))
    assert not same(one, adaptation(path, "MODEL.LR", "1e-3")(iter(video()), LENGTH))


def test_the_objective_falls_on_the_video(path):
    """Measured on clips and views that training did not see, with the statistics of the batch as in training."""
    adapt = adaptation(path, "MODEL.LR", "1e-3", steps=12)
    settings = load_settings(overrides=SMALL)
    config = replace(model_train_config(path), is_neg=False, video_len=CLIP_FRAMES)
    objective = build_objective(config, settings)

    def loss(model) -> float:
        clips = build_adaptation_dataset(video(), LENGTH, settings, config, clips=6, seed=99)
        views = read_batch(clips, [(0, i) for i in range(6)], torch.device("cpu")).views
        with torch.no_grad():
            return float(objective(model.train(), views, torch.Generator().manual_seed(0)).total)

    before = loss(load_model(path))
    assert loss(adapt(iter(video()), LENGTH)) < 0.9 * before


def test_a_loss_that_is_not_finite_is_refused(path):
    with pytest.raises(UserError, match=r"is not at step \d \(clips .+\); lower MODEL\.LR"):
        adaptation(path, "MODEL.LR", "1e30", steps=4)(iter(video()), LENGTH)


def test_a_step_sees_one_clip_of_four_frames(path, monkeypatch):
    seen = []

    def noting(config, settings):
        objective = build_objective(config, settings)
        return lambda model, views, generator: (seen.append(views["color"]["view_a"].shape),
                                                objective(model, views, generator))[1]

    monkeypatch.setattr("training.adaptation.build_objective", noting)
    adaptation(path, steps=3)(iter(video()), LENGTH)
    assert seen == [(1, CLIP_FRAMES, 3, 64, 64)] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_stays_there(path):
    model = load_model(path, "cuda")
    adapted = Adaptation(model, path, load_settings(overrides=SMALL), steps=2, seed=3)(iter(video()), LENGTH)
    assert next(adapted.parameters()).device.type == "cuda" and not same(adapted, model)
