"""Annotations, arrays and painted copies of a frame as masks: read as their owners do, and refused in one line."""

from __future__ import annotations

import base64
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from datasets.mask_annotations import decode_runs, fill_polygon
from datasets.mask_files import read_mask_files
from datasets.object_ids import ObjectIds
from tests.test_mask_files import BOXES, GREEN, RED, H, W, boxes
from tests.test_mask_meaning import textured
from utils.errors import UserError

BOX = [(5, 4, 20, 16), (10, 24, 20, 16), (36, 26, 24, 18)]  # x, y, width, height of BOXES


def corners(k, edge=0):
    """The outline of a box, `edge` short of its far sides."""
    x, y, w, h = BOX[k]
    return [[x, y], [x + w - edge, y], [x + w - edge, y + h - edge], [x, y + h - edge]]


def read(path, content, ids=None, **options):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_mask_files([path], (H, W), ids or ObjectIds(), **options)


def labelme(*shapes):
    return {"version": "5.4.1", "shapes": list(shapes), "imagePath": "a.jpg", "imageData": None, "imageHeight": H,
            "imageWidth": W}


def shape(label, points, kind="polygon", group=None, **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}, **more}


def cocofile(*segmentations, images=None, **fields):
    annotations = [{"id": k, "image_id": 7, "category_id": k, "segmentation": s,
                    **{name: values[k] for name, values in fields.items()}} for k, s in enumerate(segmentations)]
    images = images or [{"id": 7, "file_name": "a/00003.jpg", "height": H, "width": W}]
    return {"images": images, "annotations": annotations,
            "categories": [{"id": k, "name": f"kind {k}"} for k in range(len(segmentations))]}


def compressed(mask):
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


# --- LabelMe ---

def test_labelme_shapes_are_objects_by_label_and_group(tmp_path):
    path = tmp_path / "mask.json"
    two = labelme(shape("dog", corners(0, 1)), shape("cat", [BOX[1][:2], [29, 39]], "rectangle"))
    ids = ObjectIds()
    assert np.array_equal(read(path, two, ids), boxes(1, 2))
    assert np.array_equal(read(path, labelme(shape("cat", corners(0, 1))), ids), boxes(2))  # the same in later files
    parts = labelme(shape("dog", corners(0, 1), group=4), shape("dog", corners(1, 1), group=4))
    assert np.array_equal(read(path, parts), boxes(4, 4))
    apart = labelme(shape("dog", corners(0, 1)), shape("dog", corners(1, 1)), shape("__ignore__", corners(2)))
    assert np.array_equal(read(path, apart), boxes(1, 2))
    assert np.array_equal(read(path, "\ufeff" + json.dumps(labelme(shape("3", corners(0, 1))))), boxes(3))


def test_labelme_masks_and_circles(tmp_path):
    part = np.random.default_rng(0).integers(0, 2, (16, 20), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(part * 255).save(file, format="PNG")
    text = base64.b64encode(file.getvalue()).decode()
    expected = np.zeros((H, W), np.uint8)
    expected[BOXES[0]] = part
    shapes = labelme(shape("a", [[5, 4], [24, 19]], "mask", mask=text))
    assert np.array_equal(read(tmp_path / "mask.json", shapes), expected)
    circle = read(tmp_path / "mask.json", labelme(shape("a", [[30, 20], [40, 20]], "circle")))
    assert abs(circle.sum() - np.pi * 100) < 35 and circle[20, 40] and not circle[20, 42]


# --- COCO ---

@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_decode_as_their_owner_does(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.resize(rng.integers(0, 2, (5, 6), dtype=np.uint8), (W, H), interpolation=cv2.INTER_NEAREST)
    mask = np.where(rng.random((H, W)) < 0.2 * (seed % 2), 1 - mask, mask)
    assert np.array_equal(decode_runs(compressed(mask)["counts"], H, W), mask)
    flat = np.pad(mask.T.ravel(), 1, constant_values=2)
    starts = np.flatnonzero(np.diff(flat))
    runs = np.diff(starts).tolist()
    assert np.array_equal(decode_runs(runs if mask[0, 0] == 0 else [0, *runs], H, W), mask)


def test_polygons_cover_the_pixels_whose_centre_they_hold():
    for k, box in enumerate(BOXES):
        expected = np.zeros((H, W), bool)
        expected[box] = True
        assert np.array_equal(fill_polygon(np.array(corners(k), float), H, W), expected)
    star = np.array([[32, 2], [50, 44], [4, 16], [60, 18], [12, 46]], float) + 0.3
    theirs = coco.decode(coco.merge(coco.frPyObjects([star.ravel().tolist()], H, W)))
    assert (fill_polygon(star, H, W) != theirs).mean() < 0.05
    outside = fill_polygon(np.array([[-50, -50], [500, -50], [500, 500], [-50, 500]], float), H, W)
    assert outside.all()


def test_coco_objects_are_those_of_tracks_or_of_categories(tmp_path):
    path = tmp_path / "mask.json"
    polygons = [[np.ravel(corners(k)).tolist()] for k in range(2)]
    runs = [compressed(boxes(1)), {"size": [H, W], "counts": [0, H * W]}]
    assert np.array_equal(read(path, cocofile(*polygons)), boxes(1, 2))
    assert np.array_equal(read(path, cocofile(polygons[0], polygons[1], track_id=[5, 3])), boxes(5, 3))
    assert np.array_equal(read(path, cocofile(runs[0], track_id=[9])), boxes(9))
    assert np.array_equal(read(path, cocofile(*runs[::-1])), 1 + boxes(1))
    assert np.array_equal(read(path, cocofile([*polygons[0], *polygons[1]])), boxes(1, 1))
    several = [{"id": i, "file_name": f"{i:05d}.jpg", "height": H, "width": W} for i in (6, 7)]
    data = cocofile(polygons[0], images=several)
    assert np.array_equal(read(path, data, name="00007"), boxes(1))
    with pytest.raises(UserError, match=r"one picture; .*has 2, of which 0 are called 00001"):
        read(path, data, name="00001")


def test_objects_of_one_name_are_told_apart_in_the_first_mask_only(tmp_path):
    path, ids = tmp_path / "mask.json", ObjectIds()
    data = cocofile(*[[np.ravel(corners(k)).tolist()] for k in range(2)], category_id=[1, 1])
    assert np.array_equal(read(path, data, ids), boxes(1, 2))
    with pytest.raises(UserError, match=r"kind 1, number 1 in the file.*track_id"):
        read(path, data, ids)


HOSTILE = {
    "neither": ('{"a": 1}', "neither"), "cut": ('{"shapes": [', "JSONDecodeError"), "deep": ("[" * 100000, "Recursion"),
    "no points": (labelme({"label": "a"}), "points"),
    "a line": (labelme(shape("a", [[0, 0], [9, 9]], "line")), "outline"),
    "far": (labelme(shape("a", [[0, 0], [1e9, 9], [1, 30]])), "nowhere near"),
    "huge": (labelme() | {"imageHeight": 10**9, "shapes": [shape("a", corners(0))]}, "pixels"),
    "digits": ('{"shapes": ' + "9" * 5000 + "}", "ValueError"),
    "runs": (cocofile({"size": [H, W], "counts": [5, -5, H * W]}), "add up"),
    "runs too long": (cocofile({"size": [H, W], "counts": "o" * 40}), "letters"),
    "other size": (cocofile({"size": [4, 4], "counts": [0, 16]}), "4x4 in a picture of 64x48"),
    "no number": (cocofile([[float("nan")] * 6]), "no numbers"), "nothing": (cocofile(), "at least one object"),
    "no pixel": (labelme(shape("a", [[70, 50], [80, 50], [80, 60]])), "at least one pixel")}


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_annotations_are_refused_in_one_line(tmp_path, case):
    content, words = HOSTILE[case]
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path / "mask.json", content)
    assert "mask.json" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


# --- arrays ---

def save(path, array, **arrays):
    np.savez_compressed(path, **arrays) if arrays else np.save(path, array)
    return read_mask_files([path], (H, W), ObjectIds())


STACK = np.stack([boxes(1), boxes(0, 1)])


@pytest.mark.parametrize("array, expected", [
    (boxes(1, 200), boxes(1, 200)), (boxes(True, dtype=bool), boxes(1)), (boxes(255), boxes(1)),
    (boxes(3, dtype=np.int64), boxes(3)), (boxes(2.0, dtype=np.float32), boxes(2)), (STACK > 0, boxes(1, 2)),
    (STACK[:, None] > 0, boxes(1, 2)), (STACK[None] > 0, boxes(1, 2)), (boxes(1)[..., None], boxes(1)),
    (STACK * 255, boxes(1, 2)), (STACK.astype(np.float32), boxes(1, 2)),
    (0.1 + 0.8 * boxes(1.0, dtype=float), boxes(1))])
def test_arrays_are_ids_or_one_mask_an_object(tmp_path, array, expected):
    assert np.array_equal(save(tmp_path / "mask.npy", array), expected)
    assert np.array_equal(save(tmp_path / "mask.npz", None, masks=array, scores=np.ones(3)), expected)


@pytest.mark.parametrize("array, words", [
    (boxes(-3.5, dtype=np.float32), "masks > threshold"), (np.array([boxes(1)], object), "allow_pickle"),
    (np.zeros((300, H, W), bool), r"bool of shape \(300, 48, 64\)"), (np.ones(5, bool), "shape"),
    (np.repeat(STACK[:1], 3, axis=0) > 0, "share 320 pixels; save the one"), (boxes(1, 255), "255 beside ids"),
    (boxes(300, dtype=np.int32), "ids are 1 to 255"), (np.stack([boxes(1, 2)] * 2), "more than two values"),
    (boxes("a", dtype="U1"), "U1")])
def test_arrays_that_may_be_anything_are_refused(tmp_path, array, words):
    with pytest.raises(UserError, match=words) as error:
        save(tmp_path / "mask.npy", array)
    assert "mask.npy" in str(error.value) and "\n" not in str(error.value)


def test_the_array_that_is_meant_must_be_clear(tmp_path):
    path = tmp_path / "mask.npz"
    assert np.array_equal(save(path, None, a=boxes(1), scores=np.ones(3)), boxes(1))
    with pytest.raises(UserError, match=r"arrays a, b.*call one mask"):
        save(path, None, a=boxes(1), b=boxes(2))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"mask\.npz cannot be read as a mask"):
        read_mask_files([path], (H, W), ObjectIds())


def test_what_is_taken_is_said(tmp_path):
    (tmp_path / "mask.txt").write_text("no mask")
    with pytest.raises(UserError, match=r"mask\.txt cannot be read .*PNG.*LabelMe or COCO.*\.npy or \.npz"):
        read_mask_files([tmp_path / "mask.txt"], (H, W), ObjectIds())


# --- painted copies of the frame ---

def painted(tmp_path, picture, frame, **options):
    Image.fromarray(picture).save(tmp_path / "painted.png")
    return read_mask_files([tmp_path / "painted.png"], (H, W), ObjectIds(), frame=lambda: frame, **options)


def test_paint_on_a_copy_of_the_frame_is_the_mask(tmp_path):
    frame = textured()
    picture = frame.copy()
    picture[BOXES[0]], picture[BOXES[1]], picture[BOXES[2]] = RED, GREEN, (0, 0, 0)
    assert np.array_equal(painted(tmp_path, picture, frame), boxes(1, 2, 3))
    alone = frame.copy()
    alone[BOXES[0]] = 255
    nearly = np.clip(alone.astype(int) + np.random.default_rng(0).integers(-1, 2, alone.shape), 0, 255).astype(np.uint8)
    nearly[BOXES[0]] = 255
    for one in (alone, nearly):
        assert np.array_equal(painted(tmp_path, one, frame), boxes(1))


def test_edges_of_paint_are_where_it_covers_half(tmp_path):
    frame = textured(1) // 2 + 60
    cover = cv2.GaussianBlur(boxes(1.0, dtype=np.float32), (3, 3), 0.8)[..., None]
    picture = (frame * (1 - cover) + np.array(RED) * cover).round().astype(np.uint8)
    assert np.mean(painted(tmp_path, picture, frame) == (cover[..., 0] > 0.5)) > 0.995


def test_paint_that_shows_the_frame_through_is_refused(tmp_path):
    frame = textured()
    picture = frame.copy()
    picture[BOXES[0]] = picture[BOXES[0]] // 2 + np.array([127, 0, 0], np.uint8)
    for one in (picture, frame):
        with pytest.raises(UserError, match=r"painted in one opaque colour; .*painted\.png differs"):
            painted(tmp_path, one, frame)


def test_a_cut_out_of_the_frame_is_its_alpha_and_a_mask_is_no_copy(tmp_path):
    blocks = textured()[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)  # flat colours, as a drawn video has
    assert np.array_equal(painted(tmp_path, np.dstack([blocks, boxes(255)]), blocks), boxes(1))
    black = np.zeros((H, W, 3), np.uint8)
    assert np.array_equal(painted(tmp_path, boxes(RED, GREEN), black), boxes(1, 2))
