"""The inference command on synthetic videos: files, switches, late objects, what it refuses, several processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import infer_vos_dul
from datasets.filelists import EvaluationFrame, EvaluationSequence
from inference.pipeline import memory_advice
from inference.writer import BackgroundWriter
from models.neighbours import NeighbourPropagation
from tests.helpers import released_state
from utils.config import load_train_config, resolved
from utils.errors import UserError
from utils.masks import read_mask, write_mask
from utils.version import VERSION

pytestmark = pytest.mark.usefixtures("restored_process", "models_read_once")

PROJECT = Path(infer_vos_dul.__file__).parent
LENGTHS = {"walk": 18, "late": 5}
W, H = 64, 48
FRAMES, MASKS = "davis2017/JPEGImages/480p", "davis2017/Annotations/480p"


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def make_sequence(root: Path, name: str, seed: int) -> list[str]:
    """A textured block moving over a moving background, first mask and (in "late") a new object at frame 2."""
    rng = np.random.default_rng(seed)
    ground, block = texture(rng, H, W + 40), texture(rng, 18, 20)
    lines = []
    for t in range(LENGTHS[name]):
        frame = ground[:, t:t + W].copy()
        frame[8 + t:26 + t, 6 + 2 * t:26 + 2 * t] = block[:H - 8 - t, :W - 6 - 2 * t]
        image, mask = (Path(folder, name, f"{t:05d}{suffix}") for folder, suffix in ((FRAMES, ".jpg"), (MASKS, ".png")))
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(root / image, quality=95)
        ids = np.zeros((H, W), np.uint8)
        if t == 0:
            ids[8:26, 6:26] = 1
        if name == "late" and t == 2:
            ids[:, 40:56] = 9
        if ids.any():
            write_mask(root / mask, ids)
        lines.append(f"1 {image} {mask}\n")
    return lines


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with two sequences, a list of each and of `both`, settings for small frames, two models."""
    root = tmp_path_factory.mktemp("data")
    lines = {name: make_sequence(root, name, seed) for seed, name in enumerate(LENGTHS)}
    (root / "both.txt").write_text("".join(lines["late"] + lines["walk"]))
    for name in LENGTHS:
        (root / f"{name}.txt").write_text("".join(lines[name]))
    (root / "small.yaml").write_text(f"DATASET: {{ROOT: {root}}}\nTEST: {{INFER_WH: [{W}, {H}]}}\n")
    config = resolved(load_train_config()) | {"model_size": "S"}
    for name, is_dul, state in (("dul", True, "S_color_dul"), ("local", False, "S_color")):
        torch.save({"model": released_state(state), "train_config": config | {"is_dul": is_dul}}, root / f"{name}.pkl")
    return root


def arguments(root: Path, out: Path, *more: object, lst: str = "walk", model: str = "dul",
              sets: tuple = ()) -> list[str]:
    return list(map(str, ["--cfg", root / "small.yaml", "--infer-list", lst, "--mask-output-dir", out, "--resume",
                          root / f"{model}.pkl", "--device", "cpu", *more, *(["--set", *sets] if sets else [])]))


def infer(root: Path, out: Path, *more: object, **options) -> dict[str, np.ndarray]:
    infer_vos_dul.main(arguments(root, out, *more, **options))
    return masks_in(out)


def masks_in(out: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(out)): read_mask(path) for path in sorted(out.glob("*_vos/*/*.png"))}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def both(root, tmp_path_factory) -> Path:
    """What the default settings make of `both`."""
    out = tmp_path_factory.mktemp("both")
    infer(root, out, "--exp", "0042", "--run", "second", lst="both")
    return out


@pytest.fixture(scope="module")
def plain(both) -> dict[str, dict[str, np.ndarray]]:
    """Masks of each sequence by the default settings."""
    masks = masks_in(both)
    return {name: {key: mask for key, mask in masks.items() if f"/{name}/" in key} for name in LENGTHS}


def test_masks_and_overlays_stand_where_they_should(root, both):
    masks = masks_in(both)
    assert sorted(masks) == sorted(f"merge_vos/{name}/{t:05d}.png" for name, n in LENGTHS.items() for t in range(n))
    first = Image.open(both / "merge_vos/walk/00000.png")
    assert first.mode == "P" and first.getpalette()[3:6] == [128, 0, 0]
    assert np.array_equal(masks["merge_vos/walk/00000.png"], read_mask(root / MASKS / "walk/00000.png"))
    assert set(np.unique(masks["merge_vos/walk/00001.png"])) == {0, 1}
    for name, n in LENGTHS.items():
        overlays = sorted((both / "merge_vis" / name).iterdir())
        assert [path.name for path in overlays] == [f"{t:05d}.jpg" for t in range(n)]
        assert Image.open(overlays[0]).size == (W, H)
    record = json.loads((both / "merge_vos/run.json").read_text())
    assert (record["exp"], record["run"], record["method"]["KNN"]) == ("0042", "second", 10)
    assert record["version"] == VERSION


def test_a_pair_of_folders_gives_what_its_list_gives(root, plain, tmp_path):
    words = arguments(root, tmp_path)
    place = words.index("--infer-list")
    words[place:place + 2] = ["--frames", str(root / FRAMES), "--masks", str(root / MASKS), "--sequences", "walk"]
    infer_vos_dul.main(words)
    assert same(plain["walk"], masks_in(tmp_path))
    record = json.loads((tmp_path / "merge_vos/run.json").read_text())
    assert record["sequences"] == ["walk"] and record["frames"] == str(root / FRAMES)


def test_an_object_that_appears_later_is_tracked_from_there(both):
    masks = masks_in(both)
    ids = [set(np.unique(masks[f"merge_vos/late/{t:05d}.png"])) for t in range(LENGTHS["late"])]
    assert [9 in found for found in ids] == [False, False, True, True, True]
    assert (masks["merge_vos/late/00002.png"][:, 44:52] == 9).all()


@pytest.mark.parametrize(("flags", "sets", "lst"), [
    (("--infer_wh", 32, 24), (), "late"), (("--infer_R", 1), (), "walk"), (("--custom_interval",), (), "walk"),
    ((), ("TEST.KNN", 1), "late"), ((), ("TEST.CXT_SIZE", 1), "late"), ((), ("TEST.RADIUS", 1), "walk"),
    ((), ("TEST.TEMP", 5), "late"), ((), ("TEST.INFER_WH", "[32,24]"), "late"), ((), ("TEST.BACKGROUND", 0.5), "late"),
    (("--precision", "bf16"), (), "late"), (("--upsample", "bilateral"), (), "late")], ids=str)
def test_every_switch_changes_the_masks(root, tmp_path, plain, flags, sets, lst):
    assert not same(infer(root, tmp_path, "--no-overlay", *flags, lst=lst, sets=sets), plain[lst])


def test_the_feature_is_the_one_asked_for(root, tmp_path, plain):
    results = [list(infer(root, tmp_path / key, lst="late", sets=("TEST.KEY", key)).items())
               for key in ("color", "cls", "merge")]
    assert [items[0][0].split("/")[0] for items in results] == ["color_vos", "cls_vos", "merge_vos"]
    color, cls, merge = ([mask for _, mask in items] for items in results)
    different = lambda a, b: any(not np.array_equal(x, y) for x, y in zip(a, b))
    assert different(color, cls) and different(color, merge) and different(cls, merge)
    assert not different(merge, plain["late"].values())


def test_flags_are_the_settings_they_name(root, tmp_path):
    flags, sets = ("--infer_R", 2, "--infer_wh", 32, 24), ("TEST.RADIUS", 2, "TEST.INFER_WH", "[32, 24]")
    by_flag = infer(root, tmp_path / "flag", *flags, lst="late")
    assert same(by_flag, infer(root, tmp_path / "set", lst="late", sets=sets))
    assert same(by_flag, infer(root, tmp_path / "both", *flags, lst="late", sets=sets))  # twice is no contradiction
    with pytest.raises(UserError, match=r"--infer_R.*TEST\.RADIUS"):
        infer(root, tmp_path / "no", "--infer_R", 2, sets=("TEST.RADIUS", 3))
    with pytest.raises(UserError, match=r"--infer_wh.*TEST\.INFER_WH"):
        infer(root, tmp_path / "no", "--infer_wh", 32, 24, sets=("TEST.INFER_WH", "[64,48]"))
    assert not (tmp_path / "no").exists()


def test_the_settings_file_counts(root, tmp_path):
    (tmp_path / "color.yaml").write_text((root / "small.yaml").read_text().replace("TEST: {", "TEST: {KEY: color, "))
    infer(root, tmp_path, "--cfg", tmp_path / "color.yaml", lst="late")
    assert (tmp_path / "color_vos/late/00003.png").is_file()


def test_seed_seeds_and_is_recorded(root, tmp_path):
    for seed in (5, 6):
        infer(root, tmp_path / str(seed), "--seed", seed, lst="late")
        assert torch.initial_seed() == seed
        assert json.loads((tmp_path / f"{seed}/merge_vos/run.json").read_text())["seed"] == seed
    with pytest.raises(UserError, match="seed"):
        infer(root, tmp_path / "no", "--seed", -1)


@pytest.mark.slow
def test_adapted_masks_are_others_and_each_video_starts_anew(root, tmp_path, plain):
    small = ("DATASET.CROP_SIZE", "[64, 64]", "DATASET.SMALLEST_RANGE", "[64, 80]")
    alone = infer(root, tmp_path / "alone", "--adapt", 1, sets=(*small, "MODEL.LR", "1e-2"))
    assert alone.keys() == plain["walk"].keys() and not same(alone, plain["walk"])
    both = infer(root, tmp_path / "both", "--adapt", 1, lst="both", sets=(*small, "MODEL.LR", "1e-2"))
    assert same(alone, {name: mask for name, mask in both.items() if "/walk/" in name})
    method = json.loads((tmp_path / "alone/merge_vos/run.json").read_text())["method"]
    assert (method["adapt"], method["seed"]) == (1, 0)
    with pytest.raises(UserError, match="--adapt is a number of training steps, 0 or more; it is -1"):
        infer(root, tmp_path / "no", "--adapt", -1)
    assert not (tmp_path / "no").exists()


def test_frames_not_to_be_saved_are_propagated_all_the_same(root, tmp_path, plain):
    lines = (root / "walk.txt").read_text().splitlines()
    (root / "odd.txt").write_text("\n".join(line if t % 2 else "0" + line[1:] for t, line in enumerate(lines)))
    masks = infer(root, tmp_path, lst="odd")
    assert masks.keys() == {key for t, key in enumerate(plain["walk"]) if t % 2}
    assert all(np.array_equal(mask, plain["walk"][key]) for key, mask in masks.items())


def test_a_model_without_global_head_is_refused_before_any_work(root, tmp_path):
    with pytest.raises(UserError, match="is_dul"):
        infer(root, tmp_path / "out", model="local")
    assert not (tmp_path / "out").exists()
    assert len(infer(root, tmp_path / "out", model="local", lst="late", sets=("TEST.KEY", "color"))) == LENGTHS["late"]


def test_nothing_is_overwritten_unasked(root, tmp_path):
    masks = infer(root, tmp_path, lst="late")
    stamp = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    with pytest.raises(UserError, match=r"00000\.png exists.*--continue.*--overwrite"):
        infer(root, tmp_path, lst="late")
    with pytest.raises(UserError, match=r"KNN 10 -> 3"):
        infer(root, tmp_path, "--continue", lst="late", sets=("TEST.KNN", 3))
    assert stamp == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    again = infer(root, tmp_path, "--overwrite", lst="late", sets=("TEST.KNN", 3))
    assert again.keys() == masks.keys() and not same(again, masks)
    (tmp_path / "merge_vos/run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json"):
        infer(root, tmp_path, "--continue", lst="late")


@pytest.mark.parametrize("damage", ["missing mask", "short mask", "missing overlay"])
def test_continue_takes_up_what_is_not_complete(root, both, tmp_path, damage):
    out = shutil.copytree(both, tmp_path / "out")
    mask, picture = out / "merge_vos/late/00003.png", out / "merge_vis/late/00003.jpg"
    if damage == "short mask":
        mask.write_bytes(mask.read_bytes()[:-30])
    else:
        (mask if damage == "missing mask" else picture).unlink()
    before = (out / "merge_vos/walk/00003.png").stat().st_mtime_ns
    assert same(infer(root, out, "--continue", lst="both"), masks_in(both))
    assert picture.is_file()
    assert (out / "merge_vos/walk/00003.png").stat().st_mtime_ns == before, "a finished sequence is left alone"


def test_a_full_disk_ends_the_run(root, tmp_path, monkeypatch):
    real = os.replace

    def fail_at_seven(source, target):
        if "00007" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_at_seven)
    with pytest.raises(UserError, match=r"00007.*No space left"):
        infer(root, tmp_path)
    assert not list(tmp_path.rglob("*00007*")), "no half-written file stays"


def test_a_folder_that_cannot_be_made_ends_the_run(root, tmp_path):
    (tmp_path / "merge_vis").write_text("a file is in the way")
    with pytest.raises(UserError, match="merge_vis"):
        infer(root, tmp_path)


def test_a_broken_frame_ends_the_run_and_leaves_whole_files(root, tmp_path):
    lines = (root / "walk.txt").read_text().splitlines()
    broken = root / FRAMES / "broken"
    broken.mkdir()
    for t in range(8):
        data = (root / FRAMES / f"walk/{t:05d}.jpg").read_bytes()
        (broken / f"{t:05d}.jpg").write_bytes(data[:len(data) // (2 if t == 6 else 1)])
    (root / "broken.txt").write_text("\n".join(lines[:8]).replace(f"{FRAMES}/walk", f"{FRAMES}/broken"))
    with pytest.raises(UserError, match=r"broken/00006\.jpg"):
        infer(root, tmp_path, lst="broken")
    assert all(mask.shape == (H, W) for mask in masks_in(tmp_path).values())


def test_method_and_memory_reach_the_search(root, tmp_path, monkeypatch):
    asked = []

    class Recording(NeighbourPropagation):
        def __init__(self, **options):
            asked.append((options["method"], options["max_memory"]))
            super().__init__(**options)

    monkeypatch.setattr("models.propagation.NeighbourPropagation", Recording)
    infer(root, tmp_path / "fast", "--propagation", "fast", "--max-memory", "900MB", lst="late")
    assert set(asked) == {("fast", 900_000_000)}
    assert json.loads((tmp_path / "fast/merge_vos/run.json").read_text())["method"]["propagation"] == "fast"
    asked.clear()
    infer(root, tmp_path / "default", lst="late")
    assert set(asked) == {("exact", None)}
    with pytest.raises(UserError, match="memory"):
        infer(root, tmp_path / "small", "--max-memory", "1KB", lst="late")


@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="this machine has the device that should be absent")
def test_an_absent_device_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="cuda:7"):
        infer(root, tmp_path / "out", "--device", "cuda:7")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "wanted"), [("1.5GB", 1_500_000_000), ("800 mb", 800_000_000), ("64K", 64_000),
                                              ("512", 512)])
def test_sizes_of_memory(text, wanted):
    assert infer_vos_dul.parse_bytes(text) == wanted


@pytest.mark.parametrize("words", [("--max-memory", "much"), ("--max-memory", "0GB"), ("--propagation", "slow"),
                                   ("--continue", "--overwrite"), ("--precision", "int8")], ids=str)
def test_words_that_are_no_options_end_with_usage(root, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as ended:
        infer(root, tmp_path, *words)
    assert ended.value.code == 2 and words[0] in capsys.readouterr().err


@given(st.lists(st.integers(1, 200), max_size=40), st.integers(1, 6))
def test_sequences_are_split_by_length(lengths, processes):
    sequences = [EvaluationSequence(str(i), [EvaluationFrame(Path(), Path(), True)] * n) for i, n in enumerate(lengths)]
    shares = infer_vos_dul.split_by_length(sequences, processes)
    assert len(shares) == processes
    assert sorted(s.name for share in shares for s in share) == sorted(s.name for s in sequences)
    frames = [sum(len(s.frames) for s in share) for share in shares]
    assert max(frames) - min(frames) <= max(lengths, default=0)


def torchrun(root: Path, out: Path, lst: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(PROJECT / "infer_vos_dul.py"), *arguments(root, out, lst=lst)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(root, tmp_path):
    done = torchrun(root, tmp_path / "two", "both")
    assert done.returncode == 0, done.stderr
    assert "process 2 of 2" in done.stderr and "18 frames" in done.stderr and "5 frames" in done.stderr
    assert same(infer(root, tmp_path / "one", lst="both"), masks_in(tmp_path / "two"))


@pytest.mark.slow
def test_one_process_that_fails_fails_the_run(root, tmp_path):
    (tmp_path / "merge_vis").mkdir()
    (tmp_path / "merge_vis/late").write_text("a file is in the way of one of the two sequences")
    done = torchrun(root, tmp_path, "both")
    assert done.returncode != 0
    assert "error: " in done.stderr.splitlines()[-2] and "merge_vis/late" in done.stderr.splitlines()[-2], \
        "torchrun's trace ends with it"


def test_the_writer_holds_a_bounded_number_and_hides_no_error():
    release, running, lock = threading.Event(), [], threading.Lock()

    def wait():
        with lock:
            running.append(1)
        release.wait(10)

    with BackgroundWriter(threads=1, depth=2) as writer:
        for _ in range(2):
            writer.submit(wait)
        blocked = threading.Thread(target=writer.submit, args=(wait,))
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive() and len(running) == 1, "a third waits until there is room"
        release.set()
        blocked.join(10)
    assert len(running) == 3

    with pytest.raises(ZeroDivisionError), BackgroundWriter(threads=1, depth=100) as writer:
        writer.submit(lambda: 1 / 0)


def test_a_generator_that_is_closed_leaves_nothing_unwritten():
    written = []

    def numbers():
        with BackgroundWriter(threads=1, depth=100) as writer:
            for number in range(100):
                writer.submit(lambda number=number: (time.sleep(0.001), written.append(number)))
                yield number

    some = numbers()
    assert [next(some) for _ in range(20)] == list(range(20))
    some.close()
    assert written == list(range(20))


def test_a_generator_that_is_closed_raises_no_error_of_writing_which_nobody_could_catch():
    def numbers():
        with BackgroundWriter(threads=1, depth=100) as writer:
            for write in (lambda: release.wait(10), lambda: 1 / 0, lambda: written.append(1)):
                writer.submit(write)
            yield 1

    written, release, some = [], threading.Event(), numbers()
    next(some)
    release.set()
    some.close()
    assert written == [1]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
                                   np.exceptions.AxisError("axis 3 is out of bounds"), RuntimeError("shapes differ")],
                         ids=repr)
def test_out_of_memory_says_what_to_do(error):
    of_memory = "memory" in repr(error).lower()
    with pytest.raises(UserError if of_memory else type(error), match="--max-memory" if of_memory else None), \
            memory_advice():
        raise error
