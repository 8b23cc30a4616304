"""Video files to frames: whole folders, the rate kept, nothing overwritten, broken files named."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
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


@pytest.mark.slow
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


def write_transport_stream(path, count=12, sizes=((96, 64),)):
    """Grey frames in an MPEG transport stream; each of `sizes` for its share of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coders = []
    for width, height in sizes:
        coder = av.CodecContext.create("mpeg2video", "w")
        coder.width, coder.height, coder.pix_fmt, coder.time_base = width, height, "yuv420p", Fraction(1, 25)
        coders.append(coder)
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuv420p"
        for number, coder in enumerate(coders):
            share = count // len(coders)
            packets = [packet for t in range(number * share, (number + 1) * share) for packet in coder.encode(
                av.VideoFrame.from_ndarray(np.full((coder.height, coder.width, 3), 20 * t, np.uint8), format="rgb24"))]
            for t, packet in enumerate(packets + coder.encode(), start=number * share):
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, t, t, Fraction(1, 25)
                container.mux(packet)
    return path


@pytest.mark.slow
def test_every_container_of_a_folder_is_tried_and_the_rest_is_named(tmp_path):
    for name in ("a.MTS", "deep/b.ts", "c.dat", "._hidden.mp4", "...mp4"):
        write_transport_stream(tmp_path / "in" / name)
    write_transport_stream(tmp_path / "in/turned.mpg", sizes=((96, 64), (64, 96)))
    (tmp_path / "in/c.txt").write_text("subtitles of c.dat")
    done = prepare(tmp_path / "in", "--root", tmp_path / "root", "--short-side", 32)
    frames = {str(path.relative_to(tmp_path / "root/JPEGImages")): len(list(path.glob("*.jpg")))
              for path in (tmp_path / "root/JPEGImages").rglob("*") if path.is_dir() and list(path.glob("*.jpg"))}
    assert frames == {"a": 12, "deep/b": 12, "c": 12}
    assert "no videos:" in done.stdout and "c.txt" in done.stdout and "._hidden" not in done.stdout
    assert done.returncode == 1 and "1 videos could not be decoded" in done.stdout
    assert "turned.mpg changes from 96x64 to 64x96" in done.stdout and "Traceback" not in done.stdout


def test_a_name_of_dots_stays_in_the_root(tmp_path):
    video = write_transport_stream(tmp_path / "...mp4")
    assert find_videos([video]) == {"mp4": video}


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


@pytest.mark.slow
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
