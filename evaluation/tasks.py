"""The field's tasks beside video objects: joints (JHMDB, BADJA) and parts (VIP), from folders of results to scores.

    jhmdb, badja   results <folder>/<sequence>.csv           truth: the data set's folder (datasets/keypoint_sets.py)
    vip            results <folder>/<sequence>/<frame>.png   truth: VIP_Fine (datasets/video_sets.py)

All scores are shares in [0,1]; NaN where nothing is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.filelists import MASK_SUFFIXES, files_by_stem
from datasets.keypoint_sets import KeypointSequence, read_badja_set, read_jhmdb_set
from datasets.points import read_tracks
from datasets.video_sets import VIP_MASKS, chosen, vip_names
from evaluation.comparison import Difference, mean_difference
from evaluation.davis_evaluation import existing_folder, shorten
from evaluation.keypoints import (
    BADJA_THRESHOLDS,
    JHMDB_THRESHOLDS,
    Tracks,
    badja_distances,
    jhmdb_distances,
    share_within,
)
from evaluation.parts import VIP_CLASSES, class_iou, confusion
from evaluation.workers import map_in_processes
from utils.errors import UserError
from utils.masks import read_mask

Values = dict[str, float]  # by metric


@dataclass(frozen=True)
class TaskEvaluation:
    """The scores of one results folder."""

    results: Path
    means: Values  # what the task reports
    parts: dict[str, Values]  # of each joint or class
    sequences: dict[str, Values]


class Task(NamedTuple):
    """How a task is scored: by sequences, whose outcomes are added up.

    `read` gives the sequences of a data set, or those named; `score` a sequence's outcome in a results folder;
    `summarise` all outcomes, by name, to means, parts and sequences.
    """

    part: str  # what parts are called
    read: Callable[[Path, Sequence[str]], Sequence[Any]]
    score: Callable[[Any, Path], Any]
    summarise: Callable[[Mapping[str, Any]], tuple[Values, dict[str, Values], dict[str, Values]]]


def evaluate_task(task: str, root: str | Path, results: Sequence[str | Path], sequences: Sequence[str] = (),
                  workers: int = 1) -> list[TaskEvaluation]:
    """Score one or more results folders against one data set, in `workers` processes.

    Where anything is wrong anywhere nothing is returned: one `UserError` lists it all.
    """
    kind = TASKS[task]
    truth = kind.read(existing_folder(root, "--gt_path", f"the data set of --task {task}"), sequences)
    folders = [existing_folder(folder, "--results_path", "the results of each sequence") for folder in results]
    jobs = [(folder, sequence) for folder in folders for sequence in truth]
    outcomes = list(map_in_processes(partial(_outcome, kind.score), jobs, min(workers, len(jobs))))
    problems = [f"{folder}: {sequence.name}: {outcome}" for (folder, sequence), outcome in zip(jobs, outcomes)
                if isinstance(outcome, str)]
    if problems:
        raise UserError("nothing was evaluated; put the following right, or take other sequences by --sequences\n  "
                        + "\n  ".join(problems))
    names, n = [sequence.name for sequence in truth], len(truth)
    return [TaskEvaluation(folder, *kind.summarise(dict(zip(names, outcomes[k * n:(k + 1) * n]))))
            for k, folder in enumerate(folders)]


def difference(first: TaskEvaluation, other: TaskEvaluation) -> dict[str, Difference]:
    """What the sequences of `other` have more than those of `first` on the mean, by metric of those that are scored."""
    found = {}
    for metric in first.means:
        values = np.array([[other.sequences[name][metric] - first.sequences[name][metric]] for name in first.sequences])
        scored = values[~np.isnan(values[:, 0])]
        if len(scored):
            [found[metric]] = mean_difference([row[None] for row in scored])
    return found


def _outcome(score: Callable[[Any, Path], Any], job: tuple[Path, Any]) -> Any:
    """A sequence's outcome, or in words what is wrong with it."""
    folder, sequence = job
    try:
        return score(sequence, folder)
    except UserError as error:
        return str(error)


def _tracks(sequence: KeypointSequence, folder: Path) -> Tracks:
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


def _score_jhmdb(sequence: KeypointSequence, folder: Path) -> dict[str, list[float]]:
    return jhmdb_distances(sequence, _tracks(sequence, folder))


def _score_badja(sequence: KeypointSequence, folder: Path) -> dict[str, list[float]]:
    return badja_distances(sequence, _tracks(sequence, folder))


def _pck(distances: Iterable[list[float]], thresholds: Sequence[float]) -> Values:
    """PCK of all distances together."""
    every = [distance for one in distances for distance in one]
    return {f"PCK@{threshold:g}": share_within(every, threshold) for threshold in thresholds}


def _by_joint(outcomes: Mapping[str, dict[str, list[float]]], thresholds: Sequence[float]) -> dict[str, Values]:
    joints = dict.fromkeys(joint for distances in outcomes.values() for joint in distances)
    return {joint: _pck((distances.get(joint, []) for distances in outcomes.values()), thresholds) for joint in joints}


def _summarise_jhmdb(outcomes: Mapping[str, dict[str, list[float]]]) -> tuple[Values, dict, dict]:
    """The mean over the joints."""
    joints = _by_joint(outcomes, JHMDB_THRESHOLDS)
    return (_mean(joints.values()), joints,
            {name: _pck(distances.values(), JHMDB_THRESHOLDS) for name, distances in outcomes.items()})


def _summarise_badja(outcomes: Mapping[str, dict[str, list[float]]]) -> tuple[Values, dict, dict]:
    """The mean over the sequences."""
    sequences = {name: _pck(distances.values(), BADJA_THRESHOLDS) for name, distances in outcomes.items()}
    return _mean(sequences.values()), _by_joint(outcomes, BADJA_THRESHOLDS), sequences


def _mean(rows: Iterable[Values]) -> Values:
    """The mean of what is scored, by metric."""
    rows = list(rows)
    scored = {metric: [row[metric] for row in rows if not np.isnan(row[metric])] for metric in rows[0]}
    return {metric: float(np.mean(values)) if values else np.nan for metric, values in scored.items()}


class _PartSequence(NamedTuple):
    """A video of VIP and its true masks by the frames' names."""

    name: str
    masks: dict[str, Path]


def _read_vip(root: Path, sequences: Sequence[str]) -> list[_PartSequence]:
    names = chosen(vip_names(root), sequences, f"{root}/lists/val_videos.txt")
    found = [_PartSequence(name, files_by_stem(root / VIP_MASKS / name, MASK_SUFFIXES)) for name in names]
    empty = [sequence.name for sequence in found if not sequence.masks]
    if empty:
        raise UserError(f"each video has true masks in {root / VIP_MASKS}; {shorten(empty)} have none; download them, "
                        "or take others by --sequences")
    return found


def _score_vip(sequence: _PartSequence, folder: Path) -> np.ndarray:
    results = files_by_stem(folder / sequence.name, MASK_SUFFIXES)
    missing = [frame for frame in sequence.masks if frame not in results]
    if missing:
        raise UserError(f"{len(missing)} of {len(sequence.masks)} frames are missing: {shorten(missing)}")
    total = np.zeros((len(VIP_CLASSES), len(VIP_CLASSES)), np.int64)
    for frame, file in sequence.masks.items():
        truth, found = read_mask(file), read_mask(results[frame])
        if truth.shape != found.shape:
            raise UserError(f"{results[frame].name} is {found.shape[1]}x{found.shape[0]}, and the truth "
                            f"{truth.shape[1]}x{truth.shape[0]}")
        if found.max() >= len(VIP_CLASSES):
            raise UserError(f"{results[frame].name} has the value {found.max()}, and classes are 0 to "
                            f"{len(VIP_CLASSES) - 1}")
        total += confusion(truth, found)
    return total


def _summarise_vip(outcomes: Mapping[str, np.ndarray]) -> tuple[Values, dict, dict]:
    """The mean over the classes of the IoU in all frames together."""
    classes = dict(zip(VIP_CLASSES, class_iou(np.sum([*outcomes.values()], axis=0)).tolist()))
    return ({"mIoU": float(np.nanmean([*classes.values()]))}, {name: {"IoU": value} for name, value in classes.items()},
            {name: {"mIoU": float(np.nanmean(class_iou(pixels)))} for name, pixels in outcomes.items()})


TASKS = {"jhmdb": Task("joints", read_jhmdb_set, _score_jhmdb, _summarise_jhmdb),
         "badja": Task("joints", read_badja_set, _score_badja, _summarise_badja),
         "vip": Task("classes", _read_vip, _score_vip, _summarise_vip)}
