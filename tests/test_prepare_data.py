"""Video files to frames: whole folders, the rate kept, nothing overwritten, broken files named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tools.prepare_data import decode_video, find_videos
from utils.errors import UserError
from utils.pictures import read_frame

REPOSITORY = Path(__file__).resolve().parent.parent


def write_video(path, count=12, size=(96, 64), fps=25):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, size)
    for t in range(count):
        writer.write(np.full((size[1], size[0], 3), 20 * t, np.uint8))
    writer.release()
    return path


def prepare(*arguments):
    return subprocess.run([sys.executable, REPOSITORY / "tools/prepare_data.py", *map(str, arguments)], text=True,
                          cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)


def test_videos_become_folders_and_an_index(tmp_path):
    write_video(tmp_path / "in/a.avi")
    write_video(tmp_path / "in/deep/b.avi", count=3)
    (tmp_path / "in/c.mp4").write_text("no video")
    done = prepare(tmp_path / "in", "--root", tmp_path / "root", "--short-side", 32)
    assert done.returncode == 1 and "c.mp4" in done.stdout and "Traceback" not in done.stdout
    frames = sorted((tmp_path / "root/JPEGImages/a").glob("*.jpg"))
    assert [frame.name for frame in frames] == [f"{t:05d}.jpg" for t in range(12)]
    for t, frame in enumerate(frames):
        picture = read_frame(frame)
        assert picture.shape == (32, 48, 3) and abs(picture.astype(int) - 20 * t).mean() < 5
    assert json.loads((tmp_path / "root/JPEGImages/a/video.json").read_text()) == {"source": "a.avi", "fps": 25.0,
                                                                                   "frames": 12}
    index = json.loads((tmp_path / "root/video_index.json").read_text())
    assert (index["videos"], index["frames"], index["too_short"]) == (2, 15, ["JPEGImages/deep/b"])
    assert "2 videos, 15 frames" in done.stdout

    frames[0].unlink()
    again = prepare(tmp_path / "in/a.avi", "--root", tmp_path / "root")
    assert again.returncode == 0 and "left alone" in again.stdout and not frames[0].exists()


def test_frames_are_never_enlarged(tmp_path):
    assert decode_video(write_video(tmp_path / "a.avi", count=1), tmp_path / "a", 480, 92)
    assert read_frame(tmp_path / "a/00000.jpg").shape == (64, 96, 3)


def test_an_interrupted_video_leaves_no_folder(tmp_path, monkeypatch):
    video = write_video(tmp_path / "a.avi")
    written = []

    def full(path, data):
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match="No space left"):
            decode_video(video, tmp_path / "out/a", 64, 92)
    assert list((tmp_path / "out").iterdir()) == []
    assert decode_video(video, tmp_path / "out/a", 64, 92) and len(list((tmp_path / "out/a").glob("*.jpg"))) == 12


def test_what_cannot_be_prepared_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    videos = [write_video(tmp_path / f"{folder}/same.avi", count=1) for folder in "xy"]
    assert find_videos([tmp_path / "x"]) == {"same": videos[0]}
    for paths, word in (([tmp_path / "none.mp4"], "none.mp4"), ([tmp_path / "empty"], "empty"), (videos, "rename")):
        with pytest.raises(UserError, match=word):
            find_videos(paths)
    done = prepare("--root", tmp_path / "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stdout and "Traceback" not in done.stdout
    assert prepare("--short-side", 0).returncode == 1
