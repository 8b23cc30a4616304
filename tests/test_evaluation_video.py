"""Frames and masks of an evaluation list, decoded ahead."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from datasets import evaluation_video
from datasets.evaluation_video import read_video
from datasets.filelists import EvaluationFrame, EvaluationSequence
from utils.errors import UserError
from utils.masks import write_mask


def make_sequence(folder, count: int, size=(20, 12)) -> EvaluationSequence:
    frames = []
    for t in range(count):
        image = folder / f"{t:05d}.png"
        Image.new("RGB", size, (t, 2 * t, 255 - t)).save(image)
        frames.append(EvaluationFrame(image, folder / "masks" / image.name, save=t % 2 == 0))
    write_mask(frames[0].mask, np.full(size[::-1], 3, np.uint8))
    return EvaluationSequence("walk", frames)


@pytest.mark.parametrize("ahead", [0, 1, 50])
def test_frames_come_in_order_with_their_masks_and_flags(tmp_path, ahead):
    read = list(read_video(make_sequence(tmp_path, 9), ahead=ahead))
    assert [frame.name for frame in read] == [f"{t:05d}" for t in range(9)]
    assert [frame.save for frame in read] == [t % 2 == 0 for t in range(9)]
    for t, frame in enumerate(read):
        assert frame.image.shape == (12, 20, 3) and frame.image.dtype == np.uint8
        assert (frame.image == (t, 2 * t, 255 - t)).all(), "RGB"
        assert (frame.mask is None) == (t > 0)
    assert (read[0].mask == 3).all() and read[0].mask.shape == (12, 20)


def test_only_so_many_frames_are_decoded_ahead(tmp_path, monkeypatch):
    started, lock, original = [], threading.Lock(), evaluation_video._decode

    def counting(frame):
        with lock:
            started.append(frame)
        return original(frame)

    monkeypatch.setattr(evaluation_video, "_decode", counting)
    reader = read_video(make_sequence(tmp_path, 40), ahead=5)
    for taken, _ in enumerate(itertools.islice(reader, 10), start=1):
        assert len(started) <= taken + 5
    reader.close()
    assert len(started) <= 15, "a reader that stops early leaves the rest alone"


def test_a_broken_frame_ends_the_video_with_its_name(tmp_path):
    sequence = make_sequence(tmp_path, 6)
    broken = sequence.frames[3].image
    broken.write_bytes(broken.read_bytes()[:60])
    reader = read_video(sequence)
    assert [next(reader).name for _ in range(3)] == ["00000", "00001", "00002"]
    with pytest.raises(UserError, match=r"00003\.png"):
        next(reader)


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    sequence = make_sequence(tmp_path, 2)
    write_mask(sequence.frames[1].mask, np.zeros((6, 10), np.uint8))
    with pytest.raises(UserError, match=r"10x6.*20x12"):
        list(read_video(sequence))
