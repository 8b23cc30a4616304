"""The field's other tasks: PCK of JHMDB and BADJA, mIoU of VIP; slow definitions, data in the published layouts."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

import evaluation_method
import infer_vos_dul
from datasets.keypoint_sets import JHMDB_JOINTS, read_badja_set, read_jhmdb_set
from datasets.points import BADJA_JOINTS, read_tracks
from datasets.video_sets import read_vip
from evaluation.parts import VIP_CLASSES
from tests.helpers import called
from utils.errors import UserError
from utils.masks import write_mask

pytestmark = pytest.mark.usefixtures("restored_process", "models_read_once")

W, H = 96, 64


def picture(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (H, W, 3), dtype=np.uint8)).save(path)


def table(path, rows):
    """Rows of frame, point, x and y as a table of results."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("frame", "point", "x", "y"), *rows])


def evaluated(task, root, *results, more=()):
    done = called(evaluation_method.main, "--task", task, "--gt_path", root, "--results_path", *results, "--workers", 1,
                  *more)
    if done.returncode:
        return done.stderr
    return [json.loads((folder / f"results-{task}.json").read_text()) for folder in results]


@pytest.fixture
def jhmdb(tmp_path):
    """Two test videos and one for training; the truth of the test videos counts pixels from 1."""
    from scipy.io import savemat
    rng, root, truth = np.random.default_rng(0), tmp_path / "JHMDB", {}
    (root / "splits").mkdir(parents=True)
    (root / "splits/run_test_split1.txt").write_text("man_run_1.avi 2\nman_run_2.avi 1\n")
    (root / "splits/sit_test_split1.txt").write_text("!a(b)_sit.avi 2 \n")
    (root / "splits/sit_test_split2.txt").write_text("man_sit_2.avi 2\n")
    for kind, name, frames in (("run", "man_run_1", 3), ("sit", "!a(b)_sit", 2)):
        truth[name] = rng.uniform((1, 1), (W, H), (frames, 15, 2))
        truth[name][:, 4] = (W + 30, 5)  # out of sight
        place = root / "joint_positions" / kind / name
        place.mkdir(parents=True)
        savemat(place / "joint_positions.mat", {"pos_img": truth[name].transpose(2, 1, 0), "viewpoint": "n"})
        for t in range(1, frames + 1):
            picture(root / "Rename_Images" / kind / name / f"{t:05d}.png", rng)
    return root, {name: places - 1 for name, places in truth.items()}


def test_jhmdb_is_read_as_published(jhmdb, monkeypatch):
    root, truth = jhmdb
    sequences = read_jhmdb_set(root)
    assert [(one.name, len(one.joints), one.first) for one in sequences] == [("!a(b)_sit", 2, 0), ("man_run_1", 3, 0)]
    for one in sequences:
        found = [[one.joints[t][joint] for joint in JHMDB_JOINTS] for t in one.joints]
        assert np.allclose(found, truth[one.name])
    (root / "Rename_Images/run/man_run_1/00003.png").unlink()
    with pytest.raises(UserError, match=r"--sequences !a\(b\)_sit\n  man_run_1: 2 frames in .*, and joints of 3"):
        read_jhmdb_set(root)
    (root / "joint_positions/run/man_run_1/joint_positions.mat").write_bytes(b"MATLAB 5.0" * 20)
    with pytest.raises(UserError, match=r"joint_positions\.mat is no file of JHMDB's joints"):
        read_jhmdb_set(root, ["man_run_1"])
    (root / "splits/sit_test_split1.txt").write_text("man_sit 3\n")
    with pytest.raises(UserError, match="download splits"):
        read_jhmdb_set(root)
    for name in ("man_run_1", "../x"):
        (root / "splits/sit_test_split1.txt").write_text(f"{name}.avi 2\n")
        with pytest.raises(UserError, match=f"one class; .*{name}"):
            read_jhmdb_set(root)
    with pytest.raises(UserError, match=r"unpack splits\.zip"):
        read_jhmdb_set(root / "none")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-tasks\.txt"):
        read_jhmdb_set(root)


def slow_jhmdb(truth, found, threshold):
    """PCK in percent divided by 100, a joint and a frame at a time; found has NaN where a joint is lost."""
    shares = []
    for j in range(15):
        right = total = 0
        for name in truth:
            for t in range(1, len(truth[name])):
                kept = [k for k in range(15) if not math.isnan(found[name][t][k][0])]
                xs, ys = ([truth[name][t][k][i] for k in kept] for i in (0, 1))
                if j in kept:
                    size = 0.6 * math.sqrt((max(xs) - min(xs)) ** 2 + (max(ys) - min(ys)) ** 2)
                    off = math.dist(truth[name][t][j], found[name][t][j])
                    right, total = right + (off / size <= threshold), total + 1
        if total:
            shares.append(right / total)
    return sum(shares) / len(shares)


def test_pck_of_jhmdb_against_a_slow_definition(jhmdb, tmp_path):
    root, truth = jhmdb
    rng = np.random.default_rng(1)
    results = [tmp_path / "a", tmp_path / "b"]
    found = [{}, {}]
    for k, folder in enumerate(results):
        for name, places in truth.items():
            near = places + rng.normal(0, 8 - 4 * k, places.shape)
            lost = rng.random(places.shape[:2]) < 0.2
            lost[:, 4], near[lost] = True, np.nan
            near[(near < 0).any(axis=2)] = np.nan
            found[k][name] = near
            table(folder / f"{name}.csv", [
                (t, joint, *(("", "") if np.isnan(near[t, j, 0]) and j % 2 else np.nan_to_num(near[t, j], nan=-1)))
                for t in range(1, len(places)) for j, joint in enumerate(JHMDB_JOINTS)])
    values = evaluated("jhmdb", root, *results)
    for k in range(2):
        for threshold in (0.1, 0.2):
            expected = slow_jhmdb(truth, found[k], threshold)
            assert values[k]["global"][f"PCK@{threshold}"] == pytest.approx(expected) and 0 < expected < 1
    assert values[0]["joints"]["left shoulder"]["PCK@0.1"] is None and values[0]["differences"] is None
    sequences = [value["sequences"] for value in values]
    mean = np.mean([sequences[1][name]["PCK@0.2"] - sequences[0][name]["PCK@0.2"] for name in truth])
    assert values[1]["differences"]["PCK@0.2"]["mean"] == pytest.approx(mean)


def test_where_everything_is_lost_nothing_is_scored(jhmdb, tmp_path):
    root, truth = jhmdb
    for folder in (tmp_path / "a", tmp_path / "b"):
        for name, places in truth.items():
            table(folder / f"{name}.csv", [(t, joint, -1, -1) for t in range(len(places)) for joint in JHMDB_JOINTS])
    for values in evaluated("jhmdb", root, tmp_path / "a", tmp_path / "b"):
        assert values["global"] == {"PCK@0.1": None, "PCK@0.2": None} and values["differences"] is None


def test_wrong_tables_are_named_together(jhmdb, tmp_path):
    root, _ = jhmdb
    rows = [(t, joint, 1, 2) for t in range(1, 3) for joint in JHMDB_JOINTS]
    table(tmp_path / "r/man_run_1.csv", rows[:-2])
    words = evaluated("jhmdb", root, tmp_path / "r")
    assert "man_run_1.csv lacks 2 points: right ankle of frame 2 left ankle of frame 2" in words
    assert "!a(b)_sit.csv is missing" in words and not list((tmp_path / "r").glob("*.json"))
    for text, word in (("frame,point,x\n", "lacks y"), ("frame,point,x,y\n1,neck,1,2\n1,neck,1,2\n", "twice"),
                       ("frame,point,x,y\n1,neck,a,2\n", "'a'"), ("frame,point,x,y\n-1,neck,1,2\n", "'-1'")):
        (tmp_path / "r/man_run_1.csv").write_text(text)
        assert word in evaluated("jhmdb", root, tmp_path / "r", more=("--sequences", "man_run_1"))
    for option in (("--set", "train"), ("--allow-missing",), ("--report", "a.html"), ("--include_first_last",)):
        assert f"leave out {option[0]}" in evaluated("jhmdb", root, tmp_path / "r", more=option)
    assert "--gt_path is a folder" in evaluated("jhmdb", root / "none", tmp_path / "r")
    assert "--results_path is a folder" in evaluated("jhmdb", root, tmp_path / "none")


@pytest.fixture
def badja(tmp_path):
    """Frame 0 is not annotated; in frame 1 four joints and the chin are visible, in 2 and 4 some of them and others."""
    rng, root = np.random.default_rng(2), tmp_path / "BADJA"
    (root / "joint_annotations").mkdir(parents=True)
    for t in range(5):
        picture(root / f"D/J/cow/{t:05d}.jpg", rng)
    seen = {1: BADJA_JOINTS[:4], 2: BADJA_JOINTS[1:6], 4: BADJA_JOINTS[:3]}
    frames, truth = [], {}
    for t, visible in seen.items():
        joints = [[int(rng.integers(H)), int(rng.integers(W))] for _ in range(37)]
        mask = np.zeros((H, W), np.uint8)
        mask[10:10 + 10 * t, 20:60] = 1 + t % 2  # two animals count as one
        (root / "D/S/cow").mkdir(parents=True, exist_ok=True)
        write_mask(root / f"D/S/cow/{t:05d}.png", mask)
        frames.append({"image_path": f"D/J/cow/{t:05d}.jpg", "segmentation_path": f"D/S/cow/{t:05d}.png",
                       "joints": joints, "visibility": [i in visible or i == 34 for i in range(37)]})
        truth[t] = {str(i): (joints[i][1], joints[i][0]) for i in visible}
    (root / "joint_annotations/cow.json").write_text(json.dumps(frames))
    (root / "joint_annotations/tiger.json").write_text(json.dumps(frames).replace("cow", "tiger"))
    return root, truth


def test_badja_is_read_as_published(badja):
    root, truth = badja
    [cow] = read_badja_set(root)
    assert (cow.name, cow.joints, cow.first) == ("cow", truth, 1)
    assert cow.folder == root / "D/J/cow" and cow.masks[4] == root / "D/S/cow/00004.png"
    with pytest.raises(UserError, match=r"tiger: no .*00001\.jpg and 5 other files"):
        read_badja_set(root, ["tiger"])
    Image.new("RGB", (W // 4, H // 4)).save(root / "D/J/cow/00001.jpg")
    with pytest.raises(UserError, match=f"frames of {W // 4}x{H // 4}, and joint"):
        read_badja_set(root)
    with pytest.raises(UserError, match="joint_annotations"):
        read_badja_set(root / "D")


def test_pck_of_badja_against_hand_computed_places(badja, tmp_path):
    root, truth = badja
    areas = {2: 20 * 40, 4: 40 * 40}
    first, second, third, fourth = map(str, BADJA_JOINTS[:4])
    rows = [(t, joint, 0, 0) for t in (2, 4) for joint in (first, second, third, fourth)]
    near = {(2, second): 0.19, (2, third): 0.21, (2, fourth): None, (4, first): 0.19, (4, second): 0.21,
            (4, third): 0.1}
    for k, (t, joint, *_) in enumerate(rows):
        share = near.get((t, joint), 0)
        x, y = truth[t].get(joint, (5, 5))
        rows[k] = (t, joint, "", "") if share is None else (t, joint, x + share * math.sqrt(areas[t]), y)
    table(tmp_path / "r/cow.csv", rows)
    (tmp_path / "r/run.json").write_text(json.dumps({"model": "a/S.pth", "method": {
        "KEY": "merge+dino", "model_sha256": "0123456789", "feature_weights": {"dino": "random"}}}))
    [values] = evaluated("badja", root, tmp_path / "r")
    assert values["global"] == {"PCK@0.2": pytest.approx(3 / 6)} == values["sequences"]["cow"]
    assert values["joints"] == {first: {"PCK@0.2": 1}, second: {"PCK@0.2": 0.5}, third: {"PCK@0.2": 0.5},
                                fourth: {"PCK@0.2": 0}}
    assert values["features"] == {"spec": "merge+dino", "model": "a/S.pth", "model_sha256": "0123456789",
                                  "weights": {"dino": "random"}}


@pytest.fixture
def vip(tmp_path):
    """Two videos of random parts; the second has a class that its first frame lacks."""
    rng, root, truth = np.random.default_rng(3), tmp_path / "VIP_Fine", {}
    (root / "lists").mkdir(parents=True)
    (root / "lists/val_videos.txt").write_text("videos/videos7\nvideos12\n")
    for name, values in (("videos7", 5), ("videos12", 4)):
        for t in (1, 26, 51):
            picture(root / f"Images/{name}/{t:012d}.jpg", rng)
            truth[name, t] = rng.integers(0, values + (t > 1), (H // 8, W // 8)).repeat(8, 0).repeat(8, 1)
            (root / f"Annotations/Category_ids/{name}").mkdir(parents=True, exist_ok=True)
            write_mask(root / f"Annotations/Category_ids/{name}/{t:012d}.png", truth[name, t])
    return root, truth


def test_miou_of_vip_against_a_slow_definition(vip, tmp_path):
    root, truth = vip
    rng, found = np.random.default_rng(4), {}
    truth["videos7", 26][:8] = 255  # no class: not counted
    write_mask(root / f"Annotations/Category_ids/videos7/{26:012d}.png", truth["videos7", 26])
    for (name, t), mask in truth.items():
        found[name, t] = np.where(rng.random(mask.shape) < 0.3, rng.integers(0, 7, mask.shape), mask % 20)
        (tmp_path / "r" / name).mkdir(parents=True, exist_ok=True)
        write_mask(tmp_path / f"r/{name}/{t:012d}.png", found[name, t])
    [values] = evaluated("vip", root, tmp_path / "r")
    ious = {}
    for k, name in enumerate(VIP_CLASSES):
        shared = sum(int(((mask == k) & (found[key] == k)).sum()) for key, mask in truth.items())
        union = sum(int((((mask == k) | (found[key] == k)) & (mask < 20)).sum()) for key, mask in truth.items())
        ious[name] = shared / union if union else None
    assert {name: value["IoU"] for name, value in values["classes"].items()} == pytest.approx(ious)
    scored = [value for value in ious.values() if value is not None]
    assert values["global"]["mIoU"] == pytest.approx(sum(scored) / len(scored)) and len(scored) == 7
    write_mask(tmp_path / f"r/videos7/{1:012d}.png", np.full((H, W), 20))
    (tmp_path / f"r/videos12/{51:012d}.png").unlink()
    words = evaluated("vip", root, tmp_path / "r")
    assert "has the value 20" in words and f"1 of 3 frames are missing: {51:012d}" in words


def test_vip_gives_the_first_mask_alone(vip, tmp_path):
    root, _ = vip
    first, second = read_vip(root)
    assert (first.name, second.name) == ("videos7", "videos12")
    assert [frame.mask is None for frame in second.frames] == [False, True, True]
    done = called(infer_vos_dul.main, "--vip", root, "--sequences", "videos12", "--mask-output-dir", tmp_path / "out",
                  "--resume", "data/weights/colornet_S.pth", "--infer_wh", 48, 32, "--no-overlay", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    [values] = evaluated("vip", root, tmp_path / "out/merge_vos", more=("--sequences", "videos12"))
    assert values["features"]["spec"] == "merge"
    assert values["classes"]["upper clothes"]["IoU"] == 0, "a class that comes later is not given"
    (root / "lists/val_videos.txt").write_text("../x/..\n")
    with pytest.raises(UserError, match=r"val_videos\.txt has one video a line"):
        read_vip(root)
    with pytest.raises(UserError, match="VIP_Fine"):
        read_vip(tmp_path)


def carried(option, root, out, *more):
    return called(infer_vos_dul.main, option, root, "--mask-output-dir", out, "--resume", "data/weights/colornet_S.pth",
                  "--infer_wh", 48, 32, "--device", "cpu", *more)


def test_joints_of_a_set_are_carried_and_scored(jhmdb, badja, tmp_path):
    out = tmp_path / "out"
    assert carried("--jhmdb", jhmdb[0], out, "--no-overlay").returncode == 0
    tracks = read_tracks(out / "merge_points/man_run_1.csv")
    assert len(tracks) == 3 * 15 and math.isnan(tracks[2, "left shoulder"][0]), "what is out of sight is lost"
    assert tracks[0, "neck"] == pytest.approx(jhmdb[1]["man_run_1"][0, 0], abs=1e-3)
    [values] = evaluated("jhmdb", jhmdb[0], out / "merge_points")
    assert values["features"]["spec"] == "merge" and 0 <= values["global"]["PCK@0.2"] <= 1
    assert carried("--badja", badja[0], tmp_path / "animals").returncode == 0
    assert (tmp_path / "animals/merge_points/cow.mp4").stat().st_size
    [values] = evaluated("badja", badja[0], tmp_path / "animals/merge_points")
    assert list(values["sequences"]) == ["cow"]


def test_tables_are_not_mixed_or_lost(jhmdb, tmp_path):
    root, out = jhmdb[0], tmp_path / "out"
    one = ("--sequences", "man_run_1", "--no-overlay")
    assert carried("--jhmdb", root, out, *one).returncode == 0
    path = out / "merge_points/man_run_1.csv"
    before = path.stat().st_mtime_ns
    assert "overwritten unasked" in carried("--jhmdb", root, out, "--no-overlay").stderr
    assert "1 of 2 sequences were left" in carried("--jhmdb", root, out, "--no-overlay", "--continue").stderr
    assert "0 of 2 sequences were left" in carried("--jhmdb", root, out, "--no-overlay", "--continue").stderr
    assert path.stat().st_mtime_ns == before and (out / "merge_points/!a(b)_sit.csv").exists()
    for words in (("--continue",), (*one, "--overwrite")):
        done = carried("--jhmdb", root, out, "--no-overlay", "--set", "TEST.KNN", 5, *words)
        assert "come from one method" in done.stderr and path.stat().st_mtime_ns == before
    assert carried("--jhmdb", root, out, "--no-overlay", "--set", "TEST.KNN", 5, "--overwrite").returncode == 0
    assert path.stat().st_mtime_ns > before
    (out / "merge_points/run.json").unlink()
    assert "no run.json" in carried("--jhmdb", root, out, "--no-overlay", "--overwrite").stderr
    assert "--clean belong to masks, and --jhmdb" in carried("--jhmdb", root, out, "--clean").stderr
