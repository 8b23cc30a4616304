"""Clips and samples: which frames are drawn, what a broken one does, and what building the data says."""

from __future__ import annotations

import json
import logging
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets import Batch, build_loader, build_train_dataset, read_batch
from datasets.clips import StillClips, VideoClips, draw_positions, frame_gaps, reduction_for
from datasets.filelists import Video
from datasets.loader import default_workers, init_worker
from datasets.sampler import EpochBatchSampler
from utils.config import load_settings, load_train_config
from utils.errors import UserError
from utils.images import imagenet_normalise


def picture(height=48, width=64, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def write_video(folder: Path, count: int, suffix=".jpg", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(count):
        cv2.imwrite(str(folder / f"{t:05d}{suffix}"), picture(seed=100 * seed + t))
    return sorted(folder.iterdir())


def cut(path: Path, share=0.9):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])


@pytest.fixture
def root(tmp_path):
    for i, count in enumerate((6, 8, 7, 2)):
        write_video(tmp_path / f"JPEGImages/v{i}", count, seed=i)
    return tmp_path


def build(root, *overrides, coco=False, seed=3, **train_keys):
    keys = {"DATASET.ROOT": str(root), "DATASET.CROP_SIZE": "[32,32]", "DATASET.SMALLEST_RANGE": "[32,40]"}
    keys |= dict(zip(overrides[::2], overrides[1::2]))
    settings = load_settings(overrides=[word for pair in keys.items() for word in pair])
    train_config = replace(load_train_config(), **({"video_len": 3} | train_keys))
    return build_train_dataset(settings, train_config, coco=coco, seed=seed)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# --- positions ---

@pytest.mark.parametrize("count, length, gap, stride, starts", [
    (20, 5, 2, 2, 12), (10, 5, 2, 2, 2), (9, 5, 2, 1, 5), (5, 5, 2, 1, 1), (100, 5, 1, 1, 96), (7, 3, 10, 2, 3),
])
def test_positions_of_a_clip(count, length, gap, stride, starts):
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_positions(count, length, gap, rng) for _ in range(200 * starts)])
    assert (np.diff(drawn) == stride).all() and drawn.min() == 0 and drawn.max() == starts - 1 + stride * (length - 1)
    assert min(Counter(drawn[:, 0]).values()) > 120  # 200 expected of each start


def test_frames_come_in_every_order(tmp_path):
    frames = [Path(f"{t}") for t in range(3)]
    clips = VideoClips([Video("v", frames)], 3, gaps=[1], reductions=[1])
    orders = Counter()
    for seed in range(600):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datasets.clips.read_frame", lambda path, _: path.name)
            orders[tuple(clips.load(0, np.random.default_rng(seed)))] += 1
    assert len(orders) == 6 and min(orders.values()) > 60


def test_a_gap_in_seconds_counts_where_the_rate_is_known(tmp_path):
    known, unknown = (Video(name, write_video(tmp_path / name, 1)) for name in "ab")
    (tmp_path / "a/video.json").write_text('{"fps": 29.97}')
    assert frame_gaps([known, unknown], 2, 0) == [2, 2]
    assert frame_gaps([known, unknown], 2, 0.2) == [6, 2]
    assert frame_gaps([known], 2, 0.001) == [1]
    (tmp_path / "b/video.json").write_text("{}")
    with pytest.raises(UserError, match=r"FRAME_GAP_SECONDS = 0.2 .*prepare_data"):
        frame_gaps([unknown], 2, 0.2)


# --- reading ---

@pytest.mark.parametrize("name, size, reduction", [
    ("a.jpg", (854, 480), 1), ("a.jpg", (900, 638), 2), ("a.JPEG", (640, 1136), 2), ("a.jpg", (2000, 1276), 4),
    ("a.jpg", (9000, 9000), 8), ("a.png", (2000, 2000), 1), ("a.jpg", None, 1),
])
def test_a_reduction_leaves_enough_pixels(name, size, reduction):
    assert reduction_for(Path(name), size, least_side=319) == reduction


def test_still_clips_are_warped_and_turned_copies(tmp_path, monkeypatch):
    path = tmp_path / "still.jpg"
    cv2.imwrite(str(path), np.full((60, 90, 3), 200, np.uint8))
    clips, angles = StillClips([Video("still.jpg", [path])], 4), []
    monkeypatch.setattr("datasets.clips.rotate", lambda frame, angle: (angles.append(int(angle)), frame)[1])
    for seed in range(12):
        frames = clips.load(0, np.random.default_rng(seed))
        assert [frame.shape for frame in frames] == [(320, 512, 3)] * 4
        assert all((frame == 200).all() for frame in frames)  # reflection: nothing black comes in
    with monkeypatch.context() as patch:
        patch.setattr("datasets.clips.liquid_map", lambda *_: None)
        patch.setattr("datasets.clips.apply_map", lambda frame, _: frame)
        for seed in range(12, 120):
            clips.load(0, np.random.default_rng(seed))
    assert abs(len(angles) / 480 - 0.5) < 0.07
    assert set(angles) <= set(range(-30, 31)) and max(angles) > 25 and min(angles) < -25 and abs(np.mean(angles)) < 4
    cv2.imwrite(str(path), picture())
    frames = clips.load(0, np.random.default_rng(0))
    assert not any(np.array_equal(a, b) for i, a in enumerate(frames) for b in frames[:i])


# --- samples ---

def test_a_sample_is_fixed_by_seed_epoch_and_index(root):
    dataset = build(root)
    assert equal(dataset[(1, 0)], build(root)[(1, 0)])
    for other in (dataset[(2, 0)], dataset[(1, 1)], build(root, seed=4)[(1, 0)]):
        assert not torch.equal(other["color"]["view_a"], dataset[(1, 0)]["color"]["view_a"])


def loader(dataset, batch_size, workers, seed=0, device="cpu"):
    settings = load_settings(overrides=["TRAIN.BATCH_SIZE", str(batch_size), "TRAIN.NUM_WORKERS", str(workers)])
    return build_loader(dataset, settings, seed=seed, device=torch.device(device))


def test_workers_change_nothing(root):
    dataset = build(root)
    alone, helped = (list(loader(dataset, 1, workers).batches(1)) for workers in (0, 2))
    assert len(alone) == 3 and all(equal(a._asdict(), b._asdict()) for a, b in zip(alone, helped))


def test_batches_begin_where_they_are_asked_to(root):
    batches = loader(build(root), 1, 0)
    rest = list(batches.batches(2, first=1))
    assert len(batches) == 3 and len(rest) == 2
    assert all(equal(a._asdict(), b._asdict()) for a, b in zip(rest, list(batches.batches(2))[1:]))
    assert list(batches.batches(2, first=3)) == []


def test_a_batch_is_what_the_objective_takes(root):
    dataset = build(root)
    batch = read_batch(dataset, [(1, 0), (1, 1)], torch.device("cpu"))
    assert {branch: {name: (value.dtype, tuple(value.shape)) for name, value in views.items()}
            for branch, views in batch.views.items()} == {
        "color": {"view_a": (torch.float32, (2, 3, 3, 32, 32)), "view_b": (torch.float32, (2, 3, 3, 32, 32)),
                  "grid": (torch.float32, (2, 3, 4, 4, 2)), "target": (torch.float32, (2, 3, 3, 32, 32)),
                  "edge": (torch.float32, (2, 3, 1, 32, 32))},
        "dense": {"view_1": (torch.float32, (2, 3, 3, 32, 32)), "view_2": (torch.float32, (2, 3, 3, 32, 32)),
                  "theta": (torch.float32, (2, 2, 3))}}
    frames = dataset[(1, 1)]["dense"]["view_1"]
    torch.testing.assert_close(batch.views["dense"]["view_1"][1], imagenet_normalise(frames))
    assert batch.clips == ["JPEGImages/v0", "JPEGImages/v1"] and batch.failed == 0


def test_a_batch_splits_into_parts_of_equally_many_clips():
    batch = Batch({"color": {"x": torch.arange(4)}, "dense": {"y": torch.arange(8).view(4, 2)}}, list("abcd"), 0)
    parts = batch.parts(2)
    assert [part["color"]["x"].tolist() for part in parts] == [[0, 1], [2, 3]]
    assert parts[1]["dense"]["y"].tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("cores, processes, workers", [(2, 1, 2), (16, 1, 12), (16, 4, 4), (2, 4, 1)])
def test_loader_processes_follow_the_machine(monkeypatch, cores, processes, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setattr("datasets.loader.local_world_size", lambda: processes)
    assert load_settings().TRAIN.NUM_WORKERS == -1 and default_workers() == workers


def test_a_loader_process_leaves_signals_to_the_training_process_and_uses_one_thread(root):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        init_worker(0)
        assert cv2.getNumThreads() == 1
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in before)
    finally:
        cv2.setNumThreads(threads)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_broken_clip_is_replaced_named_and_listed(root, caplog):
    for path in (root / "JPEGImages/v0").iterdir():
        cut(path)
    dataset = build(root)
    sample, again = dataset[(1, 0)], dataset[(1, 0)]
    assert equal(sample, again) and sample["clip"] in ("JPEGImages/v1", "JPEGImages/v2")
    assert len(sample["failed"]) == 1 and sample["failed"][0].startswith(str(root / "JPEGImages/v0"))
    assert any(record.levelno == logging.WARNING and sample["failed"][0] in record.message for record in caplog.records)
    batch = read_batch(dataset, [(1, 0), (1, 1)], torch.device("cpu"))
    assert batch.failed == 1 and batch.clips == [sample["clip"], "JPEGImages/v1"]


@pytest.mark.parametrize("workers", [0, 1])
def test_when_all_is_broken_the_user_reads_one_clear_line(root, workers):
    for path in root.glob("JPEGImages/*/*.jpg"):
        cut(path)
    # Not `as`: a loader that is garbage together with its error's frames takes five seconds to end its processes.
    with pytest.raises(UserError, match=r"(?s)\A(?!.*Traceback).*3 attempts, the last at .*\.jpg"):
        list(loader(build(root), 2, workers).batches(1))


# --- building ---

@pytest.mark.slow
def test_the_log_and_the_index_count_what_there_is(root, caplog):
    caplog.set_level(logging.INFO)
    cut(root / "JPEGImages/v1/00000.jpg", 0.01)
    dataset = build(root)
    assert len(dataset) == 3
    assert dataset.summary == {"source": str(root), "videos": 3, "frames": 21, "too_short": 1}
    for words in ("no filelists/train_ytvos.txt", "4 videos, 23 frames", "3 of 64x48", "JPEGImages/v3",
                  "1 videos skipped, shorter than 3", "1 videos with a broken first frame: JPEGImages/v1"):
        assert words in caplog.text
    index = json.loads((root / "video_index.json").read_text())
    assert (index["videos"], index["frames"], index["too_short"]) == (4, 23, ["JPEGImages/v3"])
    assert index["broken"] == ["JPEGImages/v1"]
    assert index["items"][0] == {"name": "JPEGImages/v0", "frames": 6, "size": [64, 48]}


def test_a_list_is_used_instead_of_the_scan(root, caplog):
    caplog.set_level(logging.INFO)
    (root / "filelists").mkdir()
    (root / "filelists/train_ytvos.txt").write_text("".join(f"JPEGImages/v1/{t:05d}.jpg\n" for t in range(4)))
    dataset = build(root)
    assert dataset.summary["videos"] == 1 and dataset.summary["frames"] == 4
    assert "filelists/train_ytvos.txt" in caplog.text and not (root / "video_index.json").exists()


def test_an_index_that_cannot_be_kept_is_only_logged(root, caplog):
    caplog.set_level(logging.INFO)
    (root / "video_index.json").mkdir()
    assert len(build(root)) == 3 and "not kept" in caplog.text


def test_stills(root):
    with pytest.raises(UserError, match="COCO/train2017"):
        build(root, coco=True)
    write_video(root / "COCO/train2017", 2)
    dataset = build(root, coco=True)
    assert dataset.summary == {"source": str(root / "COCO/train2017"), "stills": 2}
    assert dataset.recipes["color"].turned and not build(root).recipes["color"].turned
    assert dataset[(1, 0)]["color"]["view_a"].shape == (3, 3, 32, 32)


def mixed(root, share, **options):
    write_video(root / "photos", 5)
    return build(root, "DATASET.STILLS", "photos", "DATASET.STILLS_SHARE", str(share), **options)


def test_stills_are_drawn_by_their_share(root):
    dataset = mixed(root, 0.4)
    assert dataset.summary == {"source": str(root), "videos": 3, "frames": 21, "too_short": 1, "stills": 5,
                               "stills_an_epoch": 2} and len(dataset) == 5
    names = [[dataset[(epoch, index)]["clip"] for index in range(5)] for epoch in range(1, 6)]
    assert all(epoch[:3] == ["JPEGImages/v0", "JPEGImages/v1", "JPEGImages/v2"] for epoch in names)
    drawn = [name for epoch in names for name in epoch[3:]]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [f"photos/{t:05d}.jpg" for t in range(5)]
    assert drawn[:5] != drawn[5:], "each pass over the stills has an order of its own"
    assert dataset.stills.recipes["color"].turned and not dataset.videos.recipes["color"].turned
    assert len(mixed(root, 0.01)) == 4, "at least one"


def test_more_places_than_stills_never_repeat_a_sample(root):
    dataset = mixed(root, 0.8)  # 12 places for 5 stills
    views = {dataset[(1, index)]["color"]["view_a"].numpy().tobytes() for index in range(3, 15)}
    assert len(dataset) == 15 and len(views) == 12


def test_a_mixed_sample_is_made_from_seed_epoch_and_index_alone(root):
    order = [(epoch, index) for epoch in (1, 2) for index in range(5)]
    first, again = mixed(root, 0.4), mixed(root, 0.4)
    samples = {position: first[position] for position in order}
    assert all(equal(samples[position], again[position]) for position in reversed(order))
    assert not equal(samples[(1, 3)], mixed(root, 0.4, seed=4)[(1, 3)])
    batch, = loader(first, 5, 2, seed=3).batches(1)
    sampler = EpochBatchSampler(len(first), batch_size=5, seed=3)
    sampler.set_position(1)
    positions, = sampler
    assert batch.clips == [samples[position]["clip"] for position in positions]
    again = read_batch(first, positions, torch.device("cpu"))
    assert torch.equal(batch.views["color"]["view_b"], again.views["color"]["view_b"])


def test_a_share_of_stills_alone_is_refused(root):
    with pytest.raises(UserError, match=r"--coco .*STILLS_SHARE is 0\.4"):
        mixed(root, 0.4, coco=True)
    with pytest.raises(UserError, match=r"nowhere.*DATASET\.STILLS"):
        build(root, "DATASET.STILLS", "nowhere", "DATASET.STILLS_SHARE", "0.4")


@pytest.mark.parametrize("overrides, train_keys, words", [
    ((), {"video_len": 9}, ["video_len = 9", "4 videos"]),
    (("DATASET.ROOT", "/nowhere"), {}, ["/nowhere"]),
    (("DATASET.ROOT", "{root}/empty"), {}, ["empty", "no frames"]),
])
def test_data_that_cannot_be_trained_on_is_refused(root, overrides, train_keys, words):
    (root / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        build(root, *(word.format(root=root) for word in overrides), **train_keys)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("key, value, attribute, expected", [
    ("DATASET.CROP_SIZE", "[48,48]", "size", 48),
    ("DATASET.SMALLEST_RANGE", "[50,60]", "short_range", (50, 60)),
    ("DATASET.RND_CROP", "false", "random_crop", False),
    ("DATASET.RND_ZOOM", "false", "zoom_range", None),
    ("DATASET.RND_ZOOM_RANGE", "[0.6,0.7]", "zoom_range", (0.6, 0.7)),
    ("DATASET.GUIDED_HFLIP", "false", "guided_flip", False),
])
def test_yaml_keys_reach_both_recipes(root, key, value, attribute, expected):
    plain, changed = build(root), build(root, key, value)
    for name in ("color", "dense"):
        assert getattr(changed.recipes[name].geometry, attribute) == expected
        assert getattr(plain.recipes[name].geometry, attribute) != expected


@pytest.mark.parametrize("key, value, attribute", [
    ("is_aug", False, "augment"), ("is_shadow", False, "shadow"), ("is_liquid", False, "liquid"),
    ("is_edge", False, "edge"), ("space_consistency", False, "consistency"), ("is_labclip", False, "clip_lab"),
    ("color_mode", "RGB", "color_mode"),
])
def test_json_keys_reach_the_color_views(root, key, value, attribute):
    assert getattr(build(root, **{key: value}).recipes["color"], attribute) == value
    assert getattr(build(root).recipes["color"], attribute) != value


def test_other_keys_have_their_effect(root):
    assert "dense" not in build(root, is_dul=False)[(1, 0)]
    assert build(root, video_len=5)[(1, 0)]["color"]["view_a"].shape[0] == 5
    assert build(root, "DATASET.FRAME_GAP", "4").source.gaps == [4, 4, 4]
    cv2.imwrite(str(root / "JPEGImages/v0/00000.jpg"), picture(160, 160))
    assert build(root).source.reductions == [4, 1, 1]
    assert build(root, "DATASET.REDUCED_DECODE", "false").source.reductions == [1, 1, 1]
    (root / "JPEGImages/v0/video.json").write_text('{"fps": 30}')
    assert build(root, "DATASET.FRAME_GAP_SECONDS", "0.5").source.gaps == [15, 2, 2]
