"""Frames and masks of an evaluation list, decoded ahead."""

from __future__ import annotations

import itertools
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.evaluation_video import ListedVideo, read_video
from datasets.filelists import EvaluationFrame, EvaluationSequence
from utils.errors import UserError
from utils.iterators import called_ahead
from utils.masks import write_mask


def make_sequence(folder, count: int, size=(20, 12)) -> EvaluationSequence:
    frames = []
    for t in range(count):
        image = folder / f"{t:05d}.png"
        Image.new("RGB", size, (t, 2 * t, 255 - t)).save(image)
        frames.append(EvaluationFrame(image, folder / "masks" / image.name, save=t % 2 == 0))
    write_mask(frames[0].mask, np.full(size[::-1], 3, np.uint8))
    return EvaluationSequence("walk", frames)


def test_frames_come_in_order_with_their_masks_and_flags(tmp_path):
    sequence = make_sequence(tmp_path, 9)
    read = list(read_video(sequence))
    assert [frame.name for frame in read] == [f"{t:05d}" for t in range(9)]
    assert ListedVideo(sequence).saved == [0, 2, 4, 6, 8]
    for t, frame in enumerate(read):
        assert frame.image.shape == (12, 20, 3) and frame.image.dtype == np.uint8
        assert (frame.image == (t, 2 * t, 255 - t)).all(), "RGB"
        assert (frame.mask is None) == (t > 0)
    assert (read[0].mask == 3).all() and read[0].mask.shape == (12, 20)


def test_only_so_many_frames_are_decoded_ahead():
    started, lock = [], threading.Lock()

    def decode(number):
        with lock:
            started.append(number)
        return number

    for count in (0, 1, 5):
        started.clear()
        reader = called_ahead((partial(decode, number) for number in range(40)), count, threads=3)
        for taken, number in enumerate(itertools.islice(reader, 10), start=1):
            assert number == taken - 1 and len(started) <= taken + count
        reader.close()
        assert len(started) <= 10 + count, "a reader that stops early leaves the rest alone"


def test_a_part_and_the_way_back(tmp_path):
    video = ListedVideo(make_sequence(tmp_path, 9))
    assert (len(video), video.size, video.path) == (9, (20, 12), tmp_path)
    assert [frame[0, 0, 0] for frame in video.frames(3, 6)] == [3, 4, 5]
    assert [frame[0, 0, 0] for frame in video.reversed_frames(4)] == [4, 3, 2, 1, 0]


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


def test_frames_of_two_sizes_are_refused_with_both(tmp_path):
    sequence = make_sequence(tmp_path, 3)
    Image.new("RGB", (12, 20)).save(sequence.frames[2].image)
    with pytest.raises(UserError, match=r"00000\.png is 20x12, .*00002\.png is 12x20"):
        list(read_video(sequence))


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere.png")


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("damage", "number"), [(dangling, 0), (folder, 0), (Path.unlink, 0), (dangling, 1)])
def test_a_mask_that_cannot_be_read_is_one_line(tmp_path, damage, number):
    sequence = make_sequence(tmp_path, 3)
    write_mask(sequence.frames[1].mask, np.zeros((12, 20), np.uint8))
    damage(sequence.frames[number].mask)
    with pytest.raises(UserError, match=rf"masks/0000{number}\.png cannot be read as a picture"):
        list(read_video(sequence))


def test_a_mask_that_goes_while_the_video_is_read_is_no_silent_absence(tmp_path):
    sequence = make_sequence(tmp_path, 3)
    reader = read_video(sequence)
    write_mask(sequence.frames[2].mask, np.zeros((12, 20), np.uint8))
    next(reader)
    sequence.frames[2].mask.unlink()
    with pytest.raises(UserError, match=r"masks/00002\.png .*does not exist"):
        list(reader)
