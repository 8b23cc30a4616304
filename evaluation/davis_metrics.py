"""Region similarity J and boundary accuracy F of DAVIS (Perazzi et al., CVPR 2016; Pont-Tuset et al., 2017).

The values are those of the official package. What makes them fast: an object is looked at only inside the bounding box
of its two masks, and a boundary is one whole number with a bit a pixel, so that dilating it is a few shifts.

    H, W  size of a frame          h, w  size of the box around an object
    N     objects of a sequence    T     frames of a sequence          M  proposals (task `unsupervised`)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from utils.masks import object_ids

VOID = 255  # the label of pixels that belong to no object and, in the task `unsupervised`, are not judged
BOUNDARY_TOLERANCE = 0.008  # of the frame's diagonal
_TWO_BY_TWO = np.ones((2, 2), np.uint8)


class Statistics(NamedTuple):
    """Mean, share of the frames above 0.5, and mean of the first quarter minus mean of the last."""

    mean: float
    recall: float
    decay: float


class Scores(NamedTuple):
    """J and F of every object at every frame, float64 [N,T] in [0,1]; NaN where a frame is not scored."""

    ids: list[int]  # the rows' objects in the ground truth
    proposals: list[int]  # the rows' objects in the prediction; the same but for the task `unsupervised`
    J: np.ndarray
    F: np.ndarray


class Region(NamedTuple):
    """One object inside a box, with its boundary as bits whose rows are w + tolerance apart."""

    mask: np.ndarray  # bool [h,w]
    boundary: int
    near: int  # pixels whose distance to the boundary is at most the tolerance


def tolerance(shape: tuple[int, int]) -> int:
    """Distance [pixels] up to which two boundary pixels match in a frame of `shape` (H, W)."""
    return math.ceil(BOUNDARY_TOLERANCE * math.sqrt(shape[0] ** 2 + shape[1] ** 2))


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Bool [h,w] to uint8 [h,w]: 1 where a pixel differs from its right, lower or lower right neighbour."""
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_GRADIENT, _TWO_BY_TWO, anchor=(0, 0))


def region(mask: np.ndarray, radius: int) -> Region:
    """Prepare bool [h,w] for comparisons at the tolerance `radius` [pixels]."""
    h, w = mask.shape
    stride = w + radius  # the margin takes what a shift by up to `radius` carries over the end of a row
    padded = np.zeros((h, stride), np.uint8)
    padded[:, :w] = boundary_map(mask)
    boundary = int.from_bytes(np.packbits(padded).tobytes(), "big")
    spread = [boundary]  # spread[x]: the boundary and all that lies up to x pixels to its left or right
    for x in range(1, radius + 1):
        spread.append(spread[-1] | boundary << x | boundary >> x)
    near = spread[radius]
    for y in range(1, radius + 1):
        row = spread[math.isqrt(radius**2 - y**2)]  # the disk x^2 + y^2 <= radius^2, row by row
        near |= row << y * stride | row >> y * stride
    return Region(mask, boundary, near)


def compare(truth: Region, prediction: Region) -> tuple[float, float]:
    """J and F of two regions of one box; both are 1 where both masks are empty."""
    union = np.count_nonzero(truth.mask | prediction.mask)
    J = np.count_nonzero(truth.mask & prediction.mask) / union if union else 1.0
    n_truth, n_prediction = truth.boundary.bit_count(), prediction.boundary.bit_count()
    if not n_truth or not n_prediction:  # an empty mask has no boundary, nor has one that fills the frame
        return J, float(n_truth == n_prediction)
    precision = (prediction.boundary & truth.near).bit_count() / n_prediction
    recall = (truth.boundary & prediction.near).bit_count() / n_truth
    return J, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of what is set in bool [H,W], with one pixel around it, where the boundary's last pixels lie."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    return slice(max(0, y - 1), y + h + 1), slice(max(0, x - 1), x + w + 1)


def frame_scores(truth: np.ndarray, prediction: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """J and F, [len(ids),2], of the objects `ids` of two index masks, uint8 [H,W]."""
    radius = tolerance(truth.shape)
    scores = np.empty((len(ids), 2))
    for i, k in enumerate(ids):
        in_truth, in_prediction = truth == k, prediction == k
        box = _box(in_truth | in_prediction)
        scores[i] = compare(region(in_truth[box], radius), region(in_prediction[box], radius))
    return scores


def object_births(truths: Iterable[np.ndarray | None]) -> dict[int, int]:
    """The objects of index masks, uint8 [H,W] or None each, and the number of the frame in which each first appears.

    255 is void, but where it is the only label it is the object, as DAVIS 2016 writes it.
    """
    births: dict[int, int] = {}
    for t, truth in enumerate(truths):
        for k in () if truth is None else object_ids(truth):
            births.setdefault(k, t)
    if len(births) > 1:
        births.pop(VOID, None)
    return dict(sorted(births.items()))


def score_tracks(pairs: Iterable[tuple[np.ndarray, np.ndarray] | None], births: Mapping[int, int],
                 include_given: bool = False) -> Scores:
    """J and F of tracked objects, one frame in memory at a time (task `semi-supervised`).

    `pairs` yields for every frame the truth and the prediction, uint8 [H,W], or None where the frame is not scored.
    `births` names for every object the frame in which its mask is given; it is scored from the next one on, with
    `include_given` from that frame on. Void pixels of the truth are background, as the official package has it.
    """
    ids = list(births)
    rows = []
    for t, pair in enumerate(pairs):
        row = np.full((len(ids), 2), np.nan)
        scored = [i for i, k in enumerate(ids) if births[k] < t + include_given]
        if pair is not None and scored:
            row[scored] = frame_scores(*pair, [ids[i] for i in scored])
        rows.append(row)
    J, F = np.stack(rows, axis=-1).swapaxes(0, 1)  # [2,N,T]
    return Scores(ids, ids, J, F)


def evaluate_sequence(truths: Sequence[np.ndarray | None], predictions: Sequence[np.ndarray],
                      include_first_last: bool = False) -> Scores:
    """J and F of index masks in memory, uint8 [H,W] each, by the rules of DAVIS 2017 semi-supervised (DESIGN 9).

    Frames whose truth is None are left out, and the first and the last unless `include_first_last`. An object that
    appears late counts from the frame after its first. `statistics(scores.J[i])` sums a row up.
    """
    last = len(truths) - 1
    pairs = ((truth, prediction) if truth is not None and (include_first_last or 0 < t < last) else None
             for t, (truth, prediction) in enumerate(zip(truths, predictions)))
    return score_tracks(pairs, object_births(truths), include_first_last)


def score_proposals(pairs: Iterable[tuple[np.ndarray, np.ndarray]], ids: Sequence[int]) -> Scores:
    """J and F of the best one-to-one matching of proposals to the objects `ids` (task `unsupervised`).

    A proposal is an id 1, 2, ... of the predictions. What is predicted on void pixels is taken away first. Rows come in
    the order of the proposals, which is the official package's.
    """
    frames = [_pair_scores(truth, np.where(truth == VOID, 0, prediction), ids) for truth, prediction in pairs]
    n_proposals = max([len(ids), *map(max, frames)])  # fewer proposals than objects are filled up with empty ones
    scores = np.reshape([[frame.get(k, frame[0]) for k in range(1, n_proposals + 1)] for frame in frames],
                        (len(frames), n_proposals, 2, len(ids)))
    match = best_matching(scores.mean(axis=(0, 2)).T)
    order = np.argsort(match)
    J, F = scores[:, match[order], :, order].transpose(2, 0, 1)  # [2,N,T]
    return Scores([ids[i] for i in order], [int(k) + 1 for k in match[order]], J, F)


def _pair_scores(truth: np.ndarray, prediction: np.ndarray, ids: Sequence[int]) -> dict[int, np.ndarray]:
    """J and F, [2,N], of every object against each proposal by its id, and against an empty mask by 0."""
    radius = tolerance(truth.shape)
    truths = [region(truth == k, radius) for k in ids]
    candidates = {k: region(prediction == k, radius) for k in object_ids(prediction)}
    candidates[0] = Region(np.zeros(truth.shape, bool), 0, 0)
    return {k: np.reshape([compare(one, candidate) for one in truths], (len(ids), 2)).T
            for k, candidate in candidates.items()}


def best_matching(gain: np.ndarray) -> np.ndarray:
    """For every row of `gain` [N,M], N <= M, a column of its own such that the sum of the gains is the largest.

    The Hungarian method: rows enter one by one; each takes the cheapest path over columns that are already taken to a
    free one (Dijkstra on costs made non-negative by prices), and all on the path move on by one.
    """
    N, M = gain.shape
    row_price, column_price = np.zeros(N), np.zeros(M)
    holder = np.full(M, -1)  # the row that has a column
    for entering in range(N):
        distance, previous = np.full(M, np.inf), np.full(M, -1)
        settled = np.zeros(M, bool)
        row, travelled, column = entering, 0.0, -1
        while row >= 0:
            step = travelled - gain[row] - row_price[row] - column_price
            shorter = ~settled & (step < distance)
            distance[shorter], previous[shorter] = step[shorter], column
            column = int(np.argmin(np.where(settled, np.inf, distance)))
            travelled, settled[column] = distance[column], True
            row = holder[column]
        refund = travelled - distance[settled]
        column_price[settled] -= refund
        row_price[entering] += travelled
        moved = holder[settled]
        row_price[moved[moved >= 0]] += refund[moved >= 0]
        while column >= 0:
            holder[column] = holder[previous[column]] if previous[column] >= 0 else entering
            column = previous[column]
    match = np.empty(N, int)
    match[holder[holder >= 0]] = np.flatnonzero(holder >= 0)
    return match


def statistics(values: np.ndarray) -> Statistics:
    """Sum up the values [T] of one object; NaN are frames that are not scored. All NaN where there is no other."""
    values = values[~np.isnan(values)]
    if not len(values):
        return Statistics(math.nan, math.nan, math.nan)
    # Four bins whose edge frames belong to both neighbours. The official package keeps the edges in uint8, which wraps
    # around beyond 256 frames; here they stay what they are.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0]:edges[1] + 1], values[edges[3]:edges[4] + 1]
    return Statistics(float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean()))
