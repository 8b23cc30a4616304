"""Pictures of results: where colour, contour, labels and captions are, and where they are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from utils.masks import DAVIS_PALETTE
from utils.overlay import PALETTES, contact_sheet, heat_map, label_points, overlay

H, W = 60, 100


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(40, 200, (H, W, 3), dtype=np.uint8)


def two_objects() -> np.ndarray:
    """A disc of id 1 and a box of id 9, which ends at the picture's right edge."""
    mask = np.zeros((H, W), np.uint8)
    cv2.circle(mask, (30, 30), 20, 1, -1)
    mask[10:40, 70:] = 9
    return mask


def distance_to_border(mask: np.ndarray) -> np.ndarray:
    """Of each pixel to the nearest of another id, in steps to the side, up or down [pixels]."""
    return np.maximum.reduce([cv2.distanceTransform((mask == k).astype(np.uint8), cv2.DIST_L1, 3)
                              for k in np.unique(mask)])


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("opacity", [0.5, 0.25])
def test_fill_is_inside_and_contour_on_the_border(frame, palette, opacity):
    mask = two_objects()
    picture, depth = overlay(frame, mask, palette=palette, opacity=opacity).astype(int), distance_to_border(mask)
    outside, inside = (mask == 0) & (depth > 3), (mask > 0) & (depth > 3)
    assert np.array_equal(picture[outside], frame[outside])
    expected = frame * (1 - opacity) + PALETTES[palette][mask] * opacity
    assert abs(picture[inside] - expected[inside]).max() <= 1
    line = (mask == 0) & (depth == 1)
    assert line.any() and picture[line].min() > 180 and (picture[line] >= frame[line]).all()
    soft = (mask == 0) & (depth == 2)  # the line fades: brighter than the frame, and not white
    assert (picture[soft] >= frame[soft]).all() and (picture[soft].mean(axis=-1) < 240).all()
    assert (picture[soft] > frame[soft]).mean() > 0.9


def test_objects_that_touch_are_separated_and_the_pictures_edge_is_no_contour(frame):
    mask = np.ones((H, W), np.uint8)
    assert np.array_equal(overlay(frame, mask), cv2.addWeighted(frame, 0.5, DAVIS_PALETTE[mask], 0.5, 0))
    mask[:, 50:] = 2
    assert overlay(frame, mask)[:, 49].min() > 220  # on the lower id


def test_a_thin_object_keeps_its_color(frame):
    mask = np.zeros((H, W), np.uint8)
    mask[30:32, 10:90] = 4
    blue = overlay(np.full_like(frame, 100), mask)[30:32, 20:80]
    assert (blue[..., 2].astype(int) - blue[..., 0]).min() > 20


@pytest.mark.parametrize("labels", [False, True])
def test_an_empty_mask_leaves_the_picture_and_no_input_is_changed(frame, labels):
    before, mask = frame.copy(), two_objects()
    empty = overlay(frame, np.zeros_like(mask), labels=labels)
    assert np.array_equal(empty, frame) and not np.shares_memory(empty, frame)
    overlay(frame, mask, labels=labels)
    assert np.array_equal(frame, before) and np.array_equal(mask, two_objects())
    flipped = overlay(frame[..., ::-1], mask[:, ::-1], labels=labels)  # views are taken as what they show
    assert np.array_equal(flipped, overlay(frame[..., ::-1].copy(), mask[:, ::-1].copy(), labels=labels))


def test_any_number_of_ids_is_drawn():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(20, axis=0).repeat(20, axis=1)
    picture = overlay(np.zeros((320, 320, 3), np.uint8), mask, opacity=1)
    assert np.array_equal(picture[10::20, 10::20].reshape(-1, 3), DAVIS_PALETTE)
    assert sorted(label_points(mask)) == list(range(1, 256))
    assert overlay(np.zeros((320, 320, 3), np.uint8), mask, labels=True).shape == (320, 320, 3)


def test_a_wider_contour_on_a_larger_picture():
    mask = np.zeros((1440, 200), np.uint8)
    mask[700:] = 1
    column = overlay(np.zeros((1440, 200, 3), np.uint8), mask)[680:700, 100, 0]
    assert np.flatnonzero(column > 200).tolist() == [17, 18, 19]  # 1440 / 480


def test_label_points_are_deepest_in_the_largest_part():
    mask = np.zeros((H, W), np.uint8)
    cv2.circle(mask, (25, 30), 15, 3, -1)
    mask[20:40, 60:64] = 3  # a smaller part of the same object
    mask[5:10, 60:100] = 7  # touches the right edge: its middle is not there
    mask[50, 10:21] = 8  # thin
    points = label_points(mask)
    assert sorted(points) == [3, 7, 8]
    assert np.hypot(points[3][0] - 25, points[3][1] - 30) <= 1
    assert points[7][1] == 7 and 62 <= points[7][0] <= 97
    assert points[8] == (15, 50)


@pytest.mark.parametrize("scale", [1, 7, 20])
def test_label_points_are_inside_their_objects_at_any_size(scale):
    mask = two_objects().repeat(scale, axis=0).repeat(scale, axis=1)
    mask[:scale] = 5
    points = label_points(mask)
    assert {k: int(mask[y, x]) for k, (x, y) in points.items()} == {1: 1, 5: 5, 9: 9}
    assert np.hypot(points[1][0] / scale - 30.5, points[1][1] / scale - 30.5) < 1.5


@pytest.mark.parametrize("background", [0, 128, 255])
def test_labels_are_readable_on_any_background_and_stay_near_their_points(background):
    frame, mask = np.full((240, 400, 3), background, np.uint8), np.zeros((240, 400), np.uint8)
    mask[60:180, 60:180] = 1
    mask[100:102, 398:] = 2  # its label has to move into the picture
    plain, labelled = overlay(frame, mask), overlay(frame, mask, labels=True)
    changed = (plain != labelled).any(axis=-1)
    y, x = np.nonzero(changed[:, :300])
    assert abs(y.mean() - 119.5) < 3 and abs(x.mean() - 119.5) < 3 and np.ptp(y) < 30
    inside = labelled[80:160, 80:160].reshape(-1, 3)
    assert (inside > 230).all(axis=-1).any() and (inside < 25).all(axis=-1).any()
    assert changed[:, 370:].any() and not changed[:, 399].all()


def test_labels_grow_with_the_picture():
    heights = []
    for side in (240, 720):
        frame, mask = np.zeros((side, side, 3), np.uint8), np.ones((side, side), np.uint8)
        changed = (overlay(frame, mask) != overlay(frame, mask, labels=True)).any(axis=(1, 2))
        heights.append(np.ptp(np.flatnonzero(changed)))
    assert 2.3 < heights[1] / heights[0] < 3.7


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_have_distinct_colors_and_unlike_neighbours(name):
    palette = PALETTES[name].astype(int)
    assert palette.shape == (256, 3) and PALETTES[name].dtype == np.uint8 and not palette[0].any()
    assert len(np.unique(palette, axis=0)) == 256
    if name == "colorblind":
        assert np.linalg.norm(np.diff(palette[1:], axis=0), axis=1).min() > 40
        assert palette[1].tolist() == [230, 159, 0] and palette[7].tolist() == [204, 121, 167]
        again = np.linalg.norm(palette[8:15] - palette[1:8], axis=1)  # the same colours, clearly darker
        assert again.min() > 60 and (palette[8:15] <= palette[1:8]).all()


def test_a_contact_sheet_shows_every_picture_at_the_same_width():
    pictures = [(f"number {i}", np.full((40 + 20 * i, 100 + 50 * i, 3), (20 * i + 10, 250, 9), np.uint8))
                for i in range(5)]
    sheet = contact_sheet(pictures, columns=3, width=80)
    assert sheet.shape[1] == 3 * 80 + 4 * 6
    tops = []
    for i in range(5):
        rows, columns = np.nonzero((sheet == (20 * i + 10, 250, 9)).all(axis=-1))
        assert columns.min() == 6 + 86 * (i % 3) and np.ptp(columns) + 1 == 80
        assert np.ptp(rows) + 1 == round((40 + 20 * i) * 80 / (100 + 50 * i))
        tops.append(rows.min())
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]  # in reading order


def test_captions_are_written_whole_above_their_pictures():
    picture = np.full((50, 80, 3), 200, np.uint8)
    plain, short, long, foreign = (contact_sheet([(caption, picture)], width=80)
                                   for caption in ("", "ab", "word " * 40, "日本"))
    assert plain.shape == short.shape == long.shape
    for sheet in (short, long, foreign):
        rows, columns = np.nonzero((sheet != plain).any(axis=-1))
        assert len(rows) and rows.max() < plain.shape[0] - 50 and columns.min() >= 6 and columns.max() < 86
    assert short.min() < 100


def test_heat_maps_are_smooth_ordered_and_cut(frame):
    ramp = heat_map(np.array([[0.0, 1.0]]), (H, W))
    assert ramp.shape == (H, W, 3) and ramp.dtype == np.uint8
    assert ramp[0, 0].tolist() == [68, 1, 84] and ramp[0, -1].tolist() == [253, 231, 37]  # the ends of viridis
    brightness = cv2.cvtColor(ramp, cv2.COLOR_RGB2GRAY)[0].astype(int)
    assert (np.diff(brightness) >= 0).all() and np.diff(brightness).max() < 12
    wild = heat_map(np.array([[-3.0, np.nan], [np.inf, 1.0]]), (2, 2))
    assert np.array_equal(wild, heat_map(np.array([[0.0, 0.0], [1.0, 1.0]]), (2, 2)))


def test_a_heat_map_lies_over_the_grey_frame(frame):
    colors = heat_map(np.zeros((2, 3)), (H, W))
    mixed = heat_map(np.zeros((2, 3)), (H, W), frame, opacity=0.6)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    assert abs(mixed - (0.6 * colors + 0.4 * grey)).max() <= 1
