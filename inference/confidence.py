"""How far a mask may be trusted: of every frame and object, and which objects are lost."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.propagation import Prediction
from utils.errors import UserError
from utils.files import write_csv

LOST_BELOW, FOUND_ABOVE = 0.45, 0.55  # similarity * margin of an object


class Confidence(NamedTuple):
    """Of one object in one frame; 0, 0, 0 where it is nowhere the strongest."""

    object: int
    cells: int  # of the feature map that are the object's
    similarity: float  # mean over these cells of their neighbours' mean similarity, in [-1,1]
    margin: float  # mean over these cells of its label above the next strongest, in [0,1]


class Row(NamedTuple):
    """What the table says of one object in one frame."""

    frame: int
    name: str
    object: int
    cells: int
    similarity: float
    margin: float
    lost: bool

    @property
    def trust(self) -> float:
        """The confidence in one number, in [0,1]."""
        return max(self.similarity, 0.0) * self.margin


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV with the names of their fields."""
    write_csv(path, Row._fields, ((*row[:4], f"{row.similarity:.4f}", f"{row.margin:.4f}", int(row.lost))
                                  for row in rows))


def read_table(path: Path) -> list[Row]:
    """The rows of a table; `UserError` for a file that is none."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [Row(int(row["frame"]), row["name"], int(row["object"]), int(row["cells"]),
                        float(row["similarity"]), float(row["margin"]), row["lost"] == "1")
                    for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a table of confidence that this program wrote ({error!r}); move it away to go "
                        "on without it") from None


class LostWatch:
    """Says which objects are lost: from where similarity * margin falls below LOST_BELOW until it is over FOUND_ABOVE.

    The second threshold is higher so that the flag does not flicker.
    """

    def __init__(self) -> None:
        self._lost: set[int] = set()

    def __call__(self, confidences: Sequence[Confidence]) -> set[int]:
        """The lost objects of the next frame, in order of time."""
        for one in confidences:
            trust = one.similarity * one.margin
            if trust < LOST_BELOW:
                self._lost.add(one.object)
            elif trust > FOUND_ABOVE:
                self._lost.discard(one.object)
        return set(self._lost)


def confidences(prediction: Prediction) -> list[Confidence]:
    """One entry an object of a prediction, in the order of its channels."""
    owner, similarity, margin = _cells(prediction)
    count = torch.bincount(owner, minlength=len(prediction.ids))
    mean = lambda values: torch.bincount(owner, values, len(prediction.ids)) / count.clamp(min=1)
    rows = zip(prediction.ids, count.tolist(), mean(similarity).tolist(), mean(margin).tolist())
    return [Confidence(*row) for row in rows if row[0]]


def confidence_map(prediction: Prediction) -> Tensor:
    """similarity * margin of every cell's strongest channel, [h,w] in [0,1]."""
    _, similarity, margin = _cells(prediction)
    return (similarity.clamp(min=0) * margin).view(prediction.similarity.shape[1:])


def _cells(prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
    """Of every cell [hw]: its strongest channel, that one's similarity, and its lead over the second."""
    h, w = prediction.similarity.shape[1:]
    labels = F.adaptive_avg_pool2d(prediction.labels, (h, w)).flatten(1)  # [M,hw]
    best, order = labels.topk(min(2, len(labels)), dim=0)
    margin = best[0] - best[1] if len(labels) > 1 else best[0]
    return order[0], prediction.similarity.flatten(1).gather(0, order[:1])[0], margin
