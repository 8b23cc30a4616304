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

from datasets.filelists import existing_folder
from datasets.keypoint_sets import read_badja_set, read_jhmdb_set
from evaluation.comparison import Difference, mean_difference
from evaluation.keypoints import BADJA_THRESHOLDS, JHMDB_THRESHOLDS, Distances, badja_distances, jhmdb_distances, pck
from evaluation.parts import read_vip_masks, summarise_vip, vip_confusion
from evaluation.workers import map_in_processes
from utils.errors import UserError

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
        values = [other.sequences[name][metric] - first.sequences[name][metric] for name in first.sequences]
        scored = [np.array([[value]]) for value in values if not np.isnan(value)]
        if scored:
            [found[metric]] = mean_difference(scored)
    return found


def _outcome(score: Callable[[Any, Path], Any], job: tuple[Path, Any]) -> Any:
    """A sequence's outcome, or in words what is wrong with it."""
    folder, sequence = job
    try:
        return score(sequence, folder)
    except UserError as error:
        return str(error)


def _summarise_joints(outcomes: Mapping[str, Distances], *, thresholds: Sequence[float],
                      mean_of_joints: bool) -> tuple[Values, dict[str, Values], dict[str, Values]]:
    """The mean over the joints, else over the sequences."""
    names = dict.fromkeys(joint for distances in outcomes.values() for joint in distances)
    joints = {joint: pck((distances.get(joint, []) for distances in outcomes.values()), thresholds) for joint in names}
    sequences = {name: pck(distances.values(), thresholds) for name, distances in outcomes.items()}
    return _mean((joints if mean_of_joints else sequences).values()), joints, sequences


def _mean(rows: Iterable[Values]) -> Values:
    """The mean of what is scored, by metric."""
    rows = list(rows)
    scored = {metric: [row[metric] for row in rows if not np.isnan(row[metric])] for metric in rows[0]}
    return {metric: float(np.mean(values)) if values else np.nan for metric, values in scored.items()}


TASKS = {
    "jhmdb": Task("joints", read_jhmdb_set, jhmdb_distances,
                  partial(_summarise_joints, thresholds=JHMDB_THRESHOLDS, mean_of_joints=True)),
    "badja": Task("joints", read_badja_set, badja_distances,
                  partial(_summarise_joints, thresholds=BADJA_THRESHOLDS, mean_of_joints=False)),
    "vip": Task("classes", read_vip_masks, vip_confusion, summarise_vip)}
