"""Picture files: the one reader of frames, masks and results.

The content of a file says its format, whatever its name ends in, and only the formats below are opened. The size is
bounded before anything is decoded, pictures come as EXIF says they are shown, and every failure is a `PictureError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # Pillow's others include interpreters of programs
MAX_PIXELS = 80_000_000  # 8K video has 33 million
MOST_LONG = 100  # the longer side to the shorter, which is what frames are resized by
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this and refuses above twice this
warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture is said by an error, or nowhere

JPEG_FORMATS = ("JPEG", "MPO")  # MPO is a JPEG with others behind it, as phones write it
LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}
ORIENTATION = 0x0112  # EXIF tag: 1 is upright
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}  # Pillow turns counter-clockwise
DECODE = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
          8: cv2.IMREAD_REDUCED_COLOR_8}


class PictureError(UserError):
    """A picture that cannot be read: `path` is its file, `why` the reason in a few words."""

    def __init__(self, path: str | Path, why: str):
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path} cannot be read as a picture ({self.why}); replace the file"


class Picture(NamedTuple):
    """A decoded picture, upright, with what its file says of it: format, number of pictures, whether it is lossy."""

    image: Image.Image
    format: str | None
    pictures: int
    lossy: bool

    def __str__(self) -> str:
        several = f"{self.pictures} pictures in " * (self.pictures > 1)
        return f"{several}a {'lossy ' * self.lossy}{self.format} file of mode {self.image.mode}"


def read_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture as it is shown [pixels], from its header alone; `PictureError` where that fails."""
    with _opened(path) as (image, file):
        return image.size[::-1] if _orientation(image, file) >= 5 else image.size


def read_frame(path: str | Path, reduction: int = 1) -> np.ndarray:
    """Decode a picture to uint8 RGB [H,W,3], a JPEG at 1, 1/2, 1/4 or 1/8 of its size.

    Transparency is ignored. `PictureError` where decoding fails, which it does on a file that was cut short, too.
    """
    with _opened(path) as (image, file):
        orientation = _orientation(image, file)
        if image.format in JPEG_FORMATS:
            file.seek(0)
            flags = DECODE[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), flags)
            if pixels is None:
                raise ValueError("it is damaged or cut short")
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
        else:
            pixels = _rgb(image)
        return np.array(_upright(Image.fromarray(pixels), orientation)) if orientation > 1 else pixels


def read_picture(path: str | Path) -> Picture:
    """Decode a picture as it is stored, palette and alpha included; `PictureError` where that fails."""
    with _opened(path) as (image, file):
        orientation, lossy = _orientation(image, file), _is_lossy(image, file)
        pictures = getattr(image, "n_frames", 1)
        image.load()
        return Picture(_upright(image, orientation), image.format, pictures, lossy)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Yield Pillow's picture, its header read, and its file; whatever fails in the block is a `PictureError`."""
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise ValueError("it is no file" if Path(path).exists() else "it does not exist")
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            if max(image.size) > MOST_LONG * min(image.size):
                raise ValueError(f"its sides are {image.width} and {image.height} pixels, over {MOST_LONG} to 1")
            yield image, file
    except Exception as error:  # decoders raise whatever they stumble over, from struct.error to MemoryError
        raise PictureError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}, or its head is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS // 1_000_000} million pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    """EXIF's orientation of a picture that is not decoded yet, 1 to 8; 1 where it says none that makes sense."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, their size included
    note = image.info.get("exif") or (_exif_chunk(file) if image.format == "PNG" else b"")
    exif = Image.Exif()
    try:
        exif.load(note)
        orientation = exif.get(ORIENTATION, 1)
    except Exception:  # a damaged note about a picture does not spoil it
        return 1
    return orientation if orientation in UPRIGHT else 1


def _exif_chunk(file: BinaryIO) -> bytes:
    """The eXIf chunk of a PNG, which may stand behind the pixels, where Pillow reads it after decoding only."""
    position, exif = file.tell(), b""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            exif = file.read(length)
            break
        file.seek(length + 4, 1)
    file.seek(position)
    return exif


def _is_lossy(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a picture's format is one that changes its values."""
    if image.format != "WEBP":
        return image.format in JPEG_FORMATS or (
            image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF)
    position = file.tell()
    file.seek(12)  # behind the header, RIFF <size> WEBP; the first chunk of pixels tells
    while (head := file.read(8))[:4] not in (b"VP8 ", b"VP8L", b""):
        size = int.from_bytes(head[4:], "little")
        file.seek(size + size % 2, 1)
    file.seek(position)
    return head[:4] == b"VP8 "


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a picture of 8 or 16 bits, uint8 [h,w,3]."""
    if image.mode.startswith("I;16"):
        return np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"a frame has 8 or 16 bits a channel, and this one has 32, mode {image.mode}")
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
