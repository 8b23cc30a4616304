"""Points and keypoints: their files, how the search carries them, what the command writes and refuses."""

from __future__ import annotations

import csv
import json
import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import infer_vos_dul
from datasets.own_video import open_video
from datasets.points import Point, PointRow
from inference.points import draw_points, heat_maps, locate
from tests.helpers import called

pytestmark = pytest.mark.usefixtures("restored_process", "models_read_once")

W, H, LENGTH = 128, 96, 4


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A texture that moves 8 pixels to the right in every frame: one cell of the feature map."""
    root = tmp_path_factory.mktemp("points") / "clip"
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (H // 6, 2 * W // 6, 3), dtype=np.uint8)
    wide = cv2.resize(noise, (2 * W, H), interpolation=cv2.INTER_CUBIC)
    for t in range(LENGTH):
        Image.fromarray(wide[:, W - 8 * t:2 * W - 8 * t]).save(root / f"{t:05d}.png")
    return root


def run(frames, out, points, *more):
    return called(infer_vos_dul.main, "--video", frames, "--points", points, "--mask-output-dir", out, "--device",
                  "cpu", *more, "--infer_wh", W, H, "--set", "TEST.KNN", 1)


def test_points_move_with_the_picture(frames, tmp_path):
    (tmp_path / "p.csv").write_text("point,x,y,frame\nleft,32,40,0\nlate,60.5,48,2\n")
    done = run(frames, tmp_path / "out", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out/points.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["frame", "time", "point", "x", "y", "similarity", "visible"]
    assert [(row["frame"], row["point"]) for row in rows] == [
        ("0", "left"), ("1", "left"), ("2", "left"), ("2", "late"), ("3", "left"), ("3", "late")]
    assert [float(rows[0][key]) for key in ("x", "y", "similarity", "visible")] == [32, 40, 1, 1]
    assert float(rows[4]["time"]) == pytest.approx(3 / 24, abs=1e-6)
    for row, x, y in ((rows[4], 56, 40), (rows[5], 68.5, 48)):
        assert math.dist((float(row["x"]), float(row["y"])), (x, y)) < 8 and 0 < float(row["similarity"]) <= 1
    movie = open_video(tmp_path / "out/points.mp4")
    assert (len(movie), movie.size, movie.rate) == (LENGTH, (W, H), Fraction(24))


def test_nothing_is_overwritten_unasked(frames, tmp_path):
    (tmp_path / "p.csv").write_text("point,x,y\na,32,40\n")
    (tmp_path / "points.csv").write_text("mine")
    done = run(frames, tmp_path, tmp_path / "p.csv", "--no-overlay")
    assert done.returncode and "overwritten" in done.stderr and (tmp_path / "points.csv").read_text() == "mine"
    (tmp_path / "points.csv").write_text("point,x,y\na,32,40\n")
    assert "replace what it reads" in run(frames, tmp_path, tmp_path / "points.csv", "--overwrite").stderr
    assert (tmp_path / "points.csv").read_text() == "point,x,y\na,32,40\n"
    assert run(frames, tmp_path, tmp_path / "p.csv", "--no-overlay", "--overwrite").returncode == 0
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 1 + LENGTH
    assert not (tmp_path / "points.mp4").exists()


@pytest.mark.parametrize(("text", "words"), [
    ("x,y\n1,2\n", "lacks point"), ("point,x,y\n", "no point"), ("point,x,y\na,1\n", "as many values"),
    ("point,x,y\n,1,2\n", "name"), ("point,x,y\na,1,2\na,3,4\n", "twice"), ("point,x,y\na,one,2\n", "'one'"),
    ("point,x,y\na,nan,2\n", "inside"), ("point,x,y\na,128,2\n", "inside"), ("point,x,y\na,1,-3\n", "inside"),
    ("point,x,y,frame\na,1,2,4\n", "has 4"), ("point,x,y,frame\na,1,2,-1\n", "'-1'"), ("\x00", "point")])
def test_mistakes_in_a_table_are_named(frames, tmp_path, text, words):
    (tmp_path / "p.csv").write_text(text)
    done = run(frames, tmp_path / "out", tmp_path / "p.csv")
    assert done.returncode and words in done.stderr and "p.csv" in done.stderr and not (tmp_path / "out").exists()


def test_options_of_masks_are_refused(frames, tmp_path):
    for option in (["--mask", "m.png"], ["--backward"], ["--continue"], ["--write", "sheet"], ["--confidence-maps"]):
        assert f"{option[0]} belong to masks" in run(frames, tmp_path, "p.csv", *option).stderr


@pytest.mark.parametrize("align_corners", [True, False])
def test_positions_against_a_slow_definition(align_corners):
    width, height, size = 6, 5, (41, 33)
    point = Point("a", 0, 17.0, 20.0)
    maps = heat_maps([point], size, torch.zeros(2, height, width), align_corners)[0]
    middle = [17 * 5 / 40, 20 * 4 / 32] if align_corners else [17.5 * 6 / 41 - 0.5, 20.5 * 5 / 33 - 0.5]
    for y in range(height):
        for x in range(width):
            off = x - middle[0], y - middle[1]
            near = max(map(abs, off)) <= 1.5
            assert maps[y, x] == pytest.approx(near * math.exp(-(off[0] ** 2 + off[1] ** 2) / 0.5), abs=1e-6)
    labels = torch.zeros(2, height, width)
    labels[0, 2, 3], labels[0, 2, 4], labels[0, 3, 3], labels[0, 0, 0] = 0.4, 0.2, 0.2, 0.1  # the last is the fourth
    (x, y, similarity, visible), lost = locate(labels, torch.full_like(labels, 0.5), size, align_corners)
    cell = (0.4 * 3 + 0.2 * 4 + 0.2 * 3) / 0.8, (0.4 * 2 + 0.2 * 2 + 0.2 * 3) / 0.8
    expected = (cell[0] * 40 / 5, cell[1] * 32 / 4) if align_corners else \
        ((cell[0] + 0.5) * 41 / 6 - 0.5, (cell[1] + 0.5) * 33 / 5 - 0.5)
    assert (x, y) == pytest.approx(expected, abs=1e-4) and similarity == pytest.approx(0.5) and visible
    assert math.isnan(lost[0]) and math.isnan(lost[1]) and not lost[3]


def test_a_lost_point_is_not_drawn():
    frame = np.zeros((120, 160, 3), np.uint8)
    rows = [PointRow(1, 0, "a", 30.0, 40.0, 0.9, True), PointRow(1, 0, "b", 100.0, 40.0, 0.9, False)]
    picture = draw_points(frame, rows, ["a", "b"])
    assert picture[40, 30].any() and not picture[:, 60:].any() and not frame.any()


def test_joints_of_badja_are_points(frames, tmp_path):
    joints, visible = [[0, 0]] * 37, [False] * 37
    joints[8], joints[9], joints[34] = [40, 32], [48, 60], [10, 10]  # (row, column); 34, the chin, is no joint of it
    visible[8] = visible[34] = True
    later = {"image_path": "A/00003.jpg", "segmentation_path": "S/00003.png", "joints": joints, "visibility": visible}
    (tmp_path / "a.json").write_text(json.dumps([later, later | {"image_path": "A/00001.jpg"}]))
    assert run(frames, tmp_path, tmp_path / "a.json", "--no-overlay").returncode == 0
    rows = (tmp_path / "points.csv").read_text().splitlines()[1:]
    assert rows[0].startswith("1,0.041667,8,32.000,40.000,1.000,1") and len(rows) == LENGTH - 1
    (tmp_path / "b.json").write_text(json.dumps([later | {"image_path": "A/7.jpg"}]))
    assert "none of this name" in run(frames, tmp_path / "b", tmp_path / "b.json").stderr
    (tmp_path / "c.json").write_text("{}")
    assert "c.json" in run(frames, tmp_path / "c", tmp_path / "c.json").stderr
