"""How much one result differs from another on the same objects, and how sure that is.

Sequences are what is drawn at random: objects of one sequence go right or wrong together. Everything is in the unit of
the scores, shares in [0,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluation.davis_evaluation import Evaluation

METRICS = ("J&F", "J", "F")
RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)  # of the resampled means


class Difference(NamedTuple):
    """A mean difference over all objects; its error and interval are NaN where there is one sequence."""

    mean: float
    standard_error: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"mean": self.mean, "standard_error": self.standard_error, "interval_95": [self.low, self.high]}


@dataclass(frozen=True)
class Comparison:
    """What `other` has more than `first`."""

    first: Evaluation
    other: Evaluation
    means: dict[str, Difference]  # by `METRICS`
    sequences: dict[str, np.ndarray]  # [3] by `METRICS`, the mean over the sequence's objects
    objects: dict[str, dict[int, np.ndarray]]  # [3] for each sequence and id in the ground truth

    @property
    def better(self) -> int:
        """Sequences whose J&F is higher."""
        return sum(bool(difference[0] > 0) for difference in self.sequences.values())

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        named = lambda values: dict(zip(METRICS, values.tolist()))
        return {"first": str(self.first.results), "means": {name: d.as_json() for name, d in self.means.items()},
                "sequences": {name: named(values) for name, values in self.sequences.items()},
                "objects": {name: {str(k): named(values) for k, values in objects.items()}
                            for name, objects in self.objects.items()}}


def compare(first: Evaluation, other: Evaluation) -> Comparison:
    """Compare two results of one ground truth and one protocol."""
    objects = {}
    for a, b in zip(first.sequences, other.sequences):
        scores = [{row.id: np.array([row.mean, row.J.mean, row.F.mean]) for row in result.objects} for result in (a, b)]
        if scores[0]:
            objects[a.sequence] = {k: scores[1][k] - scores[0][k] for k in sorted(scores[0])}
    sequences = {name: np.mean(list(found.values()), axis=0) for name, found in objects.items()}
    spread = mean_difference([np.stack(list(found.values())) for found in objects.values()])
    return Comparison(first, other, dict(zip(METRICS, spread)), sequences, objects)


def mean_difference(values: Sequence[np.ndarray], seed: int = 0) -> list[Difference]:
    """The mean over all objects of differences, [objects,M] for each sequence: one `Difference` for each of M.

    Its standard error and its bootstrap interval take whole sequences as the units that are drawn.
    """
    sums = np.stack([found.sum(axis=0) for found in values])  # [S,M]
    counts = np.array([[len(found)] for found in values])  # [S,1]
    S, mean = len(values), sums.sum(axis=0) / counts.sum()
    if S == 1:
        return [Difference(float(value), np.nan, np.nan, np.nan) for value in mean]
    error = np.sqrt(S / (S - 1) * ((sums - counts * mean) ** 2).sum(axis=0)) / counts.sum()
    drawn = np.random.default_rng(seed).multinomial(S, np.full(S, 1 / S), size=RESAMPLES)  # how often each is drawn
    low, high = np.quantile(drawn @ sums / (drawn @ counts), INTERVAL, axis=0)
    return [Difference(*map(float, row)) for row in zip(mean, error, low, high)]
