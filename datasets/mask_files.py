"""Masks as people have them to one index mask of a frame's size: its files are read, laid over each other and fitted.

`mask_pictures` has the rules for pictures, `mask_annotations` those for annotations and arrays, `object_ids` how
objects keep their ids from file to file. Ids are 1 to 255, 0 is background.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datasets.mask_annotations import read_annotation
from datasets.mask_edges import few
from datasets.mask_pictures import read_picture_objects
from datasets.object_ids import ObjectIds, Objects
from utils.errors import UserError
from utils.masks import object_ids
from utils.pictures import PictureError

logger = logging.getLogger(__name__)


class MaskFile(NamedTuple):
    """A file that was read: its path and its objects, uint8 [h,w], not yet of the frame's size."""

    path: Path
    ids: np.ndarray


def read_mask_files(paths: Sequence[Path], shape: tuple[int, int], ids: ObjectIds, *,
                    frame: Callable[[], np.ndarray] | None = None, name: str | None = None) -> np.ndarray:
    """Read the files given for one frame of `shape` (height, width) to its index mask, uint8 [H,W].

    The frames of a run come in order, with the same `ids`; `frame` gives a frame's picture, uint8 RGB [H,W,3], where
    it is needed, and `name` is what it is called.

    Raises:
        UserError: whatever `load_masks` and `fit_masks` refuse, and a new object where one known before was.
    """
    mask = fit_masks(load_masks(paths, ids, frame=frame, name=name), shape)
    ids.settle(mask, paths[0])
    return mask


def load_masks(paths: Sequence[Path], ids: ObjectIds, *, frame: Callable[[], np.ndarray] | None = None,
               name: str | None = None) -> list[MaskFile]:
    """Read the files given for one frame, of which a picture and a name help where there are any.

    The objects of a single file have the ids that it gives them; several files hold one object each, which become
    1, 2, ... in the order given.

    Raises:
        UserError: a file is missing, damaged or animated, has no object or more than 255, may mean two things, or is
            one of several and has more than one object.
    """
    files = []
    for number, path in enumerate(paths, 1):
        labels, keys = _read(path, frame, name)
        if len(paths) > 1 and len(keys) > 1:
            raise UserError(f"where several masks are given for a frame each holds one object; {path} has "
                            f"{len(keys)} ({few(keys.values())}); give it alone or split it")
        table = np.zeros(256, np.uint8)
        table[list(keys)] = ids.of(list(keys.values()), path) if len(paths) == 1 else number
        files.append(MaskFile(path, table[labels]))
    return files


def fit_masks(files: Sequence[MaskFile], shape: tuple[int, int]) -> np.ndarray:
    """Lay the files of one frame over each other at its `shape` (height, width): uint8 [H,W], later files on top.

    A file of another size is resized (nearest) and overlaps are resolved, both with a warning; another aspect than the
    frame's, and an object that is covered whole or too small for the size, are a `UserError`.
    """
    H, W = shape
    mask = np.zeros(shape, np.uint8)
    for path, ids in files:
        if ids.shape != shape:
            _refuse_other_aspect(path, ids.shape, shape)
            logger.warning("mask %s is %dx%d and its frame %dx%d: it is resized", path, *ids.shape[::-1], W, H)
            ids = cv2.resize(ids, (W, H), interpolation=cv2.INTER_NEAREST_EXACT)
        covered = np.count_nonzero((mask > 0) & (ids > 0))
        if covered:
            logger.warning("mask %s covers %d pixels of those before it: they are its object's", path, covered)
        np.copyto(mask, ids, where=ids > 0)
    left = set(object_ids(mask))
    for path, ids in files:
        lost = [k for k in object_ids(ids) if k not in left]
        if lost:
            raise UserError(f"every object of a mask has at least one pixel of the frame; object {lost[0]} of {path} "
                            f"has none at {W}x{H}; draw it larger, or give the file that covers it first")
    return mask


def _refuse_other_aspect(path: Path, mask: tuple[int, int], frame: tuple[int, int]) -> None:
    """`UserError` where a mask (height, width) is no scaled frame, to the pixel."""
    (h, w), (H, W) = mask, frame
    if abs(h - H * w / W) <= 1 or abs(w - W * h / H) <= 1:
        return
    swapped = abs(w - H * h / W) <= 1 or abs(h - W * w / H) <= 1
    fix = "turn the mask by 90 degrees, as its frame is shown" if swapped else "export it at the frame's size"
    raise UserError(f"a mask has the shape of its frame; {path} is {w}x{h} and its frame {W}x{H}"
                    f"{', the sides swapped' * swapped}; {fix}")


def _read(path: Path, frame: Callable[[], np.ndarray] | None, name: str | None) -> Objects:
    """A file's objects by the rule for its kind; `UserError` for what `load_masks` refuses."""
    try:
        found = read_annotation(path, name) or read_picture_objects(path, frame)
    except PictureError as error:
        raise UserError(f"mask {path} cannot be read ({error.why}); a mask is a picture, best a PNG, a JSON file of "
                        "LabelMe or COCO, or a .npy or .npz array") from error
    if not found.keys:
        raise UserError(f"a mask has at least one object; {path} is all background (0, black or transparent); "
                        "draw the object into it")
    if found.labels.all():
        logger.warning("mask %s has no background (0 or black): every pixel is an object's", path)
    return found
