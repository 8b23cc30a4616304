"""J&F of a network in training on a labelled list (`--validate`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.evaluation_video import read_video
from datasets.filelists import EvaluationSequence, find_list, read_evaluation_list
from evaluation.davis_metrics import evaluate_sequence, statistics
from models.colornet import ColorNet
from models.propagation import build_propagator
from utils.config import TestSettings
from utils.distributed import gather_objects, rank, world_size
from utils.errors import UserError


class Validation:
    """Carries the first masks of a list's sequences through them and scores the result as DAVIS does.

    Args:
        name: an evaluation list, whose masks of later frames are the truth; `UserError` where it has none.
        root: the data root.
        settings: the section TEST; `UserError` where it asks for a feature that the model does not have.
        model: the network in training; it is left in the mode it is in.
    """

    def __init__(self, name: str | Path, root: str, settings: TestSettings, model: ColorNet):
        self.sequences = read_evaluation_list(find_list(name, root), root)
        self.model, self.settings = model, settings
        build_propagator(model, settings)
        later = [frame.mask for sequence in self.sequences for frame in sequence.frames[1:-1]]
        if not any(mask and mask.is_file() for mask in later):
            raise UserError(f"--validate needs a list whose masks of later frames exist; {name} has none between the "
                            "first and the last frame of a sequence")

    def __call__(self) -> dict[str, float]:
        """`val/J&F`, `val/J` and `val/F` in [0,1], means over all objects; the processes share the sequences."""
        mode = self.model.training
        self.model.eval()
        scores = [score for sequence in self.sequences[rank()::world_size()]
                  for score in self._sequence_scores(sequence)]
        self.model.train(mode)
        J, F = np.mean([score for part in gather_objects(scores) for score in part], axis=0).tolist()
        return {"val/J&F": (J + F) / 2, "val/J": J, "val/F": F}

    def _sequence_scores(self, sequence: EvaluationSequence) -> list[tuple[float, float]]:
        """Mean J and F of each object."""
        propagator = build_propagator(self.model, self.settings)
        truths, predictions = zip(*((frame.mask, propagator.step(frame.image, frame.mask))
                                    for frame in read_video(sequence)))
        scores = evaluate_sequence(truths, predictions)
        return [(statistics(J).mean, statistics(F).mean) for J, F in zip(scores.J, scores.F) if not np.isnan(J).all()]
