"""A video file's frames: the same numbers in every pass, whatever the container, and the pictures that players show."""

from __future__ import annotations

import enum
import gc
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

import datasets.video as video_module
import datasets.video_file as video_file
from datasets.own_video import open_video
from inference.writer import VideoWriter
from utils.errors import UserError

W, H, LENGTH = 96, 64, 24
COLORS = [(255, 0, 0), (0, 255, 0), (210, 40, 40), (30, 60, 200)]


def picture(t: int) -> np.ndarray:
    """A block moves over a drifting texture, so that every frame is predicted from others and none is like another."""
    tiles = np.random.default_rng(0).integers(40, 120, (H // 8, W // 8, 3), dtype=np.uint8)
    drawn = np.roll(tiles.repeat(8, 0).repeat(8, 1), 2 * t, axis=1)
    drawn[20:44, 3 * t:3 * t + 8] = 255
    return drawn


def write(path: Path, codec: str, container: str | None = None, *, options: dict | None = None,
          b_frames: int | None = 2, pixels: str = "yuv420p", muxer: dict | None = None, drop: range = range(0)) -> Path:
    """Frames of `picture` in groups of 8; `drop`: packets that are left out."""
    with av.open(str(path), "w", format=container, container_options=muxer or {}) as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = W, H, pixels
        stream.codec_context.gop_size = 8
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        packets = [packet for t in range(LENGTH)
                   for packet in stream.encode(av.VideoFrame.from_ndarray(picture(t), format="rgb24"))]
        for number, packet in enumerate(packets + stream.encode()):
            if number not in drop:
                file.mux(packet)
    return path


def plain_decode(path: Path) -> list[np.ndarray]:
    """Frames as a single pass from the beginning gives them."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


X265 = {"x265-params": "log-level=none:keyint=8"}
OPEN_GOP = {"x264-params": "open-gop=1"}
FILES = {  # codec, container where the name does not say it, options
    "h264.ts": ("libx264", None, {}),
    "h264.MTS": ("libx264", "mpegts", {"muxer": {"mpegts_m2ts_mode": "1"}}),
    "mpeg2.mpg": ("mpeg2video", None, {}),
    "mpeg2.vob": ("mpeg2video", "vob", {}),
    "wmv2.asf": ("wmv2", "asf", {"b_frames": 0}),
    "mpeg2.mxf": ("mpeg2video", None, {}),
    "h264.flv": ("libx264", None, {}),
    "fragmented.mp4": ("libx264", None, {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "mpeg4.avi": ("mpeg4", None, {}),
    "h264.avi": ("libx264", None, {}),
    "x265.mp4": ("libx265", None, {"options": X265, "b_frames": None}),
    "open_gop.mp4": ("libx264", None, {"options": OPEN_GOP}),
    "open_gop.ts": ("libx264", None, {"options": OPEN_GOP}),
    "one_group.mkv": ("libx264", None, {"options": {"intra-refresh": "1"}}),
    "hidden.webm": ("libvpx-vp9", None, {"options": {"auto-alt-ref": "1", "lag-in-frames": "10"}, "b_frames": 0}),
    "cut_in_a_group.mkv": ("libx264", None, {"drop": range(5)}),
    "cut_in_a_group.mp4": ("libx265", None, {"options": X265, "b_frames": None, "drop": range(5)}),
    "with_a_hole.ts": ("libx264", None, {"drop": range(10, 13)}),
    "without_stamps.h264": ("libx264", "h264", {}),
    "no_seeking.gif": ("gif", None, {"pixels": "rgb8", "b_frames": 0}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_pass_gives_the_frames_of_a_plain_decode(name, tmp_path, monkeypatch):
    codec, container, options = FILES[name]
    path = write(tmp_path / name, codec, container, **options)
    expected, video = plain_decode(path), open_video(path)
    assert len(video) == len(expected) and video.size == (W, H) and video.rate == 25
    assert (len(video) < LENGTH) == ("cut" in name or "hole" in name)
    monkeypatch.setattr(video_module, "REVERSED_BYTES", 5 * 3 * W * H)
    passes = {"forward": (video.frames(), expected),
              "backward": (video.reversed_frames(len(video) - 1), expected[::-1]),
              **{f"from {start}": (video.frames(start, start + 2), expected[start:start + 2])
                 for start in range(0, len(video), 3)}}
    for which, (got, wanted) in passes.items():
        for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
            assert np.array_equal(one, other), f"{which}: frame {number}"
    times = [float(video.time(i)) for i in range(len(video))]
    assert times[0] == 0 and times == sorted(set(times)) and min(np.diff(times)) == pytest.approx(0.04, abs=1e-3)


def test_a_seek_spares_the_decoding_of_what_lies_before(tmp_path, monkeypatch):
    video = open_video(write(tmp_path / "clip.ts", "libx264"))
    starts, original = [], video_file.Decoding.__init__

    def noting(self, path, threads, start=None):
        starts.append(start)
        original(self, path, threads, start)

    monkeypatch.setattr(video_file.Decoding, "__init__", noting)
    assert len(list(video.frames(22))) == 2
    assert starts and None not in starts, "never from the beginning"


def test_frames_are_not_held(tmp_path):
    path = oriented(tmp_path / "a.mp4", (-1, 0, 0, 1), count=30)
    gc.collect()
    gc.disable()  # nothing that only this would free
    try:
        video = open_video(path)
        assert sum(1 for _ in video.frames()) == 30
        assert sum(type(one) is av.VideoFrame for one in gc.get_objects()) < 5
    finally:
        gc.enable()


def test_damage_is_said_and_what_decodes_is_read_in_every_pass(tmp_path, caplog):
    path = write(tmp_path / "clip.ts", "libx264", b_frames=0)
    data = bytearray(path.read_bytes())
    for place in range(3000, len(data), 700):
        data[place] ^= 255
    path.write_bytes(data)
    video = open_video(path)
    assert "is damaged" in caplog.text and 10 < len(video) <= LENGTH
    forward = list(video.frames())
    assert len(forward) == len(video)
    for one, other in zip(video.reversed_frames(len(video) - 1), forward[::-1], strict=True):
        assert np.array_equal(one, other)


def oriented(path: Path, matrix: tuple[int, int, int, int], count: int = 2) -> Path:
    """A file of `COLORS` in its quarters, and the display matrix (a, b, c, d): x to a*x + c*y, y to b*x + d*y."""
    write_colors(path, "libx264", count=count)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (65536 * value for value in matrix)
    data[start:start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def write_colors(path: Path, codec: str, *, matrix: int = 1, full: bool = False, tagged: bool = True,
                  pixels: str = "yuv444p", size: tuple[int, int] = (W, H), aspect: int = 1, count: int = 2) -> Path:
    colors = np.zeros((size[1], size[0], 3), np.uint8)
    for k, color in enumerate(COLORS):
        colors[k // 2 * size[1] // 2:][:size[1] // 2, k % 2 * size[0] // 2:][:, :size[0] // 2] = color
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        context = stream.codec_context
        context.sample_aspect_ratio = aspect
        if tagged:
            context.colorspace, context.color_range = matrix, 2 if full else 1
        frame = VideoReformatter().reformat(av.VideoFrame.from_ndarray(colors, format="rgb24"), format=pixels,
                                            src_colorspace=0, dst_colorspace=matrix, dst_color_range=2 if full else 1)
        frame.colorspace, frame.color_range = (matrix, 2 if full else 1) if tagged else (2, 0)
        for number in range(count):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def quarters(frame: np.ndarray) -> list[tuple[int, ...]]:
    height, width = frame.shape[:2]
    return [tuple(map(int, frame[y, x])) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]


ORIENTATIONS = {(1, 0, 0, 1): "0123", (-1, 0, 0, 1): "1032", (1, 0, 0, -1): "2301", (-1, 0, 0, -1): "3210",
                (0, 1, -1, 0): "2031", (0, -1, 1, 0): "1302", (0, 1, 1, 0): "0213", (0, -1, -1, 0): "3120"}


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_all_eight_orientations_are_undone(tmp_path, matrix):
    video = open_video(oriented(tmp_path / "a.mp4", matrix))
    assert video.size == ((H, W) if matrix[0] == 0 else (W, H))
    wanted = [COLORS[int(k)] for k in ORIENTATIONS[matrix]]
    assert np.abs(np.subtract(quarters(next(video.frames())), wanted)).max() <= 4


def test_side_data_that_pyav_does_not_know_does_not_hide_the_rotation(tmp_path, monkeypatch):
    path = oriented(tmp_path / "a.mp4", (0, 1, -1, 0))
    known = enum.Enum("Type", {"DISPLAYMATRIX": 6})  # x264's own message is of another kind
    monkeypatch.setattr("av.sidedata.sidedata.Type", known)
    video = open_video(path)
    assert video.size == (H, W)
    assert np.abs(np.subtract(quarters(next(video.frames())), [COLORS[k] for k in (2, 0, 3, 1)])).max() <= 4


@pytest.mark.parametrize(("matrix", "full"), [(1, False), (1, True), (9, False), (9, True), (6, False), (5, True)])
def test_colors_are_those_of_the_matrix_and_range_that_the_file_names(tmp_path, matrix, full):
    video = open_video(write_colors(tmp_path / "a.mkv", "libx264", matrix=matrix, full=full))
    assert np.abs(np.subtract(quarters(next(video.frames())), COLORS)).max() <= 4


@pytest.mark.parametrize(("size", "matrix"), [((W, H), 5), ((720, 576), 5), ((1280, 64), 1), ((64, 720), 1)])
def test_without_a_name_the_matrix_goes_by_the_size(tmp_path, size, matrix):
    path = write_colors(tmp_path / "a.mkv", "libx264", matrix=matrix, tagged=False, size=size, count=1)
    assert np.abs(np.subtract(quarters(next(open_video(path).frames())), COLORS)).max() <= 4


def test_what_is_written_says_its_colors_and_its_pixel_aspect(tmp_path):
    source = open_video(write_colors(tmp_path / "a.mkv", "libx264", aspect=2))
    assert (source.size, source.pixel_aspect) == ((W, H), 2)
    writer = VideoWriter(tmp_path / "b.mp4", source.size, source.rate, pixel_aspect=source.pixel_aspect)
    for frame in source.frames():
        writer.write(frame, Fraction(0))  # the same time twice, as coarse stamps have it
    writer.close()
    written = open_video(tmp_path / "b.mp4")
    assert (len(written), written.pixel_aspect) == (2, 2)
    assert np.abs(np.subtract(quarters(next(written.frames())), COLORS)).max() <= 6
    with av.open(str(tmp_path / "b.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_the_aspect_turns_with_the_picture(tmp_path):
    path = write_colors(tmp_path / "a.mp4", "libx264", aspect=2)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16
    data[start:start + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert open_video(path).pixel_aspect == Fraction(1, 2)


def test_a_size_that_changes_is_refused_with_the_frame(tmp_path):
    path = tmp_path / "turned.mjpg.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuvj420p"
        for t, (width, height) in enumerate([(W, H)] * 3 + [(H, W)] * 2):
            coder = av.CodecContext.create("mjpeg", "w")
            coder.width, coder.height, coder.pix_fmt, coder.time_base = width, height, "yuvj420p", Fraction(1, 25)
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
            packet, = coder.encode(frame.reformat(format="yuvj420p"))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, t, t, Fraction(1, 25)
            container.mux(packet)
    with pytest.raises(UserError, match=r"one size; .*turned.* from 96x64 to 64x96 in frame 3; .*convert"):
        open_video(path)


def test_the_default_stream_is_taken(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for number in range(2):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = W - 32 * number, H, "yuv420p"
            stream.disposition = number
            streams.append(stream)
        for t in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.full((H, stream.width, 3), 40 * t, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    assert open_video(path).size == (W - 32, H)


@pytest.mark.parametrize(("name", "result"), [("a:b.mp4", "a:b"), ("...mp4", "mp4"), ("%03d.mp4", "%03d"),
                                              (".hidden.mp4", "hidden"), ("no suffix", "no suffix")])
def test_any_name_opens_and_gives_results_a_name(tmp_path, monkeypatch, name, result):
    os.replace(write(tmp_path / "clip.mp4", "libx264"), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    video = open_video(name)
    assert (len(video), video.name) == (LENGTH, result)


def test_a_folder_gives_its_results_its_whole_name(tmp_path):
    for name in ("take.1", "take.2"):
        (tmp_path / name).mkdir()
        av.VideoFrame.from_ndarray(picture(0), format="rgb24").save(str(tmp_path / name / "a.png"))
    assert [open_video(tmp_path / name).name for name in ("take.1", "take.2")] == ["take.1", "take.2"]


@pytest.mark.parametrize("playlist", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
                                      "ffconcat version 1.0\nfile {}\n"])
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8"])
def test_a_file_opens_no_other_one(tmp_path, monkeypatch, playlist, name):
    write(tmp_path / "other.ts", "libx264")
    (tmp_path / name).write_text(playlist.format("other.ts"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"list\.m\S* cannot be opened as one"):
        open_video(name)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match=r"pipe\.mp4 is neither; save it as a file"):
        open_video(tmp_path / "pipe.mp4")
