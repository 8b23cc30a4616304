"""File lists: where they are looked for, what they mean, and what is said about a wrong one."""

from __future__ import annotations

from collections import Counter

import pytest

from datasets import filelists
from datasets.filelists import (
    find_list,
    list_stills,
    locate_list,
    read_evaluation_list,
    read_training_list,
    scan_videos,
)
from utils.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(root, text, name="filelists/list.txt"):
    touch(root, name)
    (root / name).write_text(text)
    return root / name


def test_root_comes_before_the_repository_and_txt_may_be_left_out(tmp_path, monkeypatch):
    repository, root = tmp_path / "repository", tmp_path / "root"
    monkeypatch.setattr(filelists, "REPOSITORY", repository)
    touch(repository, "filelists/both.txt", "filelists/ours.txt")
    touch(root, "filelists/both.txt")
    assert find_list("filelists/both", root) == find_list("filelists/both.txt", root) == root / "filelists/both.txt"
    assert find_list("filelists/ours", root) == repository / "filelists/ours.txt"
    assert locate_list("filelists/none", root) is None
    with pytest.raises(UserError, match=f"{root}/filelists/none.*{repository}/filelists/none"):
        find_list("filelists/none", root)


def test_the_shipped_davis_list_has_the_published_counts():
    lines = [line.split() for line in find_list("filelists/val_davis2017_test", "nowhere").read_text().splitlines()]
    counts = Counter(frame.split("/")[-2] for _, frame, _ in lines)
    assert len(counts) == 30 and sum(counts.values()) == 1999
    assert counts["bike-packing"] == 69 and counts["soapbox"] == 99 and counts["judo"] == 34
    assert lines[69] == ["1", "davis2017/JPEGImages/480p/blackswan/00000.jpg",
                         "davis2017/Annotations/480p/blackswan/00000.png"]


def test_training_list_groups_by_folder_and_keeps_order(tmp_path):
    touch(tmp_path, "JPEGImages/a/2.jpg", "JPEGImages/a/1.jpg", "JPEGImages/b/1.jpg")
    path = write(tmp_path, "# ours\nJPEGImages/a/2.jpg\nJPEGImages/b/1.jpg\n\nJPEGImages/a/1.jpg\n")
    videos = read_training_list(path, tmp_path)
    assert [(v.name, [f.name for f in v.frames]) for v in videos] == [("JPEGImages/a", ["2.jpg", "1.jpg"]),
                                                                      ("JPEGImages/b", ["1.jpg"])]


def test_scan_finds_folders_of_frames_in_any_depth(tmp_path):
    touch(tmp_path, "x/y/frame10.jpg", "x/y/frame2.jpg", "x/y/notes.txt", "x/z/1.png", "top.jpg", ".hidden/1.jpg",
          "Annotations/a/1.png", "davis2017/a/1.jpg", "COCO/train2017/1.jpg", "x/y/.frame1.jpg")
    (tmp_path / "x/loop").symlink_to(tmp_path, target_is_directory=True)
    found = {video.name: [frame.name for frame in video.frames] for video in scan_videos(tmp_path)}
    assert found == {".": ["top.jpg"], "x/y": ["frame2.jpg", "frame10.jpg"], "x/z": ["1.png"]}
    touch(tmp_path, "JPEGImages/v/0.jpg")
    assert [video.name for video in scan_videos(tmp_path)] == ["JPEGImages/v"]


def test_scan_follows_a_linked_jpegimages(tmp_path):
    touch(tmp_path / "elsewhere", "v/0.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/JPEGImages").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [video.name for video in scan_videos(tmp_path / "root")] == ["JPEGImages/v"]


def test_stills(tmp_path):
    with pytest.raises(UserError, match="COCO/train2017"):
        list_stills(tmp_path, "COCO/train2017")
    touch(tmp_path, "COCO/train2017/2.jpg", "COCO/train2017/1.jpg", "COCO/train2017/readme.txt")
    assert [video.name for video in list_stills(tmp_path, "COCO/train2017")] == [
        "COCO/train2017/1.jpg", "COCO/train2017/2.jpg"]


def test_stills_lie_in_any_folder_and_depth_and_are_no_video(tmp_path):
    touch(tmp_path, "photos/cats/2.jpg", "photos/cats/10.jpg", "photos/1.jpg", "photos/.hidden/1.jpg", "v/0.jpg")
    names = ["photos/1.jpg", "photos/cats/2.jpg", "photos/cats/10.jpg"]
    for folder in ("photos", str(tmp_path / "photos")):
        assert [still.name for still in list_stills(tmp_path, folder)] == names
        assert [video.name for video in scan_videos(tmp_path, folder)] == ["v"]


@pytest.fixture
def davis(tmp_path):
    touch(tmp_path, *(f"img/{s}/{t:05d}.jpg" for s in "ab" for t in range(3)), "ann/a/00000.png", "ann/b/00000.png")
    return tmp_path


def test_evaluation_list(davis):
    path = write(davis, "1 img/a/00000.jpg ann/a/00000.png\n0 img/b/00000.jpg ann/b/00000.png\n"
                        "0 img/a/00002.jpg ann/a/00002.png\n")
    a, b = read_evaluation_list(path, davis)
    assert (a.name, b.name) == ("a", "b")
    assert [frame.image.name for frame in a.frames] == ["00000.jpg", "00002.jpg"]
    assert [frame.save for frame in a.frames] == [True, False]
    assert a.frames[0].mask.is_file() and not a.frames[1].mask.exists()


def test_names_with_blanks_stand_between_tabs_and_a_byte_order_mark_is_none(tmp_path):
    touch(tmp_path, "img/take 1/0 0.jpg", "ann/take 1/0 0.png")
    path = write(tmp_path, "\ufeff1\timg/take 1/0 0.jpg\tann/take 1/0 0.png\n")
    [take] = read_evaluation_list(path, tmp_path)
    assert (take.name, take.frames[0].image.name) == ("take 1", "0 0.jpg")
    with pytest.raises(UserError, match="with tabs between them"):
        read_evaluation_list(write(tmp_path, "1 img/take 1/0 0.jpg ann/take 1/0 0.png\n"), tmp_path)
    with pytest.raises(UserError, match="NUL"):
        read_training_list(write(tmp_path, "img/a\0b.jpg\n"), tmp_path)
    assert [v.frames[0].name for v in read_training_list(write(tmp_path, "\ufeffimg/take 1/0 0.jpg\n"), tmp_path)] == [
        "0 0.jpg"]


GOOD = "1 img/a/00000.jpg ann/a/00000.png\n"


@pytest.mark.parametrize("text, words", [
    ("", ["list.txt", "empty"]),
    ("# nothing\n\n", ["empty"]),
    (GOOD + "1 only-two\n", ["list.txt, line 2", "only-two"]),
    ("2 img/a/00000.jpg ann/a/00000.png\n", ["line 1", "save flag"]),
    (GOOD + "\n1 img/a/00009.jpg ann/a/00000.png\n", ["line 3", "00009.jpg"]),
    ("1 img/../../etc/a.jpg ann/a/00000.png\n", ["line 1", "img/../../etc/a.jpg", "leaves"]),
    (GOOD + "1 img/a/00001.jpg /etc/hostname\n", ["line 2", "/etc/hostname"]),
    ("1 img/b/00001.jpg ann/b/00001.png\n", ["line 1", "sequence b", "00001.png"]),
    (GOOD + GOOD, ["line 2", "once"]),
])
def test_wrong_evaluation_lists_are_refused_with_list_line_and_culprit(davis, text, words):
    with pytest.raises(UserError) as caught:
        read_evaluation_list(write(davis, text), davis)
    assert all(word in str(caught.value) for word in words), caught.value


def test_two_folders_of_one_name_are_refused(davis):
    touch(davis, "more/a/00005.jpg")
    with pytest.raises(UserError, match="name of its own"):
        read_evaluation_list(write(davis, GOOD + "1 more/a/00005.jpg ann/a/00000.png\n"), davis)


def test_links_inside_the_root_may_point_anywhere(davis):
    root = davis / "inner"
    root.mkdir()
    (root / "img").symlink_to(davis / "img", target_is_directory=True)
    (root / "ann").symlink_to(davis / "ann", target_is_directory=True)
    assert [sequence.name for sequence in read_evaluation_list(write(root, GOOD), root)] == ["a"]


@pytest.mark.parametrize("text, words", [("JPEGImages/no.jpg\n", ["line 1", "no.jpg"]), ("../x.jpg\n", ["../x.jpg"])])
def test_wrong_training_lists_are_refused(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        read_training_list(write(tmp_path, text), tmp_path)
    assert all(word in str(caught.value) for word in words)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    path = write(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(UserError, match="UTF-8"):
        read_training_list(path, tmp_path)


def test_a_root_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        scan_videos(tmp_path / "nowhere")
