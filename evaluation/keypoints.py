"""PCK, the share of joints that are found near enough, as JHMDB and BADJA measure it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from datasets.keypoint_sets import KeypointSequence
from utils.pictures import read_frame

Tracks = Mapping[tuple[int, str], tuple[float, float]]  # by frame and joint: (x, y) [pixels], NaN where it is lost

JHMDB_THRESHOLDS, BADJA_THRESHOLDS = (0.1, 0.2), (0.2,)
BOX_SHARE = 0.6  # of the diagonal of JHMDB's box


def jhmdb_distances(sequence: KeypointSequence, tracks: Tracks) -> dict[str, list[float]]:
    """Distances of each joint from the truth in all frames after the first; 1 is the size of the person.

    As CRW's release measures them: joints that are lost in a frame are left out, and the size is 0.6 times the diagonal
    of the box around the true places of the others.
    """
    distances: dict[str, list[float]] = {joint: [] for joint in sequence.joints[sequence.first]}
    for frame, joints in sequence.scored.items():
        kept = {joint: place for joint, place in joints.items() if not math.isnan(tracks[frame, joint][0])}
        corners = [edge(axis) for edge in (min, max) for axis in zip(*kept.values())]
        size = BOX_SHARE * math.dist(corners[:2], corners[2:])
        for joint, place in kept.items():
            distances[joint].append(math.dist(tracks[frame, joint], place) / size if size else math.inf)
    return distances


def badja_distances(sequence: KeypointSequence, tracks: Tracks) -> dict[str, list[float]]:
    """Distances of each joint from the truth; 1 is the square root of the area of the animal's mask.

    Of the joints that are visible in the first annotated frame, in the later ones where they are visible; what is lost
    is infinitely far.
    """
    distances: dict[str, list[float]] = {joint: [] for joint in sequence.joints[sequence.first]}
    for frame, joints in sequence.scored.items():
        size = math.sqrt(np.count_nonzero(read_frame(sequence.masks[frame]).any(axis=2)))
        for joint in distances.keys() & joints.keys():
            distance = math.dist(tracks[frame, joint], joints[joint])
            distances[joint].append(distance / size if size and not math.isnan(distance) else math.inf)
    return distances


def share_within(distances: list[float], threshold: float) -> float:
    """The share of distances of at most `threshold`, NaN of none."""
    return float(np.mean(np.array(distances) <= threshold)) if distances else math.nan
