"""A user's video: files and folders, upright, with their times, in both directions."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import datasets.video as video_module
from datasets.own_video import open_video
from inference.writer import VideoWriter
from utils.errors import UserError

W, H = 64, 48


def pictures(count: int) -> list[np.ndarray]:
    """Frame t has a bright bar at 2t, and its upper left quarter is red."""
    made = []
    for t in range(count):
        picture = np.full((H, W, 3), 60, np.uint8)
        picture[:H // 2, :W // 2] = (220, 30, 30)
        picture[:, 2 * t:2 * t + 3] = 255
        made.append(picture)
    return made


def write_file(path: Path, frames: list[np.ndarray], times: list[float] | None = None) -> Path:
    height, width = frames[0].shape[:2]
    writer = VideoWriter(path, (width, height), Fraction(25))
    for t, frame in enumerate(frames):
        writer.write(frame, Fraction(times[t]).limit_denominator(1000) if times else Fraction(t, 25))
    writer.close()
    return path


def place_of(frame: np.ndarray) -> int:
    """The t that `pictures` drew."""
    return round((frame[-4:].mean((0, 2)) > 200).nonzero()[0].mean() / 2 - 0.5)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_file(tmp_path_factory.mktemp("video") / "clip.mp4", pictures(30))


def test_a_file_has_its_frames_names_size_and_rate(file):
    video = open_video(file)
    assert (len(video), video.size, video.rate, video.names[12]) == (30, (W, H), 25, "00012")
    frames = list(video.frames())
    assert [place_of(frame) for frame in frames] == list(range(30))
    assert np.abs(frames[0].astype(int) - pictures(1)[0]).mean() < 4


def test_a_part_and_the_way_back_are_the_same_frames(file, monkeypatch):
    video = open_video(file)
    frames = list(video.frames())
    for start, stop in ((0, 1), (7, 20), (29, 30), (11, None)):
        for got, expected in zip(video.frames(start, stop), frames[start:stop], strict=True):
            assert np.array_equal(got, expected)
    monkeypatch.setattr(video_module, "REVERSED_BYTES", 7 * 3 * W * H)
    for got, expected in zip(video.reversed_frames(24), frames[24::-1], strict=True):
        assert np.array_equal(got, expected)


def test_a_variable_rate_is_kept(tmp_path):
    times = [0, 0.04, 0.1, 0.5, 0.52, 1.0, 1.7]
    video = open_video(write_file(tmp_path / "variable.mp4", pictures(7), times))
    assert [float(video.time(i)) for i in range(7)] == pytest.approx(times, abs=1e-4)
    assert [place_of(frame) for frame in video.frames()] == list(range(7))


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation_metadata_is_honoured(file, tmp_path, matrix, turns):
    """The matrix of an MP4 track: (a, b, c, d) takes x to a*x + c*y and y to b*x + d*y."""
    data = bytearray(file.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (65536 * value for value in matrix)
    assert struct.unpack(">9i", data[start:start + 36])[:2] == (65536, 0), "the matrix is where it is looked for"
    data[start:start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    upright, turned = open_video(file), open_video(tmp_path / "turned.mp4")
    assert turned.size == ((H, W) if turns % 2 else (W, H))
    assert np.array_equal(next(turned.frames()), np.rot90(next(upright.frames()), turns))


def test_files_without_stamps_are_read_in_order(tmp_path):
    """Packets of an AVI with MPEG-4 carry no time of presentation."""
    with av.open(str(tmp_path / "old.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for picture in pictures(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    video = open_video(tmp_path / "old.avi")
    assert (len(video), video.rate) == (9, 10)
    assert [place_of(frame) for frame in video.reversed_frames(8)] == list(range(8, -1, -1))
    assert float(video.time(5)) == pytest.approx(0.5)


def test_a_folder_is_in_natural_order_whatever_its_formats(tmp_path):
    for t, name in enumerate(["frame2.png", "frame9.jpg", "frame10.PNG", "frame11.bmp"]):
        Image.fromarray(pictures(t + 1)[t]).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    video = open_video(tmp_path, 12.5)
    assert video.names == ["frame2", "frame9", "frame10", "frame11"]
    assert [place_of(frame) for frame in video.frames()] == [0, 1, 2, 3]
    assert [place_of(frame) for frame in video.reversed_frames(2)] == [2, 1, 0]
    assert (video.size, video.time(5)) == ((W, H), Fraction(2, 5))
    assert open_video(tmp_path).rate == 24


def test_a_photograph_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.jpg", exif=exif, quality=95)
    video = open_video(tmp_path)
    frame = next(video.frames())
    assert video.size == (H, W) and frame.shape[:2] == (W, H)
    assert frame[4, -4, 0] > 180 and frame[4, 8, 0] < 100, "red is at the upper right now"


def folder_of(*files: tuple[str, tuple[int, int]]):
    def make(path: Path) -> Path:
        for name, size in files:
            Image.new("RGB", size).save(path / name)
        return path
    return make


def damaged(change):
    def make(path: Path) -> Path:
        target = write_file(path / "clip.mp4", pictures(30))
        target.write_bytes(change(target.read_bytes()))
        return target
    return make


def text(path: Path) -> Path:
    (path / "text.mp4").write_text("not a video " * 100)
    return path / "text.mp4"


def sound(path: Path) -> Path:
    with av.open(str(path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path / "sound.mp4"


def empty(path: Path) -> Path:
    with av.open(str(path / "empty.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        container.start_encoding()
    return path / "empty.avi"


def picture(path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(path / "one.jpg")
    return path / "one.jpg"


REFUSED = {
    "missing": (lambda path: path / "none.mp4", "none.mp4 cannot be opened"),
    "text": (text, "text.mp4 cannot be opened"),
    "picture": (picture, "one.jpg holds no video.*folder"),
    "sound": (sound, "sound.mp4 holds no video"),
    "no frames": (empty, "empty.avi has none"),
    "unknown codec": (damaged(lambda data: data.replace(b"avc1", b"zzzz")), "codec of .*clip.mp4 is not known"),
    "cut short": (damaged(lambda data: data[:len(data) // 2]), "clip.mp4 cannot be opened"),
    "empty folder": (folder_of(), "has none"),
    "two of a name": (folder_of(("a.png", (8, 8)), ("a.jpg", (8, 8))), "two pictures named a"),
    "two sizes": (folder_of(("a.png", (8, 8)), ("b.png", (8, 9))), "a.png is 8x8 and b.png is 8x9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_video_is_refused(tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        open_video(make(tmp_path))


def test_a_broken_picture_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.png cannot be read"):
        open_video(tmp_path)


def test_damage_in_the_middle_is_said_and_the_rest_is_read(file, tmp_path, caplog):
    with av.open(str(file)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][10]
    data = bytearray(file.read_bytes())
    data[packet.pos:] = bytes(len(data) - packet.pos)  # the index, at the end of the file, is gone with it
    index = file.read_bytes().index(b"moov") - 4
    data[index:] = file.read_bytes()[index:]
    (tmp_path / "damaged.mp4").write_bytes(data)
    video = open_video(tmp_path / "damaged.mp4")
    assert "damaged.mp4 is damaged" in caplog.text and f"it has {len(video)} frames" in caplog.text
    places = [place_of(frame) for frame in video.frames()]
    assert 8 <= len(video) == len(places) <= 10 and places == sorted(set(places))
    assert [place_of(frame) for frame in video.reversed_frames(len(video) - 1)] == places[::-1]


def test_a_file_has_its_own_rate(file):
    with pytest.raises(UserError, match="--fps"):
        open_video(file, 10)


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_a_written_video_keeps_its_size(tmp_path, size):
    writer = VideoWriter(tmp_path / "v.mp4", size, Fraction(30000, 1001))
    writer.write(np.zeros((size[1], size[0], 3), np.uint8), Fraction(0))
    writer.close()
    video = open_video(tmp_path / "v.mp4")
    assert video.size == size and len(video) == 1
