"""Annotations and arrays to objects: LabelMe and COCO JSON, `.npy` and `.npz` as segmentation programs save them."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from datasets.mask_pictures import id_objects, whole_values
from datasets.object_ids import MAX_ID, Key, Numbered, Objects
from utils.errors import UserError
from utils.pictures import MAX_PIXELS

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 30  # of an annotation file, or of an array
ARRAYS = b"\x93NUMPY", b"PK\x03\x04"  # how .npy and .npz begin
NO_OBJECT = {"_background_", "__ignore__"}  # labels of LabelMe
SAME_THING = 1 / 2  # of the smaller of two masks: an array whose masks overlap by more offers several of one thing
MASK_NAMES = ("masks", "mask", "segmentation", "segmentations")  # of arrays in .npz files, taken before others


def read_annotation(path: Path, frame: str | None) -> Objects | None:
    """The objects of an annotation file or array; None where `path` is neither, by its content.

    Args:
        path: the file.
        frame: the name of the frame, which tells whose masks are meant in a COCO file of several pictures.

    Raises:
        UserError: a file that is damaged, too large, or that leaves open what its objects are.
    """
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
            is_array, is_json = head.startswith(ARRAYS), head.startswith((b"{", b"["))
            if not is_array and not is_json:
                return None
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
            if is_array:
                return _array_objects(path, _array(file))
            return _json_objects(path, json.loads(path.read_text(encoding="utf-8-sig")), frame)
    except UserError:
        raise
    except Exception as error:  # what somebody else's file lacks shows in any way
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a mask ({type(error).__name__}: {why}); a JSON file is of LabelMe "
                        "or COCO, and an array of numbers or truth values [H,W] or [N,H,W]") from error


def _json_objects(path: Path, data: Any, frame: str | None) -> Objects:
    if isinstance(data, dict) and "shapes" in data:
        return _labelme_objects(path, data)
    if isinstance(data, dict) and "annotations" in data and ("images" in data or "image" in data):
        return _coco_objects(path, data, frame)
    raise UserError(f"a JSON mask is LabelMe's (shapes) or COCO's (images, annotations); {path} is neither; export it "
                    "as one of them, or as PNG")


# --- LabelMe ---

def _labelme_objects(path: Path, data: dict[str, Any]) -> Objects:
    size = _size(data["imageHeight"], data["imageWidth"])
    shapes = [shape for shape in data["shapes"] if shape["label"] not in NO_OBJECT]
    groups = [shape.get("group_id") for shape in shapes]
    labels_of = {(group, shape["label"]) for group, shape in zip(groups, shapes)}
    if all(_is_id(group) for group in groups) and len(labels_of) == len(set(groups)):
        keys = groups  # every group is one object
    else:
        names = [shape["label"] if group is None else f"{shape['label']} {group}"
                 for shape, group in zip(shapes, groups)]
        keys = _named(names, apart=[group is None for group in groups])
    return _laid_over(path, size, ((key, _labelme_mask(path, shape, size)) for key, shape in zip(keys, shapes)))


def _labelme_mask(path: Path, shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A shape's pixels, bool [H,W], drawn as LabelMe does."""
    points, kind = np.array(shape["points"], float), shape.get("shape_type", "polygon")
    if not np.isfinite(points).all() or abs(points).max() > 10 * max(size):
        raise ValueError("a point is nowhere near the picture")
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as picture:
            part = np.array(picture) > 0
        mask, (x, y) = np.zeros(size, bool), points[0].round().astype(int)
        mask[y:y + part.shape[0], x:x + part.shape[1]] = part
        return mask
    image = Image.new("1", size[::-1])
    draw, corners = ImageDraw.Draw(image), [tuple(point) for point in points.tolist()]
    if kind in ("polygon", None) and len(points) > 2:
        draw.polygon(corners, outline=1, fill=1)
    elif kind == "rectangle" and len(points) >= 2:
        draw.rectangle([*points.min(axis=0), *points.max(axis=0)], outline=1, fill=1)
    elif kind == "circle" and len(points) == 2:
        radius = np.linalg.norm(points[1] - points[0])
        draw.ellipse([*(points[0] - radius), *(points[0] + radius)], outline=1, fill=1)
    else:
        raise UserError(f"a LabelMe shape is a polygon, rectangle, circle or mask; {path} has a {kind} of "
                        f"{len(points)} points ({shape['label']}); draw its outline")
    return np.array(image)


# --- COCO ---

def _coco_objects(path: Path, data: dict[str, Any], frame: str | None) -> Objects:
    image = _coco_image(path, data.get("images") or [data["image"]], frame)
    size = _size(image["height"], image["width"])
    found = [item for item in data["annotations"] if item.get("image_id", image.get("id")) == image.get("id")]
    tracks = [item.get("track_id", (item.get("attributes") or {}).get("track_id")) for item in found]
    if found and None not in tracks:
        keys = [track if _is_id(track) else f"track {track}" for track in tracks]
    else:
        names = {item["id"]: item["name"] for item in data.get("categories", [])}
        categories = [item.get("category_id") for item in found]
        keys = _named([str(names.get(k, "object" if k is None else f"category {k}")) for k in categories])
    return _laid_over(path, size, ((key, _coco_mask(item["segmentation"], size)) for key, item in zip(keys, found)))


def _coco_image(path: Path, images: list[dict[str, Any]], frame: str | None) -> dict[str, Any]:
    """The picture that is meant: the only one, or the one that is named as the frame is."""
    named = [image for image in images if Path(str(image.get("file_name", ""))).stem == frame]
    if len(images) > 1 and len(named) != 1:
        raise UserError(f"a mask is that of one picture; {path} has {len(images)}, of which {len(named)} are called "
                        f"{frame} as the frame is; give a file of one picture")
    return images[0] if len(images) == 1 else named[0]


def _coco_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Polygons, or run lengths, compressed or not, to bool [H,W]."""
    if isinstance(segmentation, dict):
        mask = decode_runs(segmentation["counts"], *_size(*segmentation["size"]))
        if mask.shape != size:
            raise ValueError(f"run lengths of {mask.shape[1]}x{mask.shape[0]} in a picture of {size[1]}x{size[0]}")
        return mask
    mask = np.zeros(size, bool)
    for polygon in segmentation:
        mask |= fill_polygon(np.array(polygon, float).reshape(-1, 2), *size)
    return mask


def decode_runs(counts: list[int] | str, height: int, width: int) -> np.ndarray:
    """COCO's run lengths, by columns and background first, as a list or compressed to text, to bool [H,W]."""
    runs = np.array(_uncompressed(counts) if isinstance(counts, str) else counts, np.int64)
    if (runs < 0).any() or runs.max(initial=0) > height * width or runs.sum() != height * width:
        raise ValueError(f"run lengths that do not add up to {width}x{height}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _uncompressed(text: str) -> list[int]:
    """Six bits a letter: five of a number, lowest first, and whether it goes on; from the fourth run on differences."""
    runs: list[int] = []
    number = shift = 0
    for letter in text.encode("ascii"):
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("run lengths with letters that they do not have")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits >> 4 & 1) << shift  # the sign
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, shift = 0, 0
    return runs


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centre lies in a polygon [n,2] of (x, y), pixels beginning at whole numbers: bool [H,W]."""
    if not np.isfinite(points).all():
        raise ValueError("a polygon with points that are no numbers")
    crossings = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
        first, last = np.clip(np.ceil(np.sort([y0, y1]) - 0.5), 0, height).astype(int)
        rows = np.arange(first, last)
        x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0) if len(rows) else rows
        crossings[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)] += 1
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


# --- arrays ---

def _array(file: io.BufferedReader) -> np.ndarray:
    """The array of a `.npy` file, or the only one of an `.npz` file that may be a mask."""
    file.seek(0)
    arrays = np.load(file, allow_pickle=False)
    if isinstance(arrays, np.ndarray):
        return arrays
    if sum(member.file_size for member in arrays.zip.infolist()) > MAX_BYTES:
        raise ValueError(f"its arrays have more than {MAX_BYTES >> 20} MB")
    known = [name for name in MASK_NAMES if name in arrays.files]
    found = {name: arrays[name] for name in known[:1] or arrays.files}
    masks = [name for name, array in found.items() if array.ndim >= 2 and array.dtype.kind in "biu"]
    if len(found) > 1 and len(masks) != 1:
        raise ValueError(f"it has the arrays {', '.join(found)}, and none or several may be masks; call one mask")
    return found[masks[0]] if masks else next(iter(found.values()))


def _array_objects(path: Path, array: np.ndarray) -> Objects:
    """Objects of an array [H,W] of ids, or [N,H,W] of one mask an object, with sides of 1 anywhere but H, W."""
    while array.ndim > 2 and 1 in array.shape[:-2]:
        array = np.squeeze(array, array.shape.index(1))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or (array.ndim == 3 and len(array) > MAX_ID):
        raise ValueError(f"it has {array.dtype} of shape {array.shape}; save masks as bool [N,H,W], or ids as [H,W]")
    _size(*array.shape[-2:])
    values = whole_values(path, array)
    if array.ndim == 3:
        if any(len(np.unique(mask[mask > 0])) > 1 for mask in values):
            raise ValueError(f"its {len(values)} masks hold more than two values each; save masks > threshold")
        _refuse_alternatives(path, values > 0)
        return _laid_over(path, values.shape[1:], ((k, mask > 0) for k, mask in enumerate(values, start=1)))
    ids = [int(k) for k in np.unique(values) if k]
    if array.dtype.kind == "f" and len(ids) > 1 and array.max() <= 1:  # probabilities
        return Objects((array >= 0.5).astype(np.uint8), {1: None})
    return id_objects(path, values, {k: k for k in ids})


def _refuse_alternatives(path: Path, masks: np.ndarray) -> None:
    """`UserError` where masks, bool [N,H,W], show one thing several times, as promptable models propose it."""
    for k in range(1, len(masks)):
        for j in range(k):
            common = np.count_nonzero(masks[j] & masks[k])
            if common > SAME_THING * min(masks[j].sum(), masks[k].sum()):
                raise UserError(f"every mask of an array is an object of its own; in {path} those with index {j} and "
                                f"{k} share {common} pixels; save the one that is meant, or masks that do not overlap")


# --- both ---

def _size(height: int, width: int) -> tuple[int, int]:
    """A picture's size as it is said; ValueError where there can be none."""
    if not all(isinstance(side, int) and side > 0 for side in (height, width)) or height * width > MAX_PIXELS:
        raise ValueError(f"a picture of {width}x{height} pixels")
    return height, width


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_ID


def _named(names: list[str], apart: list[bool] | None = None) -> list[Key]:
    """Keys of objects by their names; the same name again, where it stands apart, is another object by its number.

    A name that is an id is that id.
    """
    apart = apart or [True] * len(names)
    counts = Counter(name for name, alone in zip(names, apart) if alone)
    seen: Counter[str] = Counter()
    keys: list[Key] = []
    for name, alone in zip(names, apart):
        seen[name] += 1
        if alone and counts[name] > 1:
            keys.append(Numbered(f"{name}, number {seen[name]} in the file"))
        else:
            keys.append(int(name) if name.isdecimal() and len(name) < 4 and _is_id(int(name)) else name)
    return keys


def _laid_over(path: Path, size: tuple[int, int], masks: Iterable[tuple[Key, np.ndarray]]) -> Objects:
    """Masks, bool [H,W], with what they are of; later ones on top, with a warning."""
    labels, covered = np.zeros(size, np.uint8), 0
    keys: dict[Key, int] = {}
    for key, mask in masks:
        label = keys.setdefault(key, len(keys) + 1)
        if label > MAX_ID:
            raise UserError(f"a mask has at most {MAX_ID} objects; {path} has more; leave some out")
        covered += np.count_nonzero(mask & (labels > 0) & (labels != label))
        labels[mask] = label
    if covered:
        logger.warning("the objects of %s overlap on %d pixels: they are the later one's", path, covered)
    for key, label in keys.items():
        if not (labels == label).any():
            raise UserError(f"every object of a mask has at least one pixel; {key} of {path} has none, or others cover "
                            "it whole; leave it out, or list it last")
    return Objects(labels, {label: key for key, label in keys.items()})
