"""Both configuration files: defaults, derived files, overrides, and what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from pathlib import Path

import pytest

from utils import config
from utils.config import (
    DEFAULT_SETTINGS,
    DEFAULT_TRAIN_CONFIG,
    _describe,
    load_settings,
    load_train_config,
    parse_train_config,
    resolved,
)
from utils.errors import UserError

ABLATIONS = {"rgb": {"color_mode": "RGB"}, "no_augmentation": {"is_aug": False}, "no_labclip": {"is_labclip": False},
             "no_shadow": {"is_shadow": False}, "no_edge": {"is_edge": False}, "two_frames": {"video_len": 2},
             "three_frames": {"video_len": 3}, "four_frames": {"video_len": 4}, "no_negatives": {"is_neg": False},
             "no_consistency": {"space_consistency": False}, "no_liquid": {"is_liquid": False},
             "stem_7x7": {"first_kernal_size": 7}}


def write(path: Path, values) -> Path:
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_defaults_are_the_published_run():
    assert resolved(load_train_config()) == {
        "exp": "benchmark_M", "first_kernal_size": 3, "color_mode": "LAB", "is_dul": True, "is_aug": True,
        "is_shadow": True, "is_liquid": True, "is_edge": True, "is_neg": True, "space_consistency": True,
        "is_labclip": True, "ohem_range": [0, 1], "model_size": "M", "TEMP": 25, "is_cos_lr": True, "video_len": 5}
    settings = load_settings()
    assert (settings.MODEL.LR, settings.MODEL.BETAS, settings.MODEL.EPS) == (1e-4, (0.9, 0.95), 1e-8)
    assert (settings.TRAIN.BATCH_SIZE, settings.TRAIN.NUM_EPOCHS, settings.DATASET.FRAME_GAP) == (8, 300, 2)
    assert (settings.TEST.KNN, settings.TEST.CXT_SIZE, settings.TEST.RADIUS, settings.TEST.TEMP) == (10, 20, 12, 0.05)
    assert (settings.TEST.KEY, settings.TEST.INFER_WH) == ("merge", (864, 480))


def test_every_ablation_states_only_its_difference():
    folder = DEFAULT_TRAIN_CONFIG.parent
    local = resolved(load_train_config(folder / "train_config_color_L.json"))
    assert (local["model_size"], local["is_dul"]) == ("L", False)
    assert {path.stem for path in (folder / "ablations").glob("*.json")} == set(ABLATIONS)
    for name, difference in ABLATIONS.items():
        path = folder / "ablations" / f"{name}.json"
        assert resolved(load_train_config(path)) == local | difference | {"exp": f"color_L_{name}"}
        assert json.loads(path.read_text()).keys() == {"base", "exp"} | difference.keys()


def test_small_config_is_the_default_in_size_s():
    small = resolved(load_train_config(DEFAULT_TRAIN_CONFIG.parent / "train_config_default_S.json"))
    assert small == resolved(load_train_config()) | {"exp": "benchmark_S", "model_size": "S"}


def test_a_base_is_relative_to_the_file_and_may_have_a_base(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.json", {"TEMP": 3, "video_len": 4})
    write(tmp_path / "b.json", {"base": "a.json", "video_len": 7})
    config = load_train_config(write(tmp_path / "sub/c.json", {"base": "../b.json", "is_neg": False}))
    assert (config.TEMP, config.video_len, config.is_neg) == (3, 7, False)


def test_the_defaults_are_read_where_data_is_a_link(tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(DEFAULT_TRAIN_CONFIG.parents[1])
    monkeypatch.setattr(config, "DEFAULT_TRAIN_CONFIG", tmp_path / "data/configs" / DEFAULT_TRAIN_CONFIG.name)
    assert load_train_config(config.DEFAULT_TRAIN_CONFIG) == load_train_config(DEFAULT_TRAIN_CONFIG)


def test_a_base_that_leads_back_is_refused(tmp_path):
    write(tmp_path / "a.json", {"base": "b.json"})
    with pytest.raises(UserError, match="base"):
        load_train_config(write(tmp_path / "b.json", {"base": "a.json"}))


@pytest.mark.parametrize("change, words", [
    ({"model_sise": "S"}, ["model_sise", "model_size"]), ({"is_dul": "yes"}, ["is_dul", '"yes"', "boolean"]),
    ({"is_dul": 1}, ["is_dul"]), ({"model_size": "XL"}, ["model_size", "XL", "L, M, S"]),
    ({"color_mode": "HSV"}, ["color_mode", "HSV", "LAB, RGB, AB"]), ({"ohem_range": [0.9, 0.1]}, ["ohem_range"]),
    ({"ohem_range": [0, 1.5]}, ["ohem_range"]), ({"ohem_range": 1}, ["ohem_range"]),
    ({"first_kernal_size": 4}, ["first_kernal_size", "odd"]), ({"video_len": 1}, ["video_len", "at least 2"]),
    ({"video_len": 2.5}, ["video_len"]), ({"TEMP": 0}, ["TEMP"]), ({"TEMP": float("nan")}, ["TEMP"]),
    ({"exp": "a/b"}, ["exp"]), ({"exp": ".."}, ["exp"]), ({"exp": "a\0b"}, ["exp"]), ({"exp": "x" * 300}, ["exp"]),
    ({"base": 3}, ["base", "3"]), ({"base": "a\0b"}, ["base"])])
def test_bad_train_values_are_named(tmp_path, change, words):
    with pytest.raises(UserError) as error:
        load_train_config(write(tmp_path / "c.json", change))
    assert all(word in str(error.value) for word in ["c.json", *words]), error.value


def test_a_checkpoints_config_must_be_whole():
    values = resolved(load_train_config())
    del values["is_dul"]
    with pytest.raises(UserError, match="is_dul is missing"):
        parse_train_config(values, "file")


@pytest.mark.parametrize("exp", ["../../esc", "/abs", "", "a\\b", ".", "e" * 300])
def test_an_experiment_on_the_command_line_follows_the_files_rule(exp):
    assert load_train_config(exp="mine").exp == "mine"
    with pytest.raises(UserError, match="--exp: exp must be text, a name of at most 200 bytes"):
        load_train_config(exp=exp)


@pytest.mark.parametrize("text", ["{'exp': 1,}", "[1]", '{"TEMP": 1, "TEMP": 2}', '{"TEMP": ' + "9" * 5000 + "}",
                                  '{"TEMP": ' + "9" * 400 + "}", '{"TEMP": ' + "[" * 3000 + "]" * 3000 + "}"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"c\.json"):
        load_train_config(write(tmp_path / "c.json", text))


def test_another_yaml_file_states_only_differences(tmp_path):
    path = write(tmp_path / "own.yaml", "TEST:\n  KNN: 5\nMODEL:\n  LR: 3e-4\n")
    settings = load_settings(path)
    assert (settings.TEST.KNN, settings.MODEL.LR, settings.TEST.RADIUS) == (5, 3e-4, 12)


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbfTEST:\n  KNN: 5\n")
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"TEMP": 3}')
    assert load_settings(tmp_path / "own.yaml").TEST.KNN == 5 and load_train_config(tmp_path / "c.json").TEMP == 3


def test_what_wins_over_what(tmp_path, caplog):
    caplog.set_level("INFO")
    cfg = write(tmp_path / "own.yaml", "TEST: {INFER_WH: [64, 48], KNN: 3}\n")
    test = lambda *arguments, **more: load_settings(*arguments, preset="colornet-best", **more).TEST
    assert (test().INFER_WH, test().UPSAMPLE) == ((1152, 640), "bilateral"), "the preset over the defaults"
    assert test(instead={"TEST.INFER_WH": [0, 0]}).INFER_WH == (0, 0), "what the input asks for over the preset"
    assert test(DEFAULT_SETTINGS, instead={"TEST.INFER_WH": [0, 0]}).INFER_WH == (0, 0)
    assert load_settings(DEFAULT_SETTINGS, instead={"TEST.INFER_WH": [0, 0]}).TEST.INFER_WH == (0, 0)
    assert not caplog.text
    assert test(cfg, instead={"TEST.INFER_WH": [0, 0]}).INFER_WH == (64, 48), "--cfg over both"
    assert "wins over preset colornet-best: TEST.INFER_WH [1152, 640] -> [64, 48], TEST.KNN 10 -> 3" in caplog.text
    assert (test(cfg).KNN, test(cfg).UPSAMPLE) == (3, "bilateral"), "--cfg over the preset, key by key"
    assert test(cfg, ["TEST.KNN", "4"]).KNN == 4, "--set over --cfg"
    assert test(cfg, flags={"TEST.INFER_WH": ("--infer_wh", [32, 32])}).INFER_WH == (32, 32), "flags over --cfg"


def every_setting():
    return [f"{section.name}.{key.name}" for section in fields(load_settings())
            for key in fields(getattr(load_settings(), section.name))]


OTHER_VALUES = {"DATASET.ROOT": "elsewhere", "DATASET.STILLS": "photos", "DATASET.STILLS_SHARE": "0.5",
                "TEST.KEY": "color", "DATASET.CROP_SIZE": "[64, 64]", "MODEL.BETAS": "[0.1, 0.2]",
                "DATASET.SMALLEST_RANGE": "[10, 20]", "TB.IM_SIZE": "[8, 8]", "DATASET.RND_ZOOM_RANGE": "[0.1, 0.2]",
                "TEST.INFER_WH": "[64, 64]", "TRAIN.EMA": "0.5", "TEST.UPSAMPLE": "bilateral",
                "TEST.WINDOW": "square", "TEST.FIRST_IN_RECENT": "once", "TEST.SIZE_MULTIPLES": "[8, 8]",
                "TEST.SIZE_ROUNDING": "down", "TEST.REDUCE": "nearest"}


@pytest.mark.parametrize("key", every_setting())
def test_set_overrides_every_key(key):
    section, name = key.split(".")
    old = getattr(getattr(load_settings(), section), name)
    text = OTHER_VALUES.get(key) or (str(not old).lower() if isinstance(old, bool) else str(old + 1))
    assert getattr(getattr(load_settings(overrides=[key, text]), section), name) != old


def test_former_names_in_checkpoints_files_and_commands_mean_those_of_today(tmp_path):
    (tmp_path / "former.yaml").write_text("TEST: {NORMALISE: true, UPSAMPLE: edge}")
    for test in (load_settings(base={"TEST": {"NORMALISE": True, "UPSAMPLE": "edge"}}).TEST,
                 load_settings(tmp_path / "former.yaml").TEST,
                 load_settings(overrides=["TEST.NORMALISE", "true", "TEST.UPSAMPLE", "edge"]).TEST,
                 load_settings(overrides=["TEST.NORMALISE", "true"],
                               flags={"TEST.UPSAMPLE": ("--upsample", "edge")}).TEST):
        assert (test.STRETCH, test.UPSAMPLE) == (True, "bilateral")


@pytest.mark.parametrize("text", ["/data/set #2", "a: b", "2024", "true", "~", "2024-01-01", "[x", "'quoted'", "&a"])
def test_set_takes_text_as_it_stands(text):
    root = load_settings(overrides=["DATASET.ROOT", text]).DATASET.ROOT
    assert root == text


@pytest.mark.parametrize("words, written", [
    (["DATASET.CROP_SIZE", "128", "128"], "--set DATASET.CROP_SIZE '[128, 128]'"),
    (["TEST.KNN", "3", "MODEL.BETAS", ".9", ".5", "LOG.ITER_TRAIN", "1"], "--set MODEL.BETAS '[.9, .5]'"),
    (["DATASET.ROOT", "/my", "own", "data", "TEST.KNN", "3"], "--set DATASET.ROOT '/my own data'")])
def test_a_value_of_several_words_says_how_it_is_written(words, written):
    with pytest.raises(UserError) as error:
        load_settings(overrides=words)
    assert str(error.value).endswith(written)


@pytest.mark.parametrize("words, named", [
    (["TEST.KNN", "9" * 5000], "TEST.KNN"), (["TEST.KNN", "[" * 500], "TEST.KNN"), (["knn", "3"], "lists every key"),
    (["TEST.KNN", "&a [*a]"], "TEST.KNN"), (["DATASET.ROOT", ""], "ROOT"), (["TEST.KNN", "{1: 2, 1: 3}"], "TEST.KNN"),
    (["TRAIN.BATCHSIZE", "3"], "TRAIN.BATCHSIZE"), (["TRAIN.BATCH_SIZE", "many"], "TRAIN.BATCH_SIZE"),
    (["TRAIN.TASK", "x"], "TRAIN.TASK"), (["MODEL.OPT", "x"], "MODEL.OPT"), (["TEST.KEY", "res4"], "res4"),
    (["TEST.KNN"], "pairs"), (["TEST.KNN", "1", "TEST.KNN", "2"], "twice"), (["TEST.INFER_WH", "[0, 8]"], "infer_wh"),
    (["TEST.INFER_WH", "[100, 64]"], "multiples of 8"), (["MODEL.LR", ".inf"], "MODEL.LR"),
    (["DATASET.CROP_SIZE", "[64, 72]"], "CROP_SIZE")])
def test_bad_overrides_are_named(words, named):
    with pytest.raises(UserError) as error:
        load_settings(overrides=words)
    assert named in str(error.value)


def test_a_flag_and_a_set_must_agree():
    flags = {"TEST.RADIUS": ("--infer_R", 25.0), "TEST.INFER_WH": ("--infer_wh", None)}
    assert load_settings(flags=flags).TEST.RADIUS == 25
    assert load_settings(overrides=["TEST.RADIUS", "25"], flags=flags).TEST.RADIUS == 25
    with pytest.raises(UserError, match="--infer_R and --set"):
        load_settings(overrides=["TEST.RADIUS", "12"], flags=flags)


LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOMB = "a: &a [1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise(LETTERS))


@pytest.mark.parametrize("text", [
    "TEST: 3\n", "a: [\n", "TEST:\n  KNN\n", BOMB, "TEST: &t\n  KNN: *t\n", "TEST:\n  KNN: 1\n  KNN: 2\n",
    "TEST: {KNN: 1}\nTEST: {KNN: 2}\n", "TEST:\n  KNN: " + "9" * 5000, "TEST:\n  KNN: " + "[" * 500,
    "TEST: {? [1] : 2}\n",
    "TEST:\n  KNN: 2024-99-99\n", "a: &a {b: 1}\nTEST:\n  <<: [*a, *a]\n", "DATASET:\n  ROOT: \"a\\0b\"\n", "0\n"],
    ids=lambda text: repr(text)[:20])
def test_broken_yaml_is_named(tmp_path, text):
    with pytest.raises(UserError, match=r"own\.yaml"):
        load_settings(write(tmp_path / "own.yaml", text))


def test_the_command_lists_every_key(capsys):
    _describe()
    shown = capsys.readouterr().out
    assert all(key in shown for key in every_setting()) and "first_kernal_size" in shown
