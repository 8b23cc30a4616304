"""`infer_vos_dul.py --video`: what it writes, masks given at any frame, both directions, what it refuses, Ctrl-C."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import infer_vos_dul
from datasets.own_video import open_video
from inference.own_video import own_video_defaults, read_job
from inference.pipeline import backward_share
from inference.writer import VideoWriter
from models import load_model
from models.propagation import build_propagator
from tests.helpers import released_state
from utils.config import PRESETS, load_settings, load_train_config, resolved
from utils.errors import UserError
from utils.masks import read_mask, write_mask

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_process")]

PROJECT = Path(infer_vos_dul.__file__).parent
W, H, LENGTH = 128, 96, 12
SMALL = ("TEST.INPUT_SIZE", 96, "TEST.KNN", 5)


def texture(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def draw(places: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames and true masks of a bright block whose left edge is at `places`, outside where it is beyond W."""
    ground, block = texture(0, H, W) // 3, 255 - texture(1, 40, 32) // 3
    frames, masks = [], []
    for x in places:
        frame, mask = ground.copy(), np.zeros((H, W), np.uint8)
        frame[24:64, x:x + 32] = block[:, :max(W - x, 0)]
        mask[24:64, x:x + 32] = 1
        frames.append(frame)
        masks.append(mask)
    return frames, masks


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A model, a clip as folder and as file, and true masks `00000.png` ...: the block moves four pixels a frame."""
    root = tmp_path_factory.mktemp("own")
    frames, masks = draw([8 + 4 * t for t in range(LENGTH)])
    write_clip(root, frames)
    for t, mask in enumerate(masks):
        write_mask(root / f"{t:05d}.png", mask)
    config = resolved(load_train_config()) | {"model_size": "S"}
    torch.save({"model": released_state("S_color_dul"), "train_config": config}, root / "model.pkl")
    return root


def write_clip(root: Path, frames: list[np.ndarray]) -> None:
    (root / "frames").mkdir(exist_ok=True)
    writer = VideoWriter(root / "clip.mp4", (W, H), Fraction(25))
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(root / f"frames/{t}.png")
        writer.write(frame, Fraction(t, 25))
    writer.close()


def words(root: Path, out: Path, *more: object, video: str = "frames", sets: tuple = ()) -> list[str]:
    return list(map(str, ["--resume", root / "model.pkl", "--video", root / video, "--mask-output-dir", out, "--device",
                          "cpu", *more, "--set", *SMALL, *sets]))


def run(root: Path, out: Path, *more: object, **options) -> list[np.ndarray]:
    """The masks of all frames."""
    infer_vos_dul.main(words(root, out, *more, **options))
    return masks_in(out)


def masks_in(out: Path) -> list[np.ndarray]:
    return [read_mask(path) for path in sorted(out.glob("merge_vos/*/*.png"), key=lambda path: int(path.stem))]


def rows_in(out: Path) -> list[dict]:
    with open(out / "merge_vis/confidence.csv", newline="") as file:
        return list(csv.DictReader(file))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


def test_everything_is_written(root, tmp_path):
    run(root, tmp_path, "--mask", root / "00000.png", "--confidence-maps", video="clip.mp4")
    assert [path.name for path in sorted((tmp_path / "merge_vos/clip").iterdir())] == [
        *(f"{t:05d}.png" for t in range(LENGTH)), "run.json"]
    assert Image.open(tmp_path / "merge_vos/clip/00003.png").mode == "P"
    overlay = open_video(tmp_path / "merge_vis/overlay.mp4")
    assert (len(overlay), overlay.size, overlay.rate) == (LENGTH, (W, H), 25)
    source = list(open_video(root / "clip.mp4").frames())
    shown = [np.abs(a.astype(int) - b).max(2) > 40 for a, b in zip(overlay.frames(), source)]
    true = read_mask(root / "00000.png") > 0
    assert shown[0][true].mean() > 0.5 > 0.1 > shown[0][~cv2.dilate(true.astype(np.uint8), np.ones((5, 5))).astype(
        bool)].mean()
    assert Image.open(tmp_path / "merge_vis/contact_sheet.jpg").size[0] > 3 * W
    assert len(list((tmp_path / "merge_vis/confidence").glob("*.jpg"))) == LENGTH
    rows = rows_in(tmp_path)
    assert [(int(row["frame"]), row["name"], row["object"]) for row in rows] == [
        (t, f"{t:05d}", "1") for t in range(LENGTH)]
    assert float(rows[0]["similarity"]) == 1 and all(0 < float(row["similarity"]) <= 1 for row in rows)
    record = json.loads((tmp_path / "merge_vos/run.json").read_text())
    assert record["video"] == str(root / "clip.mp4") and record["method"]["INPUT_SIZE"] == 96
    assert not list(tmp_path.rglob(".*")), "no temporary file is left"


def test_file_and_folder_agree_and_follow_the_object(root, tmp_path):
    by_folder = run(root, tmp_path / "folder", "--mask", root / "00000.png")
    by_file = run(root, tmp_path / "file", "--mask", root / "00000.png", video="clip.mp4")
    assert np.mean([(a == b).mean() for a, b in zip(by_folder, by_file)]) > 0.99
    for t in (2, 4):  # random weights follow it no longer than that
        assert iou(by_folder[t] > 0, read_mask(root / f"{t:05d}.png") > 0) > 0.5


def test_a_program_gets_the_same(root, tmp_path):
    expected = run(root, tmp_path, "--mask", root / "00000.png")
    propagator = build_propagator(load_model(root / "model.pkl"), load_settings(overrides=[
        "TEST.INFER_WH", "[128,96]", "TEST.KNN", "5"], instead=own_video_defaults(None)).TEST)
    frames = open_video(root / "frames").frames()
    masks = [propagator.step(next(frames), read_mask(root / "00000.png")), *map(propagator.step, frames)]
    assert all(np.array_equal(a, b) for a, b in zip(masks, expected, strict=True))


def test_corrections_and_late_objects(root, tmp_path):
    late = np.zeros((H, W), np.uint8)
    late[72:, :40] = 2
    write_mask(tmp_path / "late.png", late)
    plain = run(root, tmp_path / "plain", "--mask", f"0={root / '00003.png'}")  # a wrong first mask
    corrected = run(root, tmp_path / "corrected", "--mask", root / "00003.png", f"5={root / '00005.png'}",
                    "--mask", f"8={tmp_path / 'late.png'}")
    true = [read_mask(root / f"{t:05d}.png") for t in range(LENGTH)]
    assert all(np.array_equal(a, b) for a, b in zip(plain[:5], corrected[:5]))
    assert np.array_equal(corrected[5], true[5])
    for t in (6, 7, 11):
        assert iou(corrected[t] == 1, true[t] == 1) > iou(plain[t] == 1, true[t] == 1) + 0.1
    assert [2 in mask for mask in corrected] == [t >= 8 for t in range(LENGTH)]
    assert iou(corrected[11] == 2, late == 2) > 0.6
    assert {row["object"] for row in rows_in(tmp_path / "corrected")} == {"1", "2"}


def test_backward_fills_what_lies_before_and_blends_what_lies_between(root, tmp_path):
    true = [read_mask(root / f"{t:05d}.png") > 0 for t in range(LENGTH)]
    masks = run(root, tmp_path / "one", "--mask", f"6={root / '00006.png'}", "--backward")
    assert len(masks) == LENGTH and np.array_equal(masks[6], read_mask(root / "00006.png"))
    assert all(iou(masks[t] > 0, true[t]) > 0.6 for t in (0, 5, 7, 11))
    # Wrong at the start, right at the end: the nearer a frame is to the end, the better.
    both = run(root, tmp_path / "both", "--mask", f"0={root / '00003.png'}", f"11={root / '00011.png'}", "--backward")
    alone = run(root, tmp_path / "alone", "--mask", f"0={root / '00003.png'}")
    assert np.array_equal(both[11], read_mask(root / "00011.png"))
    assert iou(both[10] > 0, true[10]) > iou(alone[10] > 0, true[10]) + 0.1
    assert iou(both[1] > 0, alone[1] > 0) > iou(both[10] > 0, alone[10] > 0)
    assert sorted(path.name for path in (tmp_path / "both/merge_vis").iterdir()) == [
        "confidence.csv", "contact_sheet.jpg", "overlay.mp4"]


def test_shares_are_by_distance():
    assert [backward_share(t, {2: None, 6: None, 7: None}) for t in range(2, 8)] == [0, 0.25, 0.5, 0.75, 0, 0]


def test_an_object_that_leaves_is_lost_and_found_again_when_it_returns(root, tmp_path, capsys):
    out_and_back = [40, 60, 80, 100, 120, 128, 128, 128, 128, 120, 100, 80, 60, 40]
    frames, true = draw(out_and_back)
    write_clip(tmp_path, frames)
    write_mask(tmp_path / "first.png", true[0])
    masks = run(root, tmp_path / "out", "--mask", tmp_path / "first.png", "--video", tmp_path / "frames")
    lost = [int(row["lost"]) for row in rows_in(tmp_path / "out")]
    assert not any(lost[:3]) and all(lost[6:9]) and not any(lost[-2:])
    said = [line for line in capsys.readouterr().err.splitlines() if "is lost" in line]
    assert len(said) == 2 and f"is lost in {sum(lost)} frames" in said[1], "once when it is lost, and at the end"
    assert all(iou(masks[t] > 0, true[t] > 0) > 0.5 for t in (2, 12, 13))
    assert not any((masks[t] > 0).sum() > 0.3 * (true[0] > 0).sum() for t in (6, 7, 8))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_recorded_and_flags_win(root, tmp_path, name):
    plain, preset = load_settings().TEST, load_settings(preset=name).TEST
    assert name != "colornet" or preset == plain, "the published protocol is the default"
    best = preset.SUBCELLS, preset.UPSAMPLE, preset.STRETCH, preset.BACKGROUND, preset.RADIUS, preset.INPUT_SIZE
    assert name != "colornet-best" or best == (2, "bilateral", False, 1, 16, 640)
    run(root, tmp_path, "--mask", root / "00000.png", "--preset", name, "--infer_R", 3, "--no-overlay")
    record = json.loads((tmp_path / "merge_vos/run.json").read_text())
    assert (record["preset"], record["method"]["RADIUS"], record["method"]["TEMP"]) == (name, 3, preset.TEMP)
    assert record["method"]["CUSTOM_INTERVAL"] == preset.CUSTOM_INTERVAL
    assert record["method"]["UPSAMPLE"] == preset.UPSAMPLE
    assert not (tmp_path / "merge_vis/overlay.mp4").exists()


def test_masks_follow_the_frames_colors_unless_something_else_is_asked_for(root, tmp_path):
    asked = {"default": (), "set": ("--upsample", "bilinear"), "preset": ("--preset", "colornet")}
    for name, more in asked.items():
        run(root, tmp_path / name, "--mask", root / "00000.png", "--no-overlay", *more)
    made = [json.loads((tmp_path / name / "merge_vos/run.json").read_text())["method"]["UPSAMPLE"] for name in asked]
    assert made == ["bilateral", "bilinear", "bilinear"]


def test_without_a_model_the_one_that_comes_along_is_used(root, tmp_path, caplog):
    everything = words(root, tmp_path, "--mask", root / "00000.png")
    infer_vos_dul.main(everything[2:])
    record = json.loads((tmp_path / "merge_vos/run.json").read_text())
    assert record["model"] == str(PROJECT / "data/weights/colornet_S.pth") and len(masks_in(tmp_path)) == LENGTH


def test_the_model_can_be_adapted_to_the_video_first(root, tmp_path):
    given = ("--mask", root / "00000.png")
    small = ("DATASET.CROP_SIZE", "[64, 64]", "DATASET.SMALLEST_RANGE", "[64, 80]", "MODEL.LR", "1e-2")
    plain = run(root, tmp_path / "plain", *given)
    file, folder = (run(root, tmp_path / video, *given, "--adapt", 1, video=video, sets=small)
                    for video in ("clip.mp4", "frames"))
    assert len(file) == len(folder) == LENGTH and any((a != b).any() for a, b in zip(plain, folder))


def test_nothing_is_overwritten_unasked(root, tmp_path):
    run(root, tmp_path, "--mask", root / "00000.png")
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    with pytest.raises(UserError, match=r"overlay\.mp4 exists.*--overwrite"):
        run(root, tmp_path, "--mask", root / "00000.png")
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert len(run(root, tmp_path, "--mask", root / "00001.png", "--overwrite")) == LENGTH
    assert json.loads((tmp_path / "merge_vos/run.json").read_text())["masks"] == [str(root / "00001.png")]


def test_a_frame_is_saved_painted_on_and_given_as_the_mask(root, tmp_path):
    infer_vos_dul.main(["--video", str(root / "clip.mp4"), "--save-frame", "3", "--mask-output-dir", str(tmp_path)])
    saved = np.array(Image.open(tmp_path / "frame_3.png"))
    assert np.array_equal(saved, list(open_video(root / "clip.mp4").frames())[3])
    with pytest.raises(UserError, match=r"frame_3\.png exists.*--overwrite"):
        infer_vos_dul.main(["--video", str(root / "clip.mp4"), "--save-frame", "3", "--mask-output-dir", str(tmp_path)])
    with pytest.raises(UserError, match=r"--save-frame N .*has 12; 12 is none.*0 to 11"):
        infer_vos_dul.main(["--video", str(root / "clip.mp4"), "--save-frame", "12"])
    saved[24:64, 20:52] = (255, 0, 255)
    Image.fromarray(saved).save(tmp_path / "frame_3.png")
    job = read_job(str(root / "clip.mp4"), [f"3={tmp_path / 'frame_3.png'}"], backward=True, rate=None)
    assert np.array_equal(job.masks[3], read_mask(root / "00003.png"))


def test_files_given_as_masks_are_no_frames_of_their_folder(root, tmp_path):
    write_clip(tmp_path, draw([8] * 3)[0])
    write_mask(tmp_path / "frames/mask.png", draw([8])[1][0])
    job = read_job(str(tmp_path / "frames"), [str(tmp_path / "frames/../frames/mask.png")], backward=False, rate=None)
    assert job.video.names == ["0", "1", "2"]


def test_an_error_on_the_way_leaves_no_overlay(root, tmp_path):
    write_clip(tmp_path, draw([4] * 8)[0])
    whole = (tmp_path / "frames/5.png").read_bytes()
    (tmp_path / "frames/5.png").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r"5\.png cannot be read as a picture"):
        run(root, tmp_path / "out", "--mask", root / "00000.png", "--video", tmp_path / "frames")
    assert [path.name for path in (tmp_path / "out/merge_vis").iterdir()] == [".frames.passes"], "no half overlay"
    (tmp_path / "frames/5.png").write_bytes(whole)
    assert len(run(root, tmp_path / "out", "--mask", root / "00000.png", "--video", tmp_path / "frames",
                   "--continue")) == 8


def mask_file(name: str, mask: np.ndarray):
    def make(path: Path) -> None:
        write_mask(path / name, mask)
    return make


EMPTY = np.zeros((H, W), np.uint8)
REFUSED = {  # more words, what makes files in the folder {tmp}, message
    "no mask": ([], None, "--video needs --mask"),
    "mask missing": (["--mask", "{tmp}/none.png"], None, r"none\.png"),
    "mask without object": (["--mask", "{tmp}/empty.png"], mask_file("empty.png", EMPTY), r"at least one.*empty\.png"),
    "mask beyond the end": (["--mask", "{root}/00000.png", "12={root}/00001.png"], None, r"12=.*last frame 11"),
    "first mask is later": (["--mask", "3={root}/00003.png"], None, r"frame 3.*--backward"),
    "nothing to go back from": (["--mask", "{root}/00000.png", "--backward"], None, "--backward.*frame 0"),
    "rate of a file": (["--mask", "{root}/00000.png", "--video", "{root}/clip.mp4", "--fps", "5"], None, "--fps"),
    "negative rate": (["--mask", "{root}/00000.png", "--fps", "-5"], None, "--fps is a number above 0"),
    "not a video": (["--mask", "{root}/00000.png", "--video", "{root}/model.pkl"], None, r"model\.pkl cannot be"),
    "no such video": (["--mask", "{root}/00000.png", "--video", "{root}/no.mp4"], None, r"no\.mp4 cannot be opened"),
    "flag against set": (["--mask", "{root}/00000.png", "--infer_R", "4", "--set", "TEST.RADIUS", "5"], None,
                         r"--infer_R.*TEST\.RADIUS"),
    "too many gaps": (["--mask", "{root}/00000.png", "--custom_interval", "--set", "TEST.CXT_SIZE", "30"], None,
                      "CXT_SIZE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_before_any_work(root, tmp_path, case):
    more, make, message = REFUSED[case]
    if make:
        make(tmp_path)
    with pytest.raises(UserError, match=message):
        run(root, tmp_path / "out", *(word.format(root=root, tmp=tmp_path) for word in more))
    assert not (tmp_path / "out").exists()


def test_options_of_the_other_kind_of_input_are_refused(root, tmp_path):
    common = ["--resume", str(root / "model.pkl"), "--mask-output-dir", str(tmp_path / "out")]
    for option in (["--mask", "a.png"], ["--backward"], ["--fps", "3"]):
        with pytest.raises(UserError, match=f"{option[0]} belong to --video"):
            infer_vos_dul.main([*common, "--infer-list", "x", *option])
    with pytest.raises(UserError, match="--infer-list needs --mask-output-dir FOLDER and --resume MODEL"):
        infer_vos_dul.main(["--infer-list", "x"])
    for both in (["--infer-list", "x", "--video", "y"], []):
        with pytest.raises(SystemExit) as ended:
            infer_vos_dul.main([*common, *both])
        assert ended.value.code == 2


def test_ctrl_c_leaves_a_playable_overlay_of_what_was_done(root, tmp_path):
    frames, _ = draw([4] * 400)
    write_clip(tmp_path, frames)
    command = [sys.executable, "infer_vos_dul.py", *words(root, tmp_path / "out", "--mask", root / "00000.png",
                                                          "--video", tmp_path / "frames")]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    masks = tmp_path / "out/merge_vos/frames"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(list(masks.glob("[0-9]*.png"))) < 20:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "what was done is written" in errors
    done = len(list(masks.glob("*.png")))
    overlay = open_video(tmp_path / "out/merge_vis/overlay.mp4")
    assert 20 <= done < 400 and len(list(overlay.frames())) == len(overlay) == done
    assert len(rows_in(tmp_path / "out")) == done
