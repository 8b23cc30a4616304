"""Data sets in their published layouts become the sequences that a list would name; what is missing is said at once."""

from __future__ import annotations

import json

import pytest

from datasets.filelists import read_evaluation_list
from datasets.inventory import inventory
from datasets.video_sets import davis_names, read_davis, read_folder_pair, read_youtube_vos
from utils.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def davis(tmp_path):
    """Two sequences, all of whose frames are annotated, and one of which only the first is."""
    root = tmp_path / "davis2017"
    for name in ("ant", "red bee", "cow"):
        touch(root, *(f"JPEGImages/480p/{name}/{t:05d}.jpg" for t in range(3)))
        touch(root, *(f"Annotations/480p/{name}/{t:05d}.png" for t in range(1 if name == "cow" else 3)))
    for path, names in (("2017/val", "ant\nred bee\n"), ("2017/test-dev", "cow"), ("2016/val", "ant")):
        touch(root, f"ImageSets/{path}.txt")
        (root / f"ImageSets/{path}.txt").write_text(names)
    return root


def test_davis_is_what_its_list_would_be(davis, tmp_path):
    line = "1 davis2017/JPEGImages/480p/ant/{0:05d}.jpg davis2017/Annotations/480p/ant/{0:05d}.png\n"
    (tmp_path / "list.txt").write_text("".join(line.format(t) for t in range(3)))
    assert read_davis(davis, "val", ["ant"]) == read_evaluation_list(tmp_path / "list.txt", tmp_path)
    assert [s.name for s in read_davis(davis, "val")] == ["ant", "red bee"]
    assert davis_names(davis, "2016-val") == ["ant"]
    [cow] = read_davis(davis, "test-dev")
    assert [frame.mask.exists() for frame in cow.frames] == [True, False, False]
    with pytest.raises(UserError, match=r"2017/train\.txt.*2016/val\.txt, ImageSets/2017/test-dev\.txt"):
        read_davis(davis, "train")
    for name in ("../val", "2016-../../x"):
        with pytest.raises(UserError, match="a set has a name"):
            read_davis(davis, name)


def test_a_set_in_part_says_what_is_missing_and_is_run_in_part(davis):
    (davis / "Annotations/480p/red bee/00000.png").unlink()
    (davis / "JPEGImages/480p/ant/00002.jpg").unlink()
    touch(davis, "JPEGImages/480p/ant/.00002.jpg", "ImageSets/2017/all.txt")
    (davis / "ImageSets/2017/all.txt").write_text("ant\nred bee\ncow\ndog\n")
    with pytest.raises(UserError) as error:
        read_davis(davis, "all")
    for line in ("3 of 4 sequences are not whole", "--sequences cow", "ant: 1 masks without a frame, such as 00002",
                 "red bee: no mask of 00000", "dog: no frames in", "480p/dog; no masks in"):
        assert line in str(error.value), line
    assert [s.name for s in read_davis(davis, "all", ["cow"])] == ["cow"]
    with pytest.raises(UserError, match="has no hen; it has ant, red bee, cow, dog"):
        read_davis(davis, "all", ["cow", "hen"])


def test_youtube_vos_begins_with_its_first_object(tmp_path):
    objects = {"1": {"category": "ape", "frames": ["00010", "00005"]}, "2": {"frames": ["00010", "00015"]}}
    meta = {"videos": {"v10": {"objects": objects}, "v2": {"objects": {"1": {"frames": ["00000"]}}}}}
    touch(tmp_path, "meta.json", *(f"JPEGImages/{v}/{t:05d}.jpg" for v in ("v2", "v10") for t in range(0, 20, 5)),
          "Annotations/v2/00000.png", "Annotations/v10/00005.png", "Annotations/v10/00010.png")
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    first, second = read_youtube_vos(tmp_path)
    assert (first.name, second.name) == ("v2", "v10")
    assert [frame.image.stem for frame in second.frames] == ["00005", "00010", "00015"]
    (tmp_path / "Annotations/v10/00010.png").unlink()
    with pytest.raises(UserError, match="--sequences v2\n  v10: no mask of 00010"):
        read_youtube_vos(tmp_path)
    (tmp_path / "meta.json").write_text('{"videos": {"..": {"objects": {"1": {"frames": ["0"]}}}}}')
    with pytest.raises(UserError, match=r"meta\.json: a video has a name"):
        read_youtube_vos(tmp_path)


def test_any_folder_pair(tmp_path, caplog):
    touch(tmp_path, *(f"f/take/{t}.JPG" for t in range(8, 12)), "f/.hidden/1.jpg", "m/take/9.PNG", "m/take/._8.png")
    for frames, masks in (("f", "m"), ("f/take", "m/take")):
        [take] = read_folder_pair(tmp_path / frames, tmp_path / masks)
        assert take.name == "take" and [frame.image.name for frame in take.frames] == ["9.JPG", "10.JPG", "11.JPG"]
        assert take.frames[0].mask.name == "9.PNG" and "the 1 frames before 9" in caplog.text
    touch(tmp_path, "f/take/9.png")
    with pytest.raises(UserError, match=r"one file; .* has 9\.JPG and 9\.png"):
        read_folder_pair(tmp_path / "f", tmp_path / "m")
    with pytest.raises(UserError, match="--masks is a folder"):
        read_folder_pair(tmp_path / "f", tmp_path / "none")


def test_inventory(davis, tmp_path):
    touch(tmp_path, "JPEGImages/a/0.jpg", "valid/meta.json")
    found = {one.name: one for one in inventory(tmp_path)}
    assert found["YouTube-VOS train"].state == "incomplete" and "1 of 3471 videos" in found["YouTube-VOS train"].detail
    assert found["DAVIS 2017 test-dev"] == ("DAVIS 2017 test-dev", "complete", f"1 sequences, 3 frames in {davis}")
    assert found["DAVIS 2017 val"].state == "incomplete", "the published list names frames that are not there"
    assert "train.txt" in found["DAVIS 2017 train"].detail and "unpack DAVIS-2017" in found["DAVIS 2017 train"].detail
    assert found["YouTube-VOS valid"].state == "incomplete" and found["COCO train2017"].state == "missing"
