"""Results for editing: objects cut out with transparency, and backgrounds replaced; the sound is kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from inference.exports.results import Options, ResultSequence
from inference.writer import H264, PRORES_4444, VP9_ALPHA, Encoding, VideoWriter
from utils.errors import UserError
from utils.files import replacing

WITH_ALPHA = {".webm": VP9_ALPHA, ".mov": PRORES_4444}
BLUR_SHARE = 1 / 40  # of the picture's height: standard deviation of a blurred background


def write_cutout(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """The objects before nothing: a video with alpha, or PNGs where `out` is a folder."""
    (sequence,) = sequences
    cut = (np.dstack([picture, alpha]) for picture, alpha in _alphas(sequence, options))
    if not out.is_dir():
        _write_movie(sequence, out, WITH_ALPHA[out.suffix.lower()], cut)
        return
    for frame, picture in zip(sequence.frames, cut):
        with replacing(out / f"{frame}.png") as temporary:
            temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))[1].tobytes())


def write_background(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """The objects before another background, as H.264."""
    (sequence,), fill = sequences, read_fill(options.fill)

    def composed() -> Iterator[np.ndarray]:
        for picture, alpha in _alphas(sequence, options):
            share = alpha[..., None].astype(np.float32) / 255
            yield (picture * share + fill(picture) * (1 - share)).round().astype(np.uint8)

    _write_movie(sequence, out, H264, composed())


def read_fill(words: str) -> Callable[[np.ndarray], np.ndarray]:
    """`blur` or `#rrggbb` to what makes a frame's background, both uint8 RGB [H,W,3]; `UserError` for anything else."""
    if words == "blur":
        return lambda picture: cv2.GaussianBlur(picture, (0, 0), len(picture) * BLUR_SHARE)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", words):
        raise UserError(f"--fill is blur or a colour as #rrggbb; it is {words}")
    color = np.array([int(words[i:i + 2], 16) for i in (1, 3, 5)], np.uint8)
    return lambda picture: np.broadcast_to(color, picture.shape)


def _alphas(sequence: ResultSequence, options: Options) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each frame, uint8 RGB [H,W,3], with what is seen of it, uint8 [H,W]."""
    for picture, mask in zip(sequence.pictures(), sequence.masks()):
        alpha = np.isin(mask, options.objects).astype(np.uint8) * 255
        yield picture, cv2.GaussianBlur(alpha, (0, 0), options.feather) if options.feather else alpha


def _write_movie(sequence: ResultSequence, out: Path, encoding: Encoding, pictures: Iterator[np.ndarray]) -> None:
    video = sequence.video
    assert video is not None
    with replacing(out) as temporary:
        writer = VideoWriter(temporary, (sequence.width, sequence.height), video.rate, encoding=encoding,
                             sound=video.path, pixel_aspect=video.pixel_aspect)
        for number, picture in zip(sequence.numbers, pictures):
            writer.write(picture, video.time(number) - video.time(sequence.numbers[0]))
        writer.close()
