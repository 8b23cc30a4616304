"""Evaluation videos: frames with the masks that a list names for them, decoded ahead and never all held."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from datasets.filelists import EvaluationFrame, EvaluationSequence
from utils.errors import UserError
from utils.masks import read_mask
from utils.pictures import read_frame

DECODING_THREADS = min(4, os.cpu_count() or 1)


class VideoFrame(NamedTuple):
    """A decoded frame: its file's stem, the picture uint8 RGB [H,W,3], its mask uint8 [H,W] where there is one, and
    whether its result is to be saved.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None
    save: bool


def read_video(sequence: EvaluationSequence, *, ahead: int = 8) -> Iterator[VideoFrame]:
    """Yield a sequence's frames in order while threads decode up to `ahead` of the following ones.

    Raises:
        UserError: a frame or mask cannot be decoded, or a mask has another size than its frame.
    """
    pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
    pending = deque()
    try:
        for frame in sequence.frames:
            pending.append(pool.submit(_decode, frame))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # a reader that stops early does not decode the rest


def _decode(frame: EvaluationFrame) -> VideoFrame:
    image = read_frame(frame.image)
    mask = read_mask(frame.mask) if frame.mask.is_file() else None
    if mask is not None and mask.shape != image.shape[:2]:
        raise UserError(f"a mask has the size of its frame; {frame.mask} is {mask.shape[1]}x{mask.shape[0]} and "
                        f"{frame.image} is {image.shape[1]}x{image.shape[0]}; resize the mask (nearest) or the frame")
    return VideoFrame(frame.image.stem, image, mask, frame.save)
