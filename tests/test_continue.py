"""`--continue`: whatever ended a run, it goes on to the masks of one that was not ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import infer_vos_dul
from datasets.own_video import open_video
from inference.own_video import own_video_defaults
from inference.pipeline import Job, Pass
from inference.two_way import PredictionStore
from models import load_model
from models.propagation import VideoPropagator, build_propagator
from tests.helpers import released_state
from utils.config import load_settings, load_train_config, resolved
from utils.errors import UserError
from utils.masks import read_mask, write_mask

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_process")]

W, H, LENGTH = 64, 48, 34
PROJECT = Path(infer_vos_dul.__file__).parent
FILES = ("confidence.csv", "contact_sheet.jpg")  # the encoder of overlay.mp4 does not repeat itself to the byte


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A clip of drifting texture, a model, masks of frames 0, 9 and 24 with two objects, the last two overlapping."""
    root, rng = tmp_path_factory.mktemp("clip"), np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, 20, 3), dtype=np.uint8)
    ground = cv2.resize(noise, (W + 2 * LENGTH, H), interpolation=cv2.INTER_CUBIC)
    (root / "frames").mkdir()
    for t in range(LENGTH):
        Image.fromarray(ground[:, 2 * t:2 * t + W]).save(root / f"frames/{t:02d}.png")
    for t, left, k in ((0, 8, 1), (9, 20, 2), (24, 16, 1)):
        mask = np.zeros((H, W), np.uint8)
        mask[12:36, left:left + 28] = k
        write_mask(root / f"{t}.png", mask)
    config = resolved(load_train_config()) | {"model_size": "S"}
    torch.save({"model": released_state("S_color_dul"), "train_config": config}, root / "model.pkl")
    return root


GIVEN = {"forward": ("0", "9", "24"), "both": ("9", "24", "--backward")}


def words(root: Path, out: Path, *given: str, sets: tuple = ()) -> list[str]:
    masks = [f"{word}={root / word}.png" for word in given if word.isdecimal()]
    return ["--resume", f"{root}/model.pkl", "--video", f"{root}/frames", "--mask-output-dir", str(out), "--device",
            "cpu", "--mask", *masks, *(word for word in given if not word.isdecimal()), "--set", "TEST.INPUT_SIZE",
            "48", "TEST.CXT_SIZE", "8", *sets]


def files_in(out: Path) -> dict[str, bytes]:
    names = [*out.glob("merge_vos/frames/*.png"), *(out / "merge_vis" / name for name in FILES)]
    return {path.name: path.read_bytes() for path in names}


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The files of runs that nothing ended."""
    results = {}
    for kind, given in GIVEN.items():
        out = tmp_path_factory.mktemp(kind)
        infer_vos_dul.main(words(root, out, *given))
        results[kind] = files_in(out)
    return results


def stop_after(monkeypatch, frames: int, pass_name: str) -> None:
    """Have Ctrl-C come after so many frames of a pass."""
    original, seen = Pass.carry, []

    def counting(self, *arguments):
        for result in original(self, *arguments):
            seen.append("forward" if self.order.step > 0 else "backward")
            if seen.count(pass_name) == frames:
                os.kill(os.getpid(), signal.SIGINT)
            yield result

    monkeypatch.setattr(Pass, "carry", counting)


@pytest.mark.parametrize(("kind", "pass_name", "frames"), [
    ("forward", "forward", 1), ("forward", "forward", 27), ("both", "backward", 20), ("both", "forward", 12)])
def test_a_run_goes_on_where_ctrl_c_ended_it(root, tmp_path, monkeypatch, whole, kind, pass_name, frames):
    with monkeypatch.context() as patched:
        stop_after(patched, frames, pass_name)
        assert infer_vos_dul.main(words(root, tmp_path, *GIVEN[kind])) == 130
    assert infer_vos_dul.main(words(root, tmp_path, *GIVEN[kind], "--continue")) is None
    assert files_in(tmp_path) == whole[kind]
    assert not list(tmp_path.rglob(".*")), "what the run went on with is gone"


def list_words(root: Path, out: Path, saved: str = "1" * LENGTH) -> list[str]:
    """Two sequences of the clip's frames; a new object comes at frame 9, and all later frames have its mask, too."""
    lines = []
    for name in ("long", "short"):
        (root / name).mkdir(exist_ok=True)
        for t in range(LENGTH if name == "long" else 4):
            if not (root / f"{name}/{t:02d}.png").exists():
                (root / f"{name}/{t:02d}.png").symlink_to(root / f"frames/{t:02d}.png")
            lines.append(f"{saved[t]} {name}/{t:02d}.png {min(t, 9)}.png\n")
    (root / "list.txt").write_text("".join(lines))
    return ["--resume", f"{root}/model.pkl", "--infer-list", "list", "--mask-output-dir", str(out), "--device", "cpu",
            "--write", "confidence", "--set", "DATASET.ROOT", str(root), "TEST.INFER_WH", "[64, 48]",
            "TEST.CXT_SIZE", "4"]


def listed_files(out: Path) -> dict[Path, bytes]:
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.suffix in (".png", ".csv")}


def test_a_sequence_of_a_list_goes_on_where_ctrl_c_ended_it(root, tmp_path, monkeypatch):
    infer_vos_dul.main(list_words(root, tmp_path / "whole"))
    out = tmp_path / "parted"
    with monkeypatch.context() as patched:
        stop_after(patched, 30, "forward")
        assert infer_vos_dul.main(list_words(root, out)) == 130
    with pytest.raises(UserError, match="goes on with the same video"):
        infer_vos_dul.main([*list_words(root, out, saved="01" * LENGTH), "--continue"])
    encoded, put, kept = [], PredictionStore.put, []
    with monkeypatch.context() as patched:
        encode = VideoPropagator.encode
        patched.setattr(VideoPropagator, "encode", lambda self, frames: encoded.extend(frames) or encode(self, frames))
        patched.setattr(PredictionStore, "put", lambda self, *words: kept.append(words[0]) or put(self, *words))
        assert infer_vos_dul.main([*list_words(root, out), "--continue"]) is None
    assert sorted(kept) == [*range(4), *range(30, LENGTH)], "what was done of the first sequence is not done again"
    assert len(encoded) < 20, "nor are frames encoded whose masks brought nothing"
    assert listed_files(out) == listed_files(tmp_path / "whole") and not list(out.rglob(".*"))


def test_a_killed_run_goes_on(root, tmp_path, whole):
    command = [sys.executable, "infer_vos_dul.py", *words(root, tmp_path, *GIVEN["both"]), "--continue"]
    for place in ("merge_vis/.frames.passes/backward", "merge_vis/.frames.passes/forward"):
        process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
        deadline, kept = time.monotonic() + 120, tmp_path / place / f"{20 if place.endswith('backward') else 12}.npz"
        while process.poll() is None and time.monotonic() < deadline and not kept.exists():
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL and kept.exists(), "in the middle of the pass"
    assert infer_vos_dul.main(words(root, tmp_path, *GIVEN["both"], "--continue")) is None
    assert files_in(tmp_path) == whole["both"]
    assert not list(tmp_path.rglob(".*")), "nothing half-written is left"


def test_a_finished_run_is_left_alone_and_another_one_is_refused(root, tmp_path, whole):
    given = GIVEN["forward"]
    infer_vos_dul.main(words(root, tmp_path, *given))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    infer_vos_dul.main(words(root, tmp_path, *given, "--continue"))
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    with pytest.raises(UserError, match="finished with other masks"):
        infer_vos_dul.main(words(root, tmp_path, *given[:2], "--continue"))
    with pytest.raises(UserError, match="KNN 10 -> 3"):
        infer_vos_dul.main(words(root, tmp_path, *given, "--continue", sets=("TEST.KNN", "3")))
    with pytest.raises(UserError, match="goes on with the same video"):
        infer_vos_dul.main(words(root, tmp_path, *given, "--backward", "--continue"))


def test_after_a_correction_a_pass_goes_on_from_there(root, tmp_path, monkeypatch, whole):
    """What an interactive program does: carry, stop, correct, carry on; frames before the correction stay."""
    with monkeypatch.context() as patched:
        stop_after(patched, 30, "forward")
        infer_vos_dul.main(words(root, tmp_path / "command", "0", "9"))
    infer_vos_dul.main(words(root, tmp_path / "command", *GIVEN["forward"], "--continue"))
    masks = {name: data for name, data in files_in(tmp_path / "command").items() if name.endswith(".png")}
    assert masks == {name: data for name, data in whole["forward"].items() if name.endswith(".png")}

    settings = load_settings(overrides=["TEST.INFER_WH", "[64,48]", "TEST.CXT_SIZE", "8"],
                             instead=own_video_defaults(None)).TEST
    model, video = load_model(root / "model.pkl"), open_video(root / "frames")
    given = {t: read_mask(root / f"{t}.png") for t in (0, 9, 24)}
    first = Pass(Job(video, {t: given[t] for t in (0, 9)}), folder=tmp_path / "pass")
    shown = {}
    for result in first.carry(build_propagator(model, settings)):
        shown[result.number] = result.mask
        if result.number == 28:
            break
    second = Pass(Job(video, given), folder=tmp_path / "pass")
    assert second.done == 24
    shown |= {result.number: result.mask for result in second.carry(build_propagator(model, settings))}
    for t in range(LENGTH):
        assert np.array_equal(shown[t], read_mask(tmp_path / f"command/merge_vos/frames/{t:02d}.png")), t
