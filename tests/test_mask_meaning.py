"""Masks that may mean two things: what is told apart, and what is refused with the fix."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.mask_files import read_mask_files
from datasets.object_ids import ObjectIds
from tests.test_mask_files import BOXES, DAVIS, GREEN, RED, WHITE, H, W, boxes, read
from utils.errors import UserError
from utils.masks import DAVIS_PALETTE, write_mask

ONE = boxes(1)


def palette_png(path, values, palette, **options):
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette(palette)
    image.save(path, **options)
    return read_mask_files([path], (H, W), ObjectIds())


def large(picture, factor=8):
    return np.asarray(picture).repeat(factor, axis=0).repeat(factor, axis=1)


def textured(seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (H // 4, W // 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (W, H), interpolation=cv2.INTER_CUBIC)


# --- palettes ---

def test_black_is_the_background_wherever_the_palette_has_it(tmp_path):
    path = tmp_path / "mask.png"
    assert np.array_equal(palette_png(path, 1 - ONE, [255, 255, 255, 0, 0, 0]), ONE)
    three = [255, 0, 0, 0, 255, 0, 0, 0, 0]
    assert np.array_equal(palette_png(path, np.array([2, 0, 1])[boxes(1, 2)], three), boxes(1, 2))
    davis = [*DAVIS[2], *DAVIS[1], 0, 0, 0]  # a result that was quantised
    assert np.array_equal(palette_png(path, np.array([2, 1, 0])[boxes(1, 2)], davis), boxes(1, 2))
    quantised = Image.fromarray(boxes(RED, GREEN)).quantize(4)
    quantised.save(path)
    assert np.array_equal(read_mask_files([path], (H, W), ObjectIds()), boxes(1, 2))


@pytest.mark.parametrize("palette", [[255, 255, 255] * 3, [255, 0, 0, 0, 255, 0, 0, 0, 255], [200] * 9])
def test_a_palette_without_black_is_refused(tmp_path, palette):
    with pytest.raises(UserError, match=r"background of a mask is black.*palette PNG") as error:
        palette_png(tmp_path / "mask.png", boxes(1, 2), palette)
    assert "\n" not in str(error.value)


def test_a_transparent_first_entry_is_background(tmp_path):
    palette = [255, 255, 255, 255, 0, 0, 0, 255, 0]
    mask = palette_png(tmp_path / "mask.png", boxes(1, 2), palette, transparency=0)
    assert np.array_equal(mask, boxes(1, 2))


def test_a_palette_of_anti_aliased_colors_is_refused(tmp_path):
    soft = cv2.GaussianBlur(boxes(255), (7, 7), 2)
    colors = np.stack([soft, soft // 2, soft // 3], axis=-1)
    used, values = np.unique(colors.reshape(-1, 3), axis=0, return_inverse=True)
    with pytest.raises(UserError, match="anti-aliased"):
        palette_png(tmp_path / "mask.png", values.reshape(H, W), used.flatten().tolist())


def test_the_border_of_voc_is_no_object_and_255_beside_ids_is_asked_about(tmp_path, caplog):
    mask = boxes(3, 15)
    ring = cv2.dilate(mask, np.ones((5, 5))) * (mask == 0)
    write_mask(tmp_path / "voc.png", np.where(ring > 0, np.uint8(255), mask))
    assert np.array_equal(read_mask_files([tmp_path / "voc.png"], (H, W), ObjectIds()), mask)
    assert "255" in caplog.text and "background" in caplog.text
    assert np.array_equal(read(tmp_path, DAVIS_PALETTE[np.where(ring > 0, 255, mask)]), mask)
    with pytest.raises(UserError, match=r"255 beside ids.*VOC.*3, 15, 255.*make it 0"):
        read(tmp_path, np.where(ring > 0, np.uint8(255), mask))


# --- alpha ---

def test_a_cut_out_is_its_alpha(tmp_path, caplog):
    for seed in range(3):
        alpha = cv2.GaussianBlur(boxes(255), (5, 5), 1)
        picture = np.dstack([textured(seed), alpha])
        assert np.array_equal(read(tmp_path, picture), alpha >= 128)
        assert "cut-out" in caplog.text
    flat = large(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), 8)  # blocks of 48 colours
    flat = np.where(np.arange(W)[:, None] % 8 < 3, textured(), flat).astype(np.uint8)
    assert np.array_equal(read(tmp_path, np.dstack([flat, boxes(255)])), ONE)
    webp = np.dstack([textured(), boxes(255)])
    assert np.array_equal(read(tmp_path, webp, "mask.webp", quality=80), ONE)


def test_objects_painted_on_a_transparent_layer_are_their_colors(tmp_path):
    soft = cv2.GaussianBlur(boxes(255, 255), (5, 5), 1)
    paint = np.where(np.arange(H)[:, None, None] < 22, RED, GREEN).astype(np.uint8) * np.ones((H, W, 1), np.uint8)
    assert np.array_equal(read(tmp_path, np.dstack([paint, soft])), np.where(soft >= 128, boxes(1, 2, 0) | (
        np.arange(H)[:, None] >= 22) + 1, 0) * (soft >= 128))
    assert np.array_equal(read(tmp_path, np.dstack([np.zeros((H, W, 3), np.uint8), soft])), soft >= 128)  # in black


# --- tones ---

@pytest.mark.parametrize("picture", [
    cv2.GaussianBlur(large(boxes(255)), (0, 0), 12), cv2.GaussianBlur(large(boxes(255)), (0, 0), 4),
    np.dstack([cv2.GaussianBlur(large(boxes(255)), (0, 0), 12)] * 3),
    cv2.GaussianBlur(large(boxes(65535, dtype=np.uint16)).astype(np.float32), (0, 0), 12).astype(np.uint16),
], ids=["soft", "less soft", "color", "16 bit"])
def test_a_soft_brush_is_cut_half_way(tmp_path, picture):
    mask = read(tmp_path, picture)
    assert np.mean(mask == ONE) > 0.98 and mask.max() == 1


def test_noise_about_two_greys_is_cut_half_way(tmp_path):
    noise = np.random.default_rng(0).integers(-6, 7, (H, W))
    assert np.array_equal(read(tmp_path, np.where(ONE, 220 + noise, 25 + noise).astype(np.uint8)), ONE)


@pytest.mark.parametrize("picture, expected", [
    (np.where(ONE, 240, 12), ONE), (np.where(boxes(1, 2)[..., None] == 0, 10, boxes(RED, WHITE)), boxes(1, 2)),
    (np.where(ONE[..., None] == 0, (12, 9, 14), (250, 40, 40)), ONE), (np.where(ONE, 200, 60), ONE)],
    ids=["grey", "two colours", "one colour", "two greys"])
def test_a_dark_background_is_background(tmp_path, picture, expected, caplog):
    assert np.array_equal(read(tmp_path, picture.astype(np.uint8)), expected)
    assert "mask.png has" in caplog.text


@pytest.mark.parametrize("picture", [
    255 - boxes(255), 200 - boxes(200), 255 - boxes(WHITE), 255 - cv2.GaussianBlur(boxes(255), (5, 5), 1),
    np.where(boxes(1, 2)[..., None] == 0, WHITE, boxes((0, 0, 0), RED)), np.where(ONE, False, True)],
    ids=["grey", "light grey", "RGB", "soft", "with red", "1 bit"])
def test_black_on_white_is_refused(tmp_path, picture):
    with pytest.raises(UserError, match=r"mask\.png .*covers the border.*invert") as error:
        read(tmp_path, picture.astype(bool if picture.dtype == bool else np.uint8))
    assert "\n" not in str(error.value)


def test_ids_that_cover_the_border_are_taken_as_they_are(tmp_path):
    assert np.array_equal(read(tmp_path, 2 - boxes(2)), 2 - boxes(2))
    write_mask(tmp_path / "mask.png", 9 - boxes(9))
    assert np.array_equal(read_mask_files([tmp_path / "mask.png"], (H, W), ObjectIds()), 9 - boxes(9))


@pytest.mark.parametrize("picture", [textured(), textured()[..., 0], np.tile(np.arange(W, dtype=np.uint8) * 4, (H, 1))],
                         ids=["photo", "grey photo", "ramp"])
def test_photographs_and_ramps_are_no_masks(tmp_path, picture):
    with pytest.raises(UserError, match=r"mask\.png"):
        read(tmp_path, picture)


# --- a run's files ---

def test_results_saved_in_colors_are_corrections_of_their_objects(tmp_path):
    ids = ObjectIds()
    assert np.array_equal(read(tmp_path, boxes(RED, GREEN), colors=ids), boxes(1, 2))
    assert np.array_equal(read(tmp_path, DAVIS_PALETTE[boxes(1, 2)], colors=ids), boxes(1, 2))
    assert np.array_equal(read(tmp_path, boxes(DAVIS[2], GREEN * 0 + DAVIS[7]), colors=ids), boxes(2, 7))
    with pytest.raises(UserError, match=r"object 1 as .*use one of the two"):
        read(tmp_path, boxes(RED, DAVIS[1]), colors=ids)


def test_a_new_color_where_an_object_was_is_asked_about(tmp_path):
    ids = ObjectIds()
    read(tmp_path, boxes(RED), colors=ids)
    with pytest.raises(UserError, match=r"new one, \(0, 255, 0\), where object 1 was.*\(128, 0, 0\).*value is 2"):
        read(tmp_path, boxes(GREEN), colors=ids)
    ids = ObjectIds()
    read(tmp_path, boxes(RED), colors=ids)
    assert np.array_equal(read(tmp_path, boxes((0, 0, 0), GREEN), colors=ids), boxes(0, 2))


def test_signs_that_a_run_does_not_know_are_refused(tmp_path):
    ids = ObjectIds()
    assert np.array_equal(read(tmp_path, boxes(4, 7), colors=ids), boxes(4, 7))
    with pytest.raises(UserError, match=r"by other signs.*4 is \(0, 0, 128\)"):
        read(tmp_path, boxes(RED), colors=ids)
    with pytest.raises(UserError, match=r"does not say which object.*4, 7"):
        read(tmp_path, boxes(255), colors=ids)
    assert np.array_equal(read(tmp_path, boxes(7, 9), colors=ids), boxes(7, 9))


# --- the frame's shape ---

@pytest.mark.parametrize("shape, words", [((64, 48), "sides swapped; turn"), ((128, 96), "sides swapped; turn"),
                                          ((48, 48), "is 48x48 and its frame 64x48"), ((48, 60), "export it")])
def test_another_aspect_is_refused(tmp_path, shape, words):
    picture = np.zeros(shape, np.uint8)
    picture[5:20, 5:20] = 1
    with pytest.raises(UserError, match=rf"mask has the shape of its frame.*{words}"):
        read(tmp_path, picture)


@pytest.mark.parametrize("frame, mask", [((480, 854), (1080, 1920)), ((97, 129), (48, 64)), ((48, 64), (97, 129))])
def test_the_same_aspect_but_for_rounding_is_resized(tmp_path, frame, mask):
    picture = np.zeros(mask, np.uint8)
    picture[BOXES[0]] = 1
    Image.fromarray(picture).save(tmp_path / "mask.png")
    assert read_mask_files([tmp_path / "mask.png"], frame, ObjectIds()).shape == frame
