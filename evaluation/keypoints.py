"""PCK, the share of joints that are found near enough, as JHMDB and BADJA measure it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.keypoint_sets import KeypointSequence
from datasets.points import read_tracks
from evaluation.davis_evaluation import shorten
from utils.errors import UserError
from utils.pictures import read_frame

Distances = dict[str, list[float]]  # of each joint from the truth, in all frames

JHMDB_THRESHOLDS, BADJA_THRESHOLDS = (0.1, 0.2), (0.2,)
BOX_SHARE = 0.6  # of the diagonal of JHMDB's box


def jhmdb_distances(sequence: KeypointSequence, folder: Path) -> Distances:
    """Distances of each joint in the table in `folder`, in all frames after the first; 1 is the size of the person.

    As CRW's release measures them: joints that are lost in a frame are left out, and the size is 0.6 times the diagonal
    of the box around the true places of the others.
    """
    tracks = _read_tracks(sequence, folder)
    distances: Distances = {joint: [] for joint in sequence.joints[sequence.first]}
    for frame, joints in sequence.scored.items():
        kept = {joint: place for joint, place in joints.items() if not math.isnan(tracks[frame, joint][0])}
        corners = [edge(axis) for edge in (min, max) for axis in zip(*kept.values())]
        size = BOX_SHARE * math.dist(corners[:2], corners[2:])
        for joint, place in kept.items():
            distances[joint].append(math.dist(tracks[frame, joint], place) / size if size else math.inf)
    return distances


def badja_distances(sequence: KeypointSequence, folder: Path) -> Distances:
    """Distances of each joint in the table in `folder`; 1 is the square root of the area of the animal's mask.

    Of the joints that are visible in the first annotated frame, in the later ones where they are visible; what is lost
    is infinitely far.
    """
    tracks = _read_tracks(sequence, folder)
    distances: Distances = {joint: [] for joint in sequence.joints[sequence.first]}
    for frame, joints in sequence.scored.items():
        size = math.sqrt(np.count_nonzero(read_frame(sequence.masks[frame]).any(axis=2)))
        for joint in distances.keys() & joints.keys():
            distance = math.dist(tracks[frame, joint], joints[joint])
            distances[joint].append(distance / size if size and not math.isnan(distance) else math.inf)
    return distances


def pck(distances: Iterable[list[float]], thresholds: Sequence[float]) -> dict[str, float]:
    """The share of all distances together that is within each threshold, NaN of none."""
    every = np.array([distance for one in distances for distance in one])
    return {f"PCK@{threshold:g}": float(np.mean(every <= threshold)) if len(every) else math.nan
            for threshold in thresholds}


def _read_tracks(sequence: KeypointSequence, folder: Path) -> Mapping[tuple[int, str], tuple[float, float]]:
    """The table of a sequence, which has every joint that was given in every frame that is scored."""
    path = folder / f"{sequence.name}.csv"
    if not path.is_file():
        raise UserError(f"{path.name} is missing")
    tracks = read_tracks(path)
    missing = [f"{point.name} of frame {frame}" for frame in sequence.scored for point in sequence.given
               if (frame, point.name) not in tracks]
    if missing:
        raise UserError(f"{path.name} lacks {len(missing)} points: {shorten(missing, 3)}")
    return tracks
