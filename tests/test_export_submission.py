"""Archives for the evaluation servers: their form, and a list of everything that would be rejected."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import called
from tools import export_submission
from utils.masks import write_mask


def write(folder: Path, numbers, ids=(1, 2), size=(20, 30)) -> None:
    for t in numbers:
        mask = np.zeros(size, np.uint8)
        for k in ids:
            mask[k:k + 4, t:t + 5] = k
        write_mask(folder / f"{t:05d}.png", mask)


def pictures(folder: Path, numbers) -> None:
    folder.mkdir(parents=True)
    for t in numbers:
        Image.new("RGB", (30, 20)).save(folder / f"{t:05d}.jpg")


@pytest.fixture
def davis(tmp_path) -> Path:
    data = tmp_path / "davis2017"
    for sequence in ("ant", "bee"):
        pictures(data / "JPEGImages/480p" / sequence, range(4))
        write(data / "Annotations/480p" / sequence, [0])
        write(tmp_path / "results" / sequence, range(4))
    (data / "ImageSets/2017").mkdir(parents=True)
    (data / "ImageSets/2017/test-dev.txt").write_text("ant\nbee\n")
    return data


def export(tmp_path: Path, dataset: str, data: Path, *more):
    return called(export_submission.main, "--dataset", dataset, "--results", tmp_path / "results", "--out",
                  tmp_path / "x.zip", "--data", data, *more)


def test_davis_archive_holds_the_sequences_at_its_top(davis, tmp_path):
    write(tmp_path / "results/not-due", range(2))
    (tmp_path / "results/global_results-val.csv").write_text("")
    done = export(tmp_path, "davis-test-dev", davis)
    assert done.returncode == 0, done.stderr
    archive = zipfile.ZipFile(tmp_path / "x.zip")
    assert archive.testzip() is None
    assert archive.namelist() == [f"{sequence}/{t:05d}.png" for sequence in ("ant", "bee") for t in range(4)]
    assert archive.read("bee/00002.png") == (tmp_path / "results/bee/00002.png").read_bytes()
    first = (tmp_path / "x.zip").read_bytes()
    again = export(tmp_path, "davis-test-dev", davis)
    assert again.returncode == 1 and "x.zip exists" in again.stderr
    assert export(tmp_path, "davis-test-dev", davis, "--overwrite").returncode == 0
    assert (tmp_path / "x.zip").read_bytes() == first


@pytest.mark.parametrize("meta", [True, False])
def test_youtube_vos_archive_holds_the_frames_that_are_due(tmp_path, meta):
    data = tmp_path / "valid"
    pictures(data / "JPEGImages/0a", range(0, 30, 5))
    write(data / "Annotations/0a", [5], ids=[1])
    write(data / "Annotations/0a", [15], ids=[1, 3])
    write(tmp_path / "results/0a", range(30), ids=[1, 3])
    if meta:
        objects = {"1": {"frames": ["00005", "00010"]}, "3": {"frames": ["00015"]}}
        (data / "meta.json").write_text(json.dumps({"videos": {"0a": {"objects": objects}}}))
    done = export(tmp_path, "youtube-vos", data)
    assert done.returncode == 0, done.stderr
    assert zipfile.ZipFile(tmp_path / "x.zip").namelist() == \
        [f"Annotations/0a/{t:05d}.png" for t in range(5, 20 if meta else 30, 5)]


@pytest.mark.parametrize("meta", [
    '{"videos": {"../../up": {"objects": {"1": {"frames": ["00000"]}}}}}',
    '{"videos": {"0a": {"objects": {"1": {"frames": ["../../up"]}}}}}',
    '{"videos": {"0a": {"objects": {"1": {"frames": ["/abs"]}}}}}',
    '{"videos": {"0a": {"objects": {"1": {"frames": []}}}}}',
    '{"videos": {"0a": {"objects": {}}, "0a": {"objects": {}}}}', '{"videos": ' + "[" * 3000 + "]" * 3000 + "}", "[]"],
    ids=range(7))
def test_no_entry_of_the_archive_leaves_its_folder(tmp_path, meta):
    data = tmp_path / "valid"
    pictures(data / "JPEGImages/0a", [0])
    write(data / "Annotations/0a", [0])
    write(tmp_path / "results/0a", [0])
    (data / "meta.json").write_text(meta)
    done = export(tmp_path, "youtube-vos", data)
    assert done.returncode == 1 and "meta.json" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "x.zip").exists()


def test_hidden_files_and_names_without_zeros(tmp_path):
    data = tmp_path / "valid"
    for folder in ("JPEGImages/0a", "JPEGImages/.ipynb_checkpoints"):
        pictures(data / folder, [])
    for t in range(8, 12):
        Image.new("RGB", (30, 20)).save(data / f"JPEGImages/0a/{t}.jpg")
        write_mask(tmp_path / f"results/0a/{t}.{'PNG' if t == 10 else 'png'}", np.zeros((20, 30), np.uint8))
    write_mask(data / "Annotations/0a/9.png", np.ones((20, 30), np.uint8))
    for stray in ("Annotations/.DS_Store", "Annotations/0a/._9.png", "JPEGImages/0a/._8.jpg"):
        (data / stray).write_bytes(b"none")
    done = export(tmp_path, "youtube-vos", data)
    assert done.returncode == 0, done.stderr
    assert zipfile.ZipFile(tmp_path / "x.zip").namelist() == [f"Annotations/0a/{t}.png" for t in (9, 10, 11)]


def test_everything_that_would_be_rejected_is_listed(davis, tmp_path):
    results = tmp_path / "results"
    for sequence in ("cow", "dog", "eel", "fox", "gnu", "hen"):
        pictures(davis / "JPEGImages/480p" / sequence, range(4))
        write(davis / "Annotations/480p" / sequence, [0])
        write(results / sequence, range(4))
    (davis / "ImageSets/2017/test-dev.txt").write_text("ant\nbee\ncow\ndog\neel\nfox\ngnu\nhen\n")
    for t in (0, 3):
        (results / f"ant/{t:05d}.png").unlink()
    (results / "bee").rename(tmp_path / "bee")
    write(results / "cow", [1], size=(40, 60))
    Image.new("RGB", (30, 20)).save(results / "dog/00002.png")
    write(results / "eel", [1, 2], ids=[1, 7])
    Image.fromarray(np.ones((20, 30), np.uint8)).save(results / "fox/00003.png")
    grey = Image.fromarray(np.ones((20, 30), np.uint8), mode="P")
    grey.putpalette([v for v in range(256) for _ in range(3)])
    grey.save(results / "gnu/00001.png")
    (results / "hen/00000.png").write_bytes((results / "hen/00000.png").read_bytes()[:60])
    done = export(tmp_path, "davis-test-dev", davis)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for line in ("ant: missing: 00000 00003 (2 frames)", "bee: the whole sequence is missing",
                 "cow: not of the size 30x20: 00001 (the first: 60x40)", "dog: no readable index mask: 00002",
                 "eel: ids other than 1 2: 00001 00002 (2 frames; the first: 7)",
                 "fox: not a palette PNG in DAVIS colours: 00003", "gnu: not a palette PNG in DAVIS colours: 00001",
                 "hen: no readable index mask: 00000"):
        assert line in done.stderr, line
    assert not (tmp_path / "x.zip").exists()


def test_mistakes_in_the_arguments(davis, tmp_path):
    (davis / "meta.json").write_text("[]")
    (davis / "JPEGImages/x").mkdir()
    (davis / "Annotations/x").mkdir()
    for dataset, data, more, word in (("davis-test-dev", tmp_path / "none", [], "none"),
                                      ("youtube-vos", davis, [], "meta.json"),
                                      ("davis-test-dev", davis, ["--results", "nores"], "nores"),
                                      ("davis-test-dev", davis, ["--out", "x.tar"], "x.tar")):
        done = export(tmp_path, dataset, data, *more)
        assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr
