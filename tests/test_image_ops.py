"""Image operations: equal to the published implementation's stored values, and right where the answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN

from datasets.edges import after_gap, edge_weight
from datasets.lab import color_target
from datasets.liquid import apply_map, draw_pulls, liquid_map, sampling_grid


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "image_ops.npz") as data:
        return dict(data)


def as_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def test_edge_weights_equal_the_golden_ones(golden):
    weights = np.stack([edge_weight(image) for image in golden["images"]])
    np.testing.assert_allclose(weights, golden["edge_weight"], atol=1e-2)


@pytest.mark.parametrize("clip", [True, False])
def test_lab_targets_equal_the_golden_ones(golden, clip):
    target = color_target(golden["images"], "LAB", clip)
    np.testing.assert_allclose(target[:, :, ::2, ::2], golden["lab_clip" if clip else "lab_noclip"], atol=1e-5)


def test_liquid_grids_equal_the_golden_ones(golden):
    pixels = liquid_map(256, 256, golden["liquid/points"], golden["liquid/offsets"])
    np.testing.assert_allclose(sampling_grid(pixels, 8), golden["liquid/grid_8"], atol=1e-5)
    np.testing.assert_allclose(sampling_grid(pixels)[::4, ::4], golden["liquid/grid_stride4"], atol=1e-5)


@pytest.mark.parametrize("length, edges, marked", [
    (33, [16], []),  # 16 free pixels on either side are not more than 16
    (34, [17], [17]),  # 17 before it
    (34, [16], [16]),  # 17 behind it
    (51, [16, 34], []),  # 17 between them, of which the one behind an edge does not count
    (52, [16, 35], [16, 35]),  # each is met once on the way from the other
    (45, [16, 20, 24, 28], []),  # texture
    (63, [16, 20, 39, 46], [20, 39]),
])
def test_edges_count_after_a_gap_on_either_way(length, edges, marked):
    lines = np.zeros((3, length), bool)
    lines[1, edges] = True
    found = np.argwhere(after_gap(lines)).tolist()
    assert [position for line, position in found if line == 1] == marked
    assert all(line == 1 for line, _ in found)


def test_an_even_picture_has_no_edges():
    assert np.array_equal(edge_weight(np.full((64, 80, 3), 90, np.uint8)), np.ones((64, 80), np.float32))


def test_a_contour_is_stamped_where_walks_meet_it():
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, 128:] = 255
    weight = edge_weight(image)
    assert weight.min() == 1 and weight.max() == 5
    columns = np.nonzero((weight > 3).any(0))[0]
    assert 110 < columns.min() < 128 < columns.max() < 146  # nothing far from the contour
    rows = (weight > 3).any(1)
    assert rows[2 * 32 - 2] and not rows[2 * 40]  # every 16th row of the half-size picture, 8 of it in height


def test_color_modes():
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    rgb, lab, ab = (color_target(frames, mode, clip=True) for mode in ("RGB", "LAB", "AB"))
    np.testing.assert_allclose(rgb, frames.transpose(0, 3, 1, 2) / np.float32(255), atol=1e-7)
    assert np.array_equal(ab[:, 1:], lab[:, 1:]) and not ab[:, 0].any() and lab[:, 0].any()
    expected = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)[..., 0] for frame in frames]) / np.float32(255)
    np.testing.assert_allclose(lab[:, 0], expected, atol=1e-7)


def test_colors_span_the_unit_range_and_clipping_only_cuts_outliers():
    frames = np.full((2, 40, 40, 3), 120, np.uint8)
    frames[:, :20] = (140, 110, 110)
    frames[0, 0, 0] = (255, 0, 0)
    clipped, plain = (color_target(frames, "LAB", clip) for clip in (True, False))
    for target in (clipped, plain):
        assert target[:, 1:].min() == 0 and target[:, 1:].max() == 1
    spread = [abs(target[0, 1, 10, 10] - target[0, 1, 30, 30]) for target in (clipped, plain)]
    assert spread[0] > 2 * spread[1] > 0


def test_grey_frames_keep_their_color():
    target = color_target(np.full((2, 8, 8, 3), 77, np.uint8), "LAB", clip=True)
    np.testing.assert_allclose(target[:, 1:], 128 / 255, atol=1e-7)  # Lab's zero, not 0/0


def test_no_pull_is_the_identity():
    pixels = liquid_map(16, 24, np.zeros((8, 2), int), np.zeros((8, 2), int))
    assert np.array_equal(pixels[0], np.tile(np.arange(24), (16, 1)))
    assert np.array_equal(pixels[1], np.tile(np.arange(16)[:, None], (1, 24)))


def test_a_pull_falls_off_to_nothing_at_100_pixels():
    pixels = liquid_map(256, 256, np.array([[50, 60]]), np.array([[20, -12]]))
    moved = pixels - liquid_map(256, 256, np.zeros((0, 2), int), np.zeros((0, 2), int))
    np.testing.assert_allclose(moved[:, 60, 50], (20, -12), atol=1e-5)
    np.testing.assert_allclose(moved[:, 60, 100], (10, -6), atol=1e-4)
    np.testing.assert_allclose(moved[:, 60 + 30, 50 + 40], (10, -6), atol=1e-4)
    assert not moved[:, :, 151:].any() and not moved[:, 161:].any()


def test_pulls_are_drawn_on_and_around_the_picture():
    rng = np.random.default_rng(0)
    points, offsets = map(np.concatenate, zip(*(draw_pulls(100, 200, rng) for _ in range(2000))))
    assert (points.min(0) == (-40, -20)).all() and (points.max(0) == (240, 120)).all()
    np.testing.assert_allclose(points.mean(0), (100, 50), atol=3)
    assert set(np.unique(abs(offsets))) == set(range(12, 25))
    np.testing.assert_allclose((offsets > 0).mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(((offsets > 0).all(1)).mean(), 0.25, atol=0.02)  # each sign is its own draw


def test_a_warped_picture_is_what_grid_sample_makes_of_the_grid(golden):
    image = cv2.GaussianBlur(golden["images"][0], (0, 0), 2)
    pixels = liquid_map(256, 256, golden["liquid/points"], golden["liquid/offsets"])
    expected = F.grid_sample(as_tensor(image), torch.from_numpy(sampling_grid(pixels))[None], mode="bilinear",
                             padding_mode="reflection", align_corners=False)
    difference = (as_tensor(apply_map(image, pixels)) - expected).abs()
    assert difference.mean() < 0.5 and difference.max() < 6  # [grey levels] remap rounds to 1/32 pixel
