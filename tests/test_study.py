"""The study's arithmetic: its baseline is what the commands do, and each option changes what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.studies import study
from datasets.filelists import find_list, read_evaluation_list
from datasets.synthetic import make_clip, write_davis
from evaluation.davis_metrics import evaluate_sequence
from models import build_model, load_model
from models.propagation import build_propagator
from utils.checkpoint import save_checkpoint
from utils.config import load_settings, load_train_config, resolved

pytestmark = pytest.mark.slow

SIZE = 96, 64


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two labelled clips and an untrained model."""
    root = tmp_path_factory.mktemp("study")
    clips = {name: make_clip(np.random.default_rng(seed), frames=6, size=(128, 80), objects=2)
             for seed, name in enumerate(("first", "second"))}
    write_davis(root / "davis2017", clips)
    path = "davis2017/{}/480p/{}/{:05d}.{}"
    (root / "filelists").mkdir()
    (root / "filelists/labelled.txt").write_text("".join(
        f"1 {path.format('JPEGImages', name, t, 'jpg')} {path.format('Annotations', name, t, 'png')}\n"
        for name in clips for t in range(6)))
    torch.manual_seed(0)
    config = load_train_config("data/configs/train_config_default_S.json")
    save_checkpoint(root / "model.pth", {"model": build_model(config, load_settings()).state_dict(),
                                         "train_config": resolved(config)})
    return root


@pytest.fixture(scope="module")
def sequence(root):
    return read_evaluation_list(find_list("filelists/labelled", str(root)), str(root))[0]


@pytest.mark.parametrize("option, settings", [
    ("colornet", {}), ("bilateral", {"UPSAMPLE": "bilateral"}), ("color+radius 6", {"KEY": "color", "RADIUS": 6}),
    ("cls+k 5+temperature 0.1", {"KEY": "cls", "KNN": 5, "TEMP": 0.1}), ("gaps", {"CUSTOM_INTERVAL": True}),
    ("stretch", {"STRETCH": True}),
    ("bilateral+stretch+background 0.9", {"UPSAMPLE": "bilateral", "STRETCH": True, "BACKGROUND": 0.9})])
def test_options_that_the_product_has_score_as_its_masks_do(root, sequence, option, settings):
    model = load_model(root / "model.pth")
    test = dataclasses.replace(load_settings().TEST, INFER_WH=list(SIZE), **settings)
    propagator = build_propagator(model, test)
    frames = list(study.read_video(sequence))
    masks = [propagator.step(frame.image, frame.mask if t == 0 else None) for t, frame in enumerate(frames)]
    expected = evaluate_sequence([frame.mask for frame in frames], masks)
    row = study.score_options(model, sequence, [option], size=SIZE)[0]
    assert (row["J"], row["F"]) == pytest.approx((expected.J[:, 1:-1].mean() * 100, expected.F[:, 1:-1].mean() * 100))


@pytest.mark.parametrize("change", [{"first": "area"}, {"first": "sharp"}, {"stride": 4}])
def test_each_other_option_makes_labels_of_the_right_shape(root, sequence, change):
    model, frames = load_model(root / "model.pth"), list(study.read_video(sequence))[:3]
    options = study.Options(**change)
    maps = list(study.encode(model, frames, options, SIZE))
    features = [study.merge(each, options.cls_share) for each in maps]
    assert features[0].shape[1:] == (SIZE[1] // options.stride, SIZE[0] // options.stride)
    torch.testing.assert_close(features[0].norm(dim=0), torch.ones(features[0].shape[1:]))
    first = study.first_labels(frames[0].mask, [0, 1, 2], tuple(features[0].shape[1:]), options.first)
    torch.testing.assert_close(first.sum(0), torch.ones_like(first[0]))
    for labels in study.carry(features, first, options):
        torch.testing.assert_close(labels.sum(0), torch.ones_like(labels[0]))


def test_shifted_features_lie_between_the_others(root, sequence):
    model, frames = load_model(root / "model.pth"), list(study.read_video(sequence))[:1]
    (coarse, _), (fine, _) = (next(study.encode(model, frames, study.Options(stride=stride), SIZE))
                              for stride in (8, 4))
    torch.testing.assert_close(fine[:, ::2, ::2], coarse, rtol=1e-4, atol=1e-5)


def test_the_command_prints_a_table_and_measures_nothing_twice(root, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [
        "study.py", "--model", f"random={root / 'model.pth'}", "--list", "filelists/labelled", "--root", str(root),
        "--size", "96x64", "--options", "flip", "scales", "backward+guide stride 2",
        "--results", str(root / "rows.jsonl")])
    study.main()
    first = capsys.readouterr()
    assert "half A: first; half B: second" in first.out and "| flip |" in first.out
    study.main()
    again = capsys.readouterr()
    assert again.out == first.out and "0 measured" in again.err


def test_labels_are_kept_by_what_they_depend_on(root, sequence, tmp_path, monkeypatch):
    model, store = load_model(root / "model.pth"), study.LabelStore(tmp_path / "labels", "random-first")
    names = ["colornet", "bilateral", "radius 6+bilateral"]
    first = study.score_options(model, sequence, names, size=SIZE, store=store)
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["random-first", "random-first-radius_6"]
    monkeypatch.setattr(study, "carry", None)
    again = study.score_options(model, sequence, names, size=SIZE, store=store)
    assert [(row["J"], row["F"]) for row in again] == [(row["J"], row["F"]) for row in first]
    some = study.score_options(model, sequence, ["bilateral"], size=SIZE, score_every=5, store=store)
    assert np.isnan(some[0]["J"]), "of six frames the first and the last are left, and these are not scored"


def scores(rows):
    return [(row["J"], row["F"]) for row in rows]


def test_features_are_kept_in_half_precision_by_what_they_depend_on(root, sequence, tmp_path, monkeypatch):
    model, names = load_model(root / "model.pth"), ["colornet", "color+radius 6", "flip"]
    cache = study.FeatureCache(tmp_path / "features", {"weights": "first"})
    plain = study.score_options(model, sequence, names, size=SIZE)
    first = study.score_options(model, sequence, names, size=SIZE, cache=cache)
    assert np.allclose(scores(first), scores(plain), atol=0.5)
    files = list((tmp_path / "features").iterdir())
    assert len(files) == 2, "as they are and mirrored"
    assert {np.load(file, mmap_mode="r").dtype for file in files} == {np.dtype(np.float16)}
    with monkeypatch.context() as patch:
        patch.setattr(study, "encode", None)
        again = study.score_options(model, sequence, names, size=SIZE, cache=cache)
    assert scores(again) == scores(first)
    other = study.FeatureCache(tmp_path / "features", {"weights": "second"})
    study.score_options(model, sequence, ["colornet"], size=SIZE, cache=other)
    study.score_options(model, sequence, ["colornet"], size=(128, 80), cache=cache)
    study.score_options(model, sequence, ["colornet"], size=SIZE, every=2, cache=cache)
    assert len(list((tmp_path / "features").iterdir())) == 5


def test_other_features_take_the_place_of_the_models_own(root, capsys, monkeypatch):
    command = ["study.py", "--model", f"random={root / 'model.pth'}", "--list", "filelists/labelled",
               "--root", str(root), "--size", "96x64", "--cache", str(root / "features"),
               "--results", str(root / "other.jsonl"),
               "--features", "color+torchvision:resnet18@layer2", "--feature-weights", "random", "--options"]
    monkeypatch.setattr("sys.argv", [*command, "k 5"])
    study.main()
    assert "| k 5 |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "cls 0.25"])
    with pytest.raises(study.UserError, match="branches"):
        study.main()


def test_an_unknown_option_is_refused():
    with pytest.raises(study.UserError, match="guess"):
        study.options_of("bilateral+guess")
