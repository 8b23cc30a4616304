"""From folders of masks to J and F: finds the sequences, lists everything that is wrong with them, and scores them.

    ground truth  <masks>/<sequence>/<frame>.png      results  <folder>/<sequence>/<frame>.png
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.filelists import MASK_SUFFIXES, existing_folder, files_by_stem, visible_folders
from datasets.video_sets import DAVIS_IMAGES, chosen, davis_names
from evaluation.davis_metrics import VOID, Scores, Statistics, object_births, score_proposals, score_tracks, statistics
from evaluation.workers import map_in_processes
from utils.errors import UserError
from utils.masks import object_ids, read_mask

TASKS = ("semi-supervised", "unsupervised")
MAX_PROPOSALS = 20


@dataclass(frozen=True)
class GroundTruth:
    """Where the true masks are and which of them count."""

    masks: Path
    sequences: list[str]
    images: Path  # <images>/<sequence>/<frame>.jpg; need not exist
    from_first_frame: bool  # objects are 1 ... the highest id of the first frame (DAVIS), else all ids of all frames
    left_out: tuple[str, ...] = ()  # sequences that are not evaluated because the results lack them


@dataclass(frozen=True)
class Protocol:
    """What is scored. DAVIS leaves out the first and the last frame of the task `semi-supervised`."""

    task: str = "semi-supervised"
    include_first_last: bool = False
    allow_missing: bool = False  # frames and sequences that are not there count as empty masks

    @property
    def all_frames(self) -> bool:
        """Whether the first and the last frame are scored too."""
        return self.include_first_last or self.task == "unsupervised"


class ObjectResult(NamedTuple):
    """The row of one object in a table."""

    name: str  # as in the official table
    id: int  # in the ground truth
    J: Statistics
    F: Statistics

    @property
    def mean(self) -> float:
        """J&F of the object."""
        return (self.J.mean + self.F.mean) / 2


@dataclass(frozen=True)
class SequenceResult:
    """J and F of a sequence at every annotated frame."""

    sequence: str
    frames: list[str]
    scores: Scores
    missing: list[str]  # frames that counted as empty masks
    task: str

    @property
    def objects(self) -> list[ObjectResult]:
        """One row an object that has a scored frame; proposals are numbered, as in the official package."""
        scores = self.scores
        numbers = scores.ids if self.task == "semi-supervised" else range(1, len(scores.ids) + 1)
        return [ObjectResult(f"{self.sequence}_{number}", k, statistics(J), statistics(F))
                for number, k, J, F in zip(numbers, scores.ids, scores.J, scores.F) if not np.isnan(J).all()]


@dataclass(frozen=True)
class Evaluation:
    """The scores of one results folder."""

    results: Path
    sequences: list[SequenceResult]

    @cached_property
    def objects(self) -> list[ObjectResult]:
        """The objects of all sequences."""
        return [row for sequence in self.sequences for row in sequence.objects]

    @cached_property
    def means(self) -> dict[str, float]:
        """Means over all objects, under the column names of the official table."""
        J, F = (np.mean([getattr(row, metric) for row in self.objects], axis=0) for metric in "JF")
        columns = {f"{metric}-{name}": float(value) for metric, values in (("J", J), ("F", F))
                   for name, value in zip(("Mean", "Recall", "Decay"), values)}
        return {"J&F-Mean": (columns["J-Mean"] + columns["F-Mean"]) / 2, **columns}

    @property
    def n_missing(self) -> int:
        """Frames that counted as empty masks."""
        return sum(len(sequence.missing) for sequence in self.sequences)


def davis_ground_truth(root: str | Path, subset: str, task: str, sequences: Sequence[str] = ()) -> GroundTruth:
    """The ground truth of a set of DAVIS 2017 under `root`, or of the sequences of it that are named.

    `UserError` where a part of it is not there.
    """
    root = existing_folder(root, "--davis_path", "ImageSets/, Annotations/ and JPEGImages/")
    unsupervised = task == "unsupervised"
    names = davis_names(root, subset, "2019" if unsupervised and subset.startswith("test") else "2017")
    masks = root / ("Annotations_unsupervised" if unsupervised else "Annotations") / "480p"
    if not masks.is_dir():
        raise UserError(f"the ground truth of the task {task} is read from {masks}, which does not exist; download it")
    return GroundTruth(masks, chosen(names, sequences, f"set {subset} of {root}"), root / DAVIS_IMAGES,
                       from_first_frame=True)


def folder_ground_truth(masks: str | Path, results: Sequence[str | Path],
                        sequences: Sequence[str] = ()) -> GroundTruth:
    """The sequences that a folder of true masks shares with all of the results folders, or those that are named."""
    results = [existing_folder(folder, "--results_path", "one folder of masks a sequence") for folder in results]
    masks = existing_folder(masks, "--gt_path", "one folder of index PNGs a sequence")
    known = visible_folders(masks)
    shared = set(known).intersection(*map(visible_folders, results))
    if not shared:
        raise UserError(f"a sequence is evaluated where {masks} and the results have a folder of its name; none is in "
                        f"both {masks} and {', '.join(map(str, results))}; check the paths")
    taken = chosen([name for name in known if name in shared or name in sequences], sequences, str(masks))
    return GroundTruth(masks, taken, masks.parent / "JPEGImages", from_first_frame=False,
                       left_out=tuple(name for name in known if name not in shared and not sequences))


def evaluate_folders(results: Sequence[str | Path], truth: GroundTruth, protocol: Protocol | None = None,
                     workers: int = 1) -> list[Evaluation]:
    """Score one or more results folders against one ground truth, in `workers` processes.

    Every sequence is checked before it is scored, and where anything is wrong anywhere nothing is returned: one
    `UserError` lists it all. What the folders' listings already show stops the scoring from the start.
    """
    protocol = protocol or Protocol()
    folders = [existing_folder(folder, "--results_path", "one folder of masks a sequence") for folder in results]
    jobs = [_Job.find(folder, name, truth, protocol) for folder in folders for name in truth.sequences]
    run = partial(_run, from_first_frame=truth.from_first_frame, protocol=protocol,
                  score=not any(job.problems for job in jobs))
    by_size = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].truth))  # long ones first: processes end together
    runs = map_in_processes(run, [jobs[i] for i in by_size], min(workers, len(jobs)))
    outcome_of = dict(zip(by_size, tqdm(runs, "evaluating", len(jobs), unit="sequence", disable=None)))
    outcomes = [outcome_of[i] for i in range(len(jobs))]
    problems = [f"{job.folder}: {line}" for job, outcome in zip(jobs, outcomes) if isinstance(outcome, list)
                for line in outcome]
    if problems:
        missing = any(job.missing for job in jobs) and not protocol.allow_missing
        hint = ", or let --allow-missing take what is missing as empty masks" * missing
        raise UserError(f"nothing was evaluated; put the following right{hint}\n  " + "\n  ".join(problems))
    n = len(truth.sequences)
    evaluations = [Evaluation(folder, [one for one in outcomes[k * n:(k + 1) * n] if isinstance(one, SequenceResult)])
                   for k, folder in enumerate(folders)]
    if not evaluations[0].objects:
        raise UserError(f"an object counts from the frame after its first on; no object of {truth.masks} has such a "
                        "frame; --include_first_last scores all frames")
    return evaluations


def shorten(items: Iterable, most: int = 6) -> str:
    """A list that fits a line."""
    names = [str(item) for item in items]
    return " ".join(names) if len(names) <= most else f"{' '.join(names[:most - 1])} ... {names[-1]}"


@dataclass(frozen=True)
class _Job:
    """One sequence of one results folder, and what its listing already shows to be wrong."""

    sequence: str
    folder: Path  # of the results
    results: Mapping[str, Path]  # masks under their frames' names
    truth: Mapping[str, Path]  # likewise, in order
    scored: range  # numbers of the annotated frames that are scored
    missing: list[str]  # scored frames without a result
    problems: list[str]

    @staticmethod
    def find(results: Path, sequence: str, truth: GroundTruth, protocol: Protocol) -> _Job:
        """List the folders of a sequence."""
        folders, listed, problems = (truth.masks / sequence, results / sequence), [], []
        for folder in folders:
            try:
                listed.append(files_by_stem(folder, MASK_SUFFIXES))
            except UserError as error:
                listed.append({})
                problems.append(str(error))
        given, there = listed
        frames = list(given)
        scored = range(len(frames)) if protocol.all_frames else range(1, len(frames) - 1)
        missing = [frames[t] for t in scored if frames[t] not in there]
        if not problems and not scored:
            problems.append(f"nothing to score: {len(frames)} annotated frames in {folders[0]}" +
                            (", of which the first and the last are left out" if frames else ""))
        elif not problems and missing and not protocol.allow_missing:
            problems.append(f"{len(missing)} of {len(scored)} frames are missing: {shorten(missing)}" if there
                            else "the whole sequence is missing")
        return _Job(sequence, folders[1], there, given, scored, missing, problems)


class _WrongMasksError(Exception):
    """Ends the scoring of a sequence whose masks have mistakes."""


class _Reader:
    """Reads the mask pairs of a sequence and collects what is wrong with them."""

    def __init__(self, job: _Job, from_first_frame: bool):
        self.job = job
        self.mistakes: dict[str, dict[str, str]] = {}  # kind of mistake -> frame -> detail
        listed = list(job.truth)[:1 if from_first_frame else None]
        births = object_births(mask for frame in listed if (mask := self._read(job.truth, frame)) is not None)
        self.truth_is_255 = list(births) == [VOID]
        if self.truth_is_255:
            births = {1: births[VOID]}
        elif from_first_frame:
            births = dict.fromkeys(range(1, max(births, default=0) + 1), 0)
        self.births = births  # object -> number of the frame in which its mask is given

    def pairs(self, known: Collection[int]) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
        """Truth and prediction of every frame, uint8 [H,W], or None where it is not scored.

        From the first mistake on nothing more is yielded; the rest is checked and `_WrongMasksError` raised.
        """
        for t, frame in enumerate(self.job.truth):
            pair = self._pair(frame, known) if t in self.job.scored else None
            if not self.mistakes:
                yield pair
        if self.mistakes:
            raise _WrongMasksError

    def _pair(self, frame: str, known: Collection[int]) -> tuple[np.ndarray, np.ndarray] | None:
        truth = self._read(self.job.truth, frame)
        if truth is not None and self.truth_is_255:
            truth = (truth == VOID).astype(np.uint8)
        if frame in self.job.missing:
            return None if truth is None else (truth, np.zeros_like(truth))
        prediction = self._read(self.job.results, frame)
        if truth is None or prediction is None:
            return None
        if truth.shape != prediction.shape:
            (H, W), (h, w) = truth.shape, prediction.shape
            self._note(f"not of the ground truth's size {W}x{H}", frame, f"{w}x{h}")
            return None
        if list(self.births) == [1]:
            prediction[prediction == VOID] = 1  # one object may be written as 255, as in DAVIS 2016
        unknown = sorted(set(object_ids(prediction)) - set(known))
        if unknown:
            self._note(f"ids other than {shorten(known)}", frame, shorten(unknown))
        return truth, prediction

    def _read(self, files: Mapping[str, Path], frame: str) -> np.ndarray | None:
        try:
            return read_mask(files[frame])
        except UserError as error:
            self._note("no readable index mask", frame, str(error))
            return None

    def _note(self, kind: str, frame: str, detail: str) -> None:
        self.mistakes.setdefault(kind, {})[frame] = detail


def _run(job: _Job, from_first_frame: bool, protocol: Protocol, score: bool) -> SequenceResult | list[str]:
    """Check one sequence, and score it where nothing is wrong and `score`; else return what is wrong."""
    if not job.scored:
        return job.problems
    reader = _Reader(job, from_first_frame)
    ids = list(reader.births)
    unsupervised = protocol.task == "unsupervised"
    pairs = reader.pairs(range(1, MAX_PROPOSALS + 1) if unsupervised else ids)
    try:
        if not score:
            for _ in pairs:
                pass
            return job.problems
        scores = score_proposals((pair for pair in pairs if pair), ids) if unsupervised else \
            score_tracks(pairs, reader.births, protocol.include_first_last)
    except _WrongMasksError:
        return [*job.problems, *mistake_lines(reader.mistakes)]
    return SequenceResult(job.sequence, list(job.truth), scores, job.missing, protocol.task)


def mistake_lines(mistakes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line for each kind of mistake: the frames that have it, and the detail of the first, which may be empty."""
    lines = []
    for kind, details in mistakes.items():
        first = next(iter(details.values()))
        notes = [f"{len(details)} frames"] * (len(details) > 1) + [f"the first: {first}"] * bool(first)
        lines.append(f"{kind}: {shorten(details)}" + f" ({'; '.join(notes)})" * bool(notes))
    return lines
