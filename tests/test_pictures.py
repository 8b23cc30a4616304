"""The reader of picture files: formats by content, EXIF's orientation, bounds, and one kind of error."""

from __future__ import annotations

import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from utils import pictures
from utils.masks import read_mask
from utils.pictures import MAX_PIXELS, PictureError, read_frame, read_picture, read_size

READERS = [read_frame, read_size, read_picture, read_mask]
QUARTERS = np.zeros((32, 48, 3), np.uint8)  # none of the eight orientations looks like another
QUARTERS[:16, :24], QUARTERS[16:, :24], QUARTERS[:16, 24:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SHOWN = {1: QUARTERS, 2: QUARTERS[:, ::-1], 3: QUARTERS[::-1, ::-1], 4: QUARTERS[::-1],
         5: QUARTERS.transpose(1, 0, 2), 6: np.rot90(QUARTERS, -1), 7: QUARTERS[::-1, ::-1].transpose(1, 0, 2),
         8: np.rot90(QUARTERS)}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """An RGB PNG of these chunks behind its head."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks)


END = chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("name, options", [
    ("a.jpg", {"quality": 95, "subsampling": 0}), ("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {}),
    ("a.tif", {"compression": "tiff_lzw"})])
def test_pictures_and_their_sizes_come_as_they_are_shown(tmp_path, name, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(QUARTERS).save(tmp_path / name, exif=exif, **options)
    expected = SHOWN[orientation].astype(int)
    assert read_size(tmp_path / name) == expected.shape[1::-1]
    for pixels in (read_frame(tmp_path / name), np.array(read_picture(tmp_path / name).image)):
        assert pixels.shape == expected.shape and abs(pixels - expected).max() < 30


def test_an_orientation_behind_the_pixels_of_a_png_counts_and_a_damaged_one_does_not(tmp_path):
    rows = b"".join(b"\0" + row.tobytes() for row in QUARTERS)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = chunk(b"IDAT", zlib.compress(rows))
    for note, expected in ((exif.tobytes()[6:], SHOWN[6]), (b"II*\0\xff\xff", QUARTERS), (b"", QUARTERS)):
        (tmp_path / "a.png").write_bytes(png(48, 32, pixels, chunk(b"eXIf", note), END))
        assert read_size(tmp_path / "a.png") == expected.shape[1::-1]
        assert np.array_equal(read_frame(tmp_path / "a.png"), expected)


def test_frames_are_rgb_of_eight_bits(tmp_path):
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    cv2.imwrite(str(tmp_path / "deep.png"), picture.astype(np.uint16)[..., ::-1] << 8 | 77)
    cv2.imwrite(str(tmp_path / "grey.png"), picture[..., 0].astype(np.uint16) << 8)
    Image.fromarray(np.dstack([picture, picture[..., 0]])).save(tmp_path / "alpha.png")
    assert np.array_equal(read_frame(tmp_path / "deep.png"), picture)
    assert np.array_equal(read_frame(tmp_path / "alpha.png"), picture)
    assert np.array_equal(read_frame(tmp_path / "grey.png"), picture[..., :1].repeat(3, axis=-1))
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(PictureError, match="8 or 16 bits"):
        read_frame(tmp_path / "float.tif")


@pytest.mark.parametrize("reduction, size", [(2, (320, 480)), (4, (160, 240)), (8, (80, 120))])
def test_reduced_decoding_is_the_same_picture_smaller(tmp_path, reduction, size):
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (960, 640), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "large.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    reduced = read_frame(tmp_path / "large.jpg", reduction)
    assert reduced.shape[:2] == size
    expected = cv2.resize(read_frame(tmp_path / "large.jpg"), size[::-1], interpolation=cv2.INTER_AREA)
    assert abs(reduced.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_an_error(tmp_path, suffix, share):
    path = tmp_path / f"frame{suffix}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    assert read_frame(path).shape == (48, 64, 3)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    for reduction in (1, 2):
        with pytest.raises(PictureError) as caught:
            read_frame(path, reduction)
        assert pickle.loads(pickle.dumps(caught.value)).path == path


GIF_HEAD = b"GIF89a\x08\x00\x08\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x08\x00\x08\x00\x00"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
CONTENTS = {  # what a file named frame.png may hold, and the reason
    "nothing": (b"", "none of JPEG, PNG"), "text": (b"not a picture", "none of JPEG, PNG"),
    "postscript": (POSTSCRIPT, "none of JPEG, PNG"), "dds": (b"DDS " + bytes(124), "none of JPEG, PNG"),
    "huge": (png(32000, 32000, chunk(b"IDAT", zlib.compress(bytes(10)))), "more than 80 million pixels"),
    "just too large": (png(MAX_PIXELS // 8 + 1, 8, chunk(b"IDAT", b"")), "more than 80 million pixels"),
    "a line": (png(5000, 49, chunk(b"IDAT", b"")), "sides are 5000 and 49 pixels"),
    "gif": (GIF_HEAD + b"\x0d\x01\xff", r"\w+")}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, reader, content):
    data, why = CONTENTS[content]
    (tmp_path / "frame.png").write_bytes(data)
    if content == "gif" and reader is read_size:  # its head is right
        assert read_size(tmp_path / "frame.png") == (8, 8)
        return
    with pytest.raises(PictureError, match=rf"frame\.png cannot be read as a picture \(.*{why}.*\); replace") as error:
        reader(tmp_path / "frame.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_without_waiting(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, why in (("pipe.png", "it is no file"), ("folder.png", "it is no file"), ("none.png", "does not exist")):
        with pytest.raises(PictureError, match=why):
            reader(tmp_path / name)


@pytest.mark.parametrize("error", [MemoryError(), struct.error("unpack"), NotImplementedError("mode 7"), IndexError(),
                                   SyntaxError("broken\nchunk"), RuntimeError("decoder"), cv2.error("alloc")])
def test_every_failure_of_a_decoder_is_one_kind_of_error(tmp_path, monkeypatch, error):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "frame.jpg")
    monkeypatch.setattr(pictures.Image.Image, "load", lambda *_: (_ for _ in ()).throw(error))
    monkeypatch.setattr(pictures.cv2, "imdecode", lambda *_: (_ for _ in ()).throw(error))
    for name in ("frame.png", "frame.jpg"):
        with pytest.raises(PictureError, match=rf"{name} cannot be read as a picture \(.+\); replace"):
            read_frame(tmp_path / name)


def test_an_animated_png_never_reaches_opencv(tmp_path, monkeypatch):
    rows = b"".join(b"\0" + row.tobytes() for row in QUARTERS)
    control = chunk(b"acTL", struct.pack(">II", 1, 0))
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 48, 32, 0xFFFFFF, 0xFFFFFF, 1, 1, 0, 0))  # beyond the canvas
    (tmp_path / "a.jpg").write_bytes(png(48, 32, control, frame, chunk(b"IDAT", zlib.compress(rows)), END))
    monkeypatch.setattr(pictures.cv2, "imdecode", lambda *_: pytest.fail("the decoder that a damaged one ends"))
    try:
        assert np.array_equal(read_frame(tmp_path / "a.jpg"), QUARTERS)
    except PictureError as error:
        assert "a.jpg" in str(error)
