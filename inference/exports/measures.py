"""Results as tables and stacks for measuring: CSV, and TIFF label stacks for ImageJ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from inference.exports.results import Options, ResultSequence
from inference.exports.shapes import box
from utils.files import replacing, write_csv

COLUMNS = ("sequence", "frame", "name", "time", "object", "label", "area", "centroid_x", "centroid_y", "box_x", "box_y",
           "box_width", "box_height", "perimeter", "orientation", "confidence", "lost")


def write_measures(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """A row for every object in every frame; fields that do not exist there are empty.

    Pixels are counted from the centre of the top left one, (0, 0). `area` [pixels]; `perimeter` [pixels] along the
    border pixels' centres, holes included; `orientation` [degrees] of the longest extent, from -90 (exclusive) to 90,
    0 along x and 90 along y downwards; `time` [seconds]; `confidence` in [0,1].
    """
    rows = []
    for sequence in sequences:
        for number, frame, mask in zip(sequence.numbers, sequence.frames, sequence.masks()):
            time = "" if sequence.video is None else f"{float(sequence.video.time(number)):.6f}"
            for k in sequence.ids:
                sure = sequence.confidence.get((frame, k))
                trust = ("", "") if sure is None else (f"{sure.trust:.4f}", int(sure.lost))
                rows.append((sequence.name, number, frame, time, k, options.names[k],
                             *_measured((mask == k).astype(np.uint8)), *trust))
    write_csv(out, COLUMNS, rows)


def write_label_stack(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """One TIFF file with a page a frame, uint8 ids, 0 is background."""
    (sequence,) = sequences
    with replacing(out) as temporary:
        first, *others = map(Image.fromarray, sequence.masks())
        first.save(temporary, format="TIFF", save_all=True, append_images=others, compression="tiff_adobe_deflate")


def _measured(own: np.ndarray) -> tuple[object, ...]:
    """Area, centroid, box, perimeter and orientation of an object, uint8 0 or 1 [H,W], as the columns want them."""
    moments = cv2.moments(own, binaryImage=True)
    if not moments["m00"]:
        return (0, *[""] * 8)
    area = moments["m00"]
    outlines, _ = cv2.findContours(own, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    angle = math.degrees(math.atan2(2 * moments["mu11"], moments["mu20"] - moments["mu02"])) / 2
    return (int(area), f"{moments['m10'] / area:.3f}", f"{moments['m01'] / area:.3f}", *box(own),
            f"{sum(cv2.arcLength(outline, True) for outline in outlines):.3f}", f"{angle:.3f}")
