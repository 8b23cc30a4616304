"""Mask files of every kind that people have, small and made by hand: what they become, and what is refused how."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from datasets.mask_files import fit_masks, load_masks, read_mask_files
from datasets.object_ids import ObjectIds
from utils.errors import UserError
from utils.masks import DAVIS_PALETTE, write_mask

H, W = 48, 64
# In reading order.
BOXES = [(slice(4, 20), slice(5, 25)), (slice(24, 40), slice(10, 30)), (slice(26, 44), slice(36, 60))]
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)
DAVIS = [tuple(color) for color in DAVIS_PALETTE.tolist()]


def boxes(*values, dtype=np.uint8) -> np.ndarray:
    """A box of each value on 0: [H,W], or [H,W,C] where the values are colours."""
    picture = np.zeros((H, W, *np.shape(values[0])), dtype)
    for box, value in zip(BOXES, values):
        picture[box] = value
    return picture


def read(tmp_path, picture, name="mask.png", mode=None, colors=None, **options) -> np.ndarray:
    """Save a picture and read it as a mask."""
    Image.fromarray(picture, mode).save(tmp_path / name, **options)
    return read_mask_files([tmp_path / name], (H, W), colors or ObjectIds())


def ellipse(*colors, scale=8) -> np.ndarray:
    """An ellipse and a sharp triangle beside it, drawn large and averaged down: edges of every coverage."""
    image = Image.new("RGB", (W * scale, H * scale))
    draw = ImageDraw.Draw(image)
    draw.ellipse([scale * v for v in (4, 5, 30, 40)], fill=colors[0])
    if len(colors) > 1:
        draw.polygon([scale * v for v in (34, 22, 62, 2, 40, 45)], fill=colors[1])
    return np.array(image.resize((W, H), Image.Resampling.BOX))


@pytest.mark.parametrize("values", [(1,), (1, 2, 3), (3, 7), (128, 254), (255, 254)])
def test_values_of_palette_and_grey_files_are_ids(tmp_path, values):
    expected = boxes(*values)
    write_mask(tmp_path / "palette.png", expected)
    assert np.array_equal(read_mask_files([tmp_path / "palette.png"], (H, W), ObjectIds()), expected)
    assert np.array_equal(read(tmp_path, expected), expected)
    assert np.array_equal(read(tmp_path, expected.astype(np.uint16)), expected)
    assert np.array_equal(read(tmp_path, expected.astype(np.int32), "mask.tif"), expected)


def test_palette_values_count_and_not_their_colors_transparency_or_size(tmp_path):
    expected = boxes(2, 254)
    expected[0, 0] = 9  # one pixel is an object where it is meant to be
    image = Image.fromarray(expected, "P")
    image.putpalette([0, 0, 0] + [255, 255, 255] * 255)
    image.save(tmp_path / "mask.png", transparency=bytes([0, 255, 0] + [9] * 253))
    assert np.array_equal(read_mask_files([tmp_path / "mask.png"], (H, W), ObjectIds()), expected)


@pytest.mark.parametrize("picture", [
    boxes(255), boxes(True, dtype=bool), boxes(0xFFFF, dtype=np.uint16), boxes(1), boxes(WHITE), boxes((9, 8, 7)),
    boxes((255, 0, 0, 255)), boxes((255, 255))], ids=["8 bit", "1 bit", "16 bit", "one", "white", "dark", "RGBA", "LA"])
def test_a_single_object_is_number_one(tmp_path, picture):
    assert np.array_equal(read(tmp_path, picture), boxes(1))


@pytest.mark.parametrize("name", ["mask.png", "mask.bmp", "mask.tif", "mask.gif", "mask.webp", "mask.ppm"])
def test_colors_are_objects_in_any_lossless_format(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(read(tmp_path, boxes(RED, GREEN, WHITE), name, **options), boxes(1, 2, 3))


def test_colors_of_a_palette_copy_keep_their_ids(tmp_path):
    assert np.array_equal(read(tmp_path, DAVIS_PALETTE[boxes(3, 200, 1)]), boxes(3, 200, 1))
    # The white box stands first, but 1 belongs to a palette colour of the same file.
    assert np.array_equal(read(tmp_path, boxes(WHITE, DAVIS[1], DAVIS[3])), boxes(2, 1, 3))


def test_colors_keep_their_ids_from_file_to_file(tmp_path):
    colors = ObjectIds()
    assert np.array_equal(read(tmp_path, boxes(GREEN, RED), colors=colors), boxes(1, 2))
    assert np.array_equal(read(tmp_path, boxes(RED, WHITE), colors=colors), boxes(2, 3))
    assert np.array_equal(read(tmp_path, boxes(DAVIS[5], GREEN), colors=colors), boxes(5, 1))


def test_transparent_is_background_and_half_of_it_is_not(tmp_path):
    picture = boxes((255, 0, 0, 255), (0, 255, 0, 0), (0, 255, 0, 128))
    colors = ObjectIds()
    assert np.array_equal(read(tmp_path, picture, colors=colors), boxes(1, 0, 2))
    assert colors.of([(0, 255, 0)], tmp_path) == [2]
    soft = np.dstack([np.full((H, W, 3), 255, np.uint8), ellipse(WHITE)[..., 0]])  # the shape is in the alpha only
    assert np.array_equal(read(tmp_path, soft), ellipse(WHITE)[..., 0] >= 128)


@pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_edges_take_the_nearest_object_that_they_mix(tmp_path, resample):
    scale = 8
    large = Image.fromarray(ellipse(RED, GREEN, scale=scale)).resize((W * scale, H * scale), Image.Resampling.NEAREST)
    picture = np.array(large.resize((W, H), resample))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    mask = read(tmp_path, picture)
    nearest = np.array([(0, 0, 0), RED, GREEN])
    nearest = np.square(picture[:, :, None].astype(int) - nearest).sum(axis=-1).argmin(axis=-1)
    swapped = {0: 0, 1: int(mask[25, 15]), 2: int(mask[20, 45])}
    assert sorted(swapped.values()) == [0, 1, 2]
    assert np.array_equal(mask, np.vectorize(swapped.get)(nearest))


@pytest.mark.parametrize("value, expected", [(255, 1), (7, 7), (200, 200)])
def test_grey_edges_are_cleaned(tmp_path, value, expected):
    picture = np.zeros((H, W), np.uint8)
    points = np.array([(5, 40), (30, 3), (60, 44)])  # a corner of 30 degrees fades out over several pixels
    cv2.fillPoly(picture, [points], value, cv2.LINE_AA)
    assert len(np.unique(picture)) > 5
    assert np.array_equal(read(tmp_path, picture), np.where(2 * picture.astype(int) > value, expected, 0))


def test_edges_between_two_grey_objects_are_one_of_the_two(tmp_path):
    picture = np.zeros((H, W), np.uint8)
    picture[8:40, 20:35], picture[8:40, 35], picture[8:40, 36:60] = 100, 140, 200  # the mixed column is nearer to 100
    expected = picture.copy()
    expected[8:40, 35] = 100
    assert np.array_equal(read(tmp_path, picture), expected)


def test_edges_reach_two_pixels_and_three_are_a_phantom(tmp_path):
    picture = boxes(200)
    picture[21, 10], picture[18, 10] = 90, 110  # the box ends with row 19
    expected = boxes(200)
    assert np.array_equal(read(tmp_path, picture), expected)
    picture[22, 15] = 90
    with pytest.raises(UserError, match="value 90 on 1 pixel, one at x 15 y 22"):
        read(tmp_path, picture)


def test_what_a_sharpening_resize_adds_is_an_edge_as_well(tmp_path):
    shape = Image.fromarray(boxes(120)).resize((4 * W, 4 * H), Image.Resampling.BICUBIC)
    assert np.max(shape) > 125
    mask = np.array(shape)
    shape.save(tmp_path / "mask.png")
    assert np.array_equal(load_masks([tmp_path / "mask.png"], ObjectIds())[0].ids, np.where(mask > 60, 120, 0))


def test_a_gradient_is_no_mask(tmp_path):
    picture = np.tile(np.linspace(0, 250, W - 8).round().astype(np.uint8), (H, 1))
    picture = np.pad(picture, ((0, 0), (4, 4)), mode="edge")
    with pytest.raises(UserError, match=r"has others: value \d+ on 48 pixels"):
        read(tmp_path, picture)


@pytest.mark.parametrize("where, value, words", [
    ((2, 50), 77, r"value 77 on 1 pixel, one at x 50 y 2"),  # on the background, far from any edge
    ((30, 15), 77, r"value 77 on 1 pixel, one at x 15 y 30"),  # within an object
    ((slice(21, 23), slice(6, 24)), 3, r"value 3 on 36 pixels, one at x 6 y 21"),  # thin, touches two, mixes none
])
def test_colors_that_no_object_has_are_refused_with_their_place(tmp_path, where, value, words):
    picture = boxes(1, 2) if value == 3 else boxes(100, 200)
    picture[where] = value
    with pytest.raises(UserError, match=rf"3x3.*mask\.png has others: {words}.*palette PNG"):
        read(tmp_path, picture)
    color = np.stack([picture, picture, np.zeros_like(picture)], axis=-1)
    with pytest.raises(UserError, match=rf"mask\.png has others: \({value}, {value}, 0\) on"):
        read(tmp_path, color)


def test_a_long_list_of_colors_is_cut_and_begins_with_the_most_frequent(tmp_path):
    picture = boxes(100, 200)
    picture[0, 1:19:2] = [50, 51, 52, 53, 54, 55, 56, 57, 57]
    with pytest.raises(UserError, match=r"value 57 on 2 pixels, one at x 15 y 0; value 50 .* and 3 more;"):
        read(tmp_path, picture)


def test_a_photograph_is_no_mask(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=r"and 3\d\d\d more"):
        read(tmp_path, noise)


def test_objects_of_three_pixels_and_specks_of_an_object_stay(tmp_path):
    picture = boxes(1, 2)
    picture[44:47, 0:3], picture[2, 50] = 3, 1
    assert np.array_equal(read(tmp_path, picture), picture)
    speck = np.zeros((H, W), np.uint8)
    speck[3, 4] = 255  # the only value there is cannot be a mixture
    assert np.array_equal(read(tmp_path, speck), speck // 255)


def test_more_than_255_objects_are_refused(tmp_path):
    colors = np.stack(np.meshgrid(np.arange(1, 17), np.arange(1, 17), [9]), axis=-1).reshape(16, 16, 3)
    picture = colors.repeat(3, axis=0).repeat(3, axis=1).astype(np.uint8)
    with pytest.raises(UserError, match=r"at most 255 objects; .*mask\.png has 256 colours"):
        read(tmp_path, picture)
    picture[:3, :3] = 0
    ids = ObjectIds()
    picture = np.pad(picture, ((0, 0), (0, W - H), (0, 0)))
    assert sorted(np.unique(read(tmp_path, picture, colors=ids))) == list(range(256))
    with pytest.raises(UserError, match="at most 255 objects"):
        read(tmp_path, boxes((1, 2, 3)), colors=ids)


@pytest.mark.parametrize("picture, words", [
    (boxes(300, 0, 70, dtype=np.uint16), r"1 to 255.*has 300, 70; .*8-bit"),
    (boxes(-1, 2, dtype=np.int32), r"has -1 to 2; .*8-bit"),
    (boxes(1.5, dtype=np.float32), r"mask of floats .* 0 to 1.5"),
    (boxes(0), r"at least one object; .* all background"),
    (boxes((*RED, 0)), r"all transparent")], ids=["16 bit", "negative", "float", "empty", "clear"])
def test_values_that_are_no_ids_are_refused(tmp_path, picture, words):
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path, picture, "mask.png" if picture.dtype.itemsize < 4 else "mask.tif")
    assert "mask." in str(error.value) and "\n" not in str(error.value)


LOSSY = [("mask.jpg", {}), ("mask.webp", {"quality": 90}), ("mask.tif", {"compression": "jpeg"})]


@pytest.mark.parametrize("name, options", LOSSY)
def test_lossy_files_keep_two_tones_and_no_more(tmp_path, name, options, caplog):
    for picture in (boxes(WHITE), ellipse((250, 250, 250)), boxes(200)):
        Image.fromarray(picture).save(tmp_path / name, **options)
        (tmp_path / name).rename(tmp_path / "mask.png")
        mask = read_mask_files([tmp_path / "mask.png"], (H, W), ObjectIds())
        assert np.mean(mask == (picture.reshape(H, W, -1)[..., 0] > 100)) > 0.99 and mask.max() == 1
        assert "mask.png has two tones" in caplog.text
    small = [np.pad(boxes(WHITE), ((0, 240), (0, 320), (0, 0))) for _ in range(2)]
    small[0][200:212, 200:212], small[1][200:212, 200:212] = RED, 128
    for picture in (boxes(WHITE, RED), boxes(120, 250), boxes(WHITE, (128, 128, 128)), *small):
        Image.fromarray(picture).save(tmp_path / name, **options)
        (tmp_path / name).rename(tmp_path / "mask.png")
        with pytest.raises(UserError, match=r"two tones.*mask\.png.*as PNG"):
            load_masks([tmp_path / "mask.png"], ObjectIds())


@pytest.mark.parametrize("name", ["mask.gif", "mask.png", "mask.webp", "mask.tif"])
def test_files_of_several_pictures_are_refused(tmp_path, name):
    first, *others = (Image.fromarray(boxes(color)) for color in (RED, GREEN))
    options = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / name, save_all=True, append_images=others, **options)
    with pytest.raises(UserError, match=rf"one picture; .*{name} has 2;"):
        load_masks([tmp_path / name], ObjectIds())


@pytest.mark.parametrize("make, words", [
    (lambda path: None, "cannot be read.*not exist"), (lambda path: path.write_text("text"), "cannot be read"),
    (lambda path: path.mkdir(), "cannot be read"),
    (lambda path: path.write_bytes(path.with_name("whole.png").read_bytes()[:150]), "cannot be read")])
def test_unreadable_files_are_named(tmp_path, make, words):
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (H, W), dtype=np.uint8)).save(tmp_path / "whole.png")
    make(tmp_path / "mask.png")
    with pytest.raises(UserError, match=rf"mask\.png {words}"):
        load_masks([tmp_path / "mask.png"], ObjectIds())


def test_another_size_is_resized_with_a_warning_of_both(tmp_path, caplog):
    large = boxes(3, 7).repeat(4, axis=0).repeat(4, axis=1)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read(tmp_path, large), boxes(3, 7))
    assert f"{4 * W}x{4 * H}" in caplog.text and f"{W}x{H}" in caplog.text and "mask.png" in caplog.text
    small = boxes(3, 7)[::2, ::2]
    assert np.array_equal(read(tmp_path, small), small.repeat(2, axis=0).repeat(2, axis=1))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(tmp_path, boxes(3, 7))
    assert not caplog.records


def test_an_object_too_small_for_the_frame_is_refused(tmp_path):
    picture = boxes(3, 7).repeat(8, axis=0).repeat(8, axis=1)
    picture[0:3, 0:3] = 9
    with pytest.raises(UserError, match=rf"object 9 of .*mask\.png has none at {W}x{H}"):
        read(tmp_path, picture)


def save_each(tmp_path, pictures) -> list:
    paths = [tmp_path / f"object_{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures):
        Image.fromarray(picture).save(path)
    return paths


def test_several_files_are_objects_in_the_order_given(tmp_path, caplog):
    pictures = [boxes(255), boxes((0, 0, 0), GREEN), ellipse(WHITE), boxes(0, 0, 9)]
    with caplog.at_level(logging.WARNING):
        mask = read_mask_files(save_each(tmp_path, pictures), (H, W), ObjectIds())
    third = pictures[2][..., 0] >= 128
    expected = np.where(third, 3, boxes(1, 2))
    assert np.array_equal(mask, np.where(boxes(0, 0, 1), 4, expected))
    overlap = np.count_nonzero(third & (boxes(1, 2) > 0))
    assert overlap > 100 and f"object_2.png covers {overlap} pixels" in caplog.text and len(caplog.records) == 1


def test_one_of_several_files_with_several_objects_is_refused(tmp_path):
    for second in (boxes(1, 2), boxes(RED, WHITE)):
        with pytest.raises(UserError, match=r"each holds one object; .*object_1\.png has 2 \("):
            load_masks(save_each(tmp_path, [boxes(255), second]), ObjectIds())


def test_an_object_that_another_covers_is_refused(tmp_path):
    files = load_masks(save_each(tmp_path, [boxes(255), boxes(1) + boxes(0, 1)]), ObjectIds())
    with pytest.raises(UserError, match=r"object 1 of .*object_0\.png has none"):
        fit_masks(files, (H, W))
    assert set(np.unique(fit_masks(files[::-1], (H, W)))) == {0, 1, 2}


def test_a_mask_without_background_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read(tmp_path, np.maximum(boxes(1), 2))
    assert "no background" in caplog.text
