"""Whose results a folder holds: what a run may replace, what it leaves alone, and how it says so."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from inference.results import PRODUCTS, ResultFolder, SequenceFiles
from utils.errors import UserError
from utils.masks import write_mask

METHOD = {"KNN": 10}
NAMES = ["00000", "00001", "00002"]


def sequence(root: Path, name: str = "walk", frames: list[str] | None = None, **options) -> SequenceFiles:
    options = {"products": ["overlays"], "source": {"frames": "/data/walk"}} | options
    return ResultFolder(root, "merge").sequence(name, NAMES if frames is None else frames, **options)


def make(files: SequenceFiles, method: dict = METHOD, *, finished: bool = True) -> None:
    """What a run leaves."""
    files.begin(method)
    for frame in files.frames:
        write_mask(files.mask(frame), np.zeros((4, 4), np.uint8))
        files.overlay(frame).parent.mkdir(parents=True, exist_ok=True)
        files.overlay(frame).write_bytes(b"picture")
    if finished:
        files.finish(method)


def claim(root: Path, *files: SequenceFiles, method: dict = METHOD, **options) -> list[str]:
    """Names of the sequences that are to be done."""
    with ResultFolder(root, "merge").claim(files, {"method": method}, **options) as todo:
        return [one.masks.name for one in todo]


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "run.json"}


@pytest.mark.parametrize("options", [{}, {"keep": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("place", ["merge_vos/walk/00001.png", "merge_vis/walk/00001.jpg",
                                   "merge_vis/walk/overlay.mp4"])
def test_what_no_run_has_made_is_a_users_own(tmp_path, place, options):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(b"drawn by hand")
    with pytest.raises(UserError, match=rf"no run\.json in .*{Path(place).name} is one.*--mask-output-dir"):
        claim(tmp_path, sequence(tmp_path), **options)
    assert list(contents(tmp_path).values()) == [b"drawn by hand"]


def test_each_sequence_says_what_made_it(tmp_path):
    """The folder's record is of the last run only: one of other settings may have replaced a part of the sequences."""
    walk, run = sequence(tmp_path, "walk"), sequence(tmp_path, "run")
    claim(tmp_path, walk, run)
    make(walk)
    make(run)
    claim(tmp_path, run, method={"KNN": 3}, overwrite=True)
    make(run, {"KNN": 3})
    with pytest.raises(UserError, match=r"walk/run\.json was made with another \(KNN 10 -> 3\)"):
        claim(tmp_path, walk, run, method={"KNN": 3}, keep=True)
    with pytest.raises(UserError, match="KNN 3 -> 10"):
        claim(tmp_path, walk, run, keep=True)
    elsewhere = sequence(tmp_path, "run", source={"frames": "/data/other"})
    with pytest.raises(UserError, match="goes on with the same video"):
        claim(tmp_path, elsewhere, method={"KNN": 3}, keep=True)


def test_finished_sequences_are_kept_and_others_done_again(tmp_path):
    names = ["done", "ended", "damaged", "bare", "new"]
    files = {name: sequence(tmp_path, name) for name in names}
    for name in names[:-1]:
        make(files[name], finished=name != "ended")
    files["damaged"].mask("00001").write_bytes(b"")
    files["bare"].overlay("00002").unlink()
    assert claim(tmp_path, *files.values(), keep=True) == names[1:]
    more = sequence(tmp_path, "done", products=["overlays", "confidence"])
    assert claim(tmp_path, more, keep=True) == ["done"], "a product is missing"


def test_a_shortened_video_leaves_nothing_of_the_longer_one(tmp_path):
    long = sequence(tmp_path, frames=[f"{t:05d}" for t in range(9)])
    make(long)
    (long.masks / "notes.png").write_bytes(b"a user's")
    (long.passes / "forward").mkdir(parents=True)
    short = sequence(tmp_path)
    with pytest.raises(UserError, match="exists; give --continue"):
        claim(tmp_path, short)
    claim(tmp_path, short, overwrite=True)
    assert list(contents(tmp_path).values()) == [b"a user's"] and not long.passes.exists()


@pytest.mark.parametrize("options", [{"keep": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("how", ["file", "link", "folder"])
def test_a_run_never_removes_what_it_reads(tmp_path, options, how):
    files = sequence(tmp_path / "out")
    make(files, finished=False)
    mask = files.mask("00000")
    (tmp_path / "link.png").symlink_to(mask)
    os.link(mask, tmp_path / "hard.png")
    before = contents(tmp_path)
    inputs = {"file": [mask], "link": [tmp_path / "link.png"], "folder": [files.overlays]}[how]
    for given in ([tmp_path / "hard.png"], inputs):
        with pytest.raises(UserError, match="does not replace what it reads"):
            claim(tmp_path / "out", files, inputs=[tmp_path / "missing", *given], **options)
    assert contents(tmp_path) == before


def test_one_run_at_a_time(tmp_path):
    files = sequence(tmp_path)
    with ResultFolder(tmp_path, "merge").claim([files], {"method": METHOD}):
        with pytest.raises(UserError, match=r"one run at a time writes to .*merge_vos"):
            claim(tmp_path, files, overwrite=True)
        with ResultFolder(tmp_path, "color").claim([files], {"method": METHOD}):
            pass
    assert claim(tmp_path, files) == ["walk"]


def test_every_product_has_a_place_of_its_own(tmp_path):
    for alone in (False, True):
        files = sequence(tmp_path, products=list(PRODUCTS), alone=alone)
        places = [files.video, files.sheet, files.table, files.mask("a"), files.overlay("a"), files.map("a"),
                  files.passes]
        assert len(set(places)) == len(places) and all(place.is_relative_to(tmp_path) for place in places)
    assert sequence(tmp_path, alone=True).video == tmp_path / "merge_vis/overlay.mp4"
    assert sequence(tmp_path).video == tmp_path / "merge_vis/walk/overlay.mp4"
    assert ResultFolder(tmp_path, "timm:a/../b").masks.parent == tmp_path
