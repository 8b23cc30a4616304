"""IoU of the parts of people, as VIP measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.filelists import MASK_SUFFIXES, files_by_stem
from datasets.video_sets import VIP_MASKS, chosen, vip_names
from evaluation.davis_evaluation import shorten
from utils.errors import UserError
from utils.masks import read_mask

VIP_CLASSES = ("background", "hat", "hair", "sunglasses", "upper clothes", "dress", "coat", "socks", "pants", "gloves",
               "scarf", "skirt", "torso skin", "face", "right arm", "left arm", "right leg", "left leg", "right shoe",
               "left shoe")


class PartSequence(NamedTuple):
    """A video of VIP and its true masks by the frames' names."""

    name: str
    masks: dict[str, Path]


def read_vip_masks(root: Path, sequences: Sequence[str]) -> list[PartSequence]:
    """The validation set's videos, or those of them that are named; `UserError` where one has no masks."""
    names = chosen(vip_names(root), sequences, f"{root}/lists/val_videos.txt")
    found = [PartSequence(name, files_by_stem(root / VIP_MASKS / name, MASK_SUFFIXES)) for name in names]
    empty = [sequence.name for sequence in found if not sequence.masks]
    if empty:
        raise UserError(f"each video has true masks in {root / VIP_MASKS}; {shorten(empty)} have none; download them, "
                        "or take others by --sequences")
    return found


def vip_confusion(sequence: PartSequence, folder: Path) -> np.ndarray:
    """Pixels of each true class (rows) by the class that the masks in `folder` have, int64 [20,20].

    Pixels whose true value is no class are left out. `UserError` for missing masks, other sizes and values.
    """
    results = files_by_stem(folder / sequence.name, MASK_SUFFIXES)
    missing = [frame for frame in sequence.masks if frame not in results]
    if missing:
        raise UserError(f"{len(missing)} of {len(sequence.masks)} frames are missing: {shorten(missing)}")
    n_classes = len(VIP_CLASSES)
    total = np.zeros((n_classes, n_classes), np.int64)
    for frame, file in sequence.masks.items():
        truth, found = read_mask(file), read_mask(results[frame])
        if truth.shape != found.shape:
            raise UserError(f"{results[frame].name} is {found.shape[1]}x{found.shape[0]}, and the truth "
                            f"{truth.shape[1]}x{truth.shape[0]}")
        if found.max() >= n_classes:
            raise UserError(f"{results[frame].name} has the value {found.max()}, and classes are 0 to {n_classes - 1}")
        known = truth < n_classes
        pairs = n_classes * truth[known].astype(np.int64) + found[known]
        total += np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    return total


def summarise_vip(outcomes: Mapping[str, np.ndarray]) -> tuple[dict, dict, dict]:
    """The mean over the classes of the IoU in all frames together."""
    classes = dict(zip(VIP_CLASSES, class_iou(np.sum([*outcomes.values()], axis=0)).tolist()))
    return ({"mIoU": float(np.nanmean([*classes.values()]))}, {name: {"IoU": value} for name, value in classes.items()},
            {name: {"mIoU": float(np.nanmean(class_iou(pixels)))} for name, pixels in outcomes.items()})


def class_iou(pixels: np.ndarray) -> np.ndarray:
    """A confusion [20,20] to the IoU of each class [20], NaN for one that is nowhere."""
    shared, union = np.diag(pixels), pixels.sum(axis=0) + pixels.sum(axis=1) - np.diag(pixels)
    return np.divide(shared, union, out=np.full(len(union), np.nan), where=union > 0)
