"""Both directions of time: predictions of a backward pass kept on disk, and blended with those of the forward pass."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.propagation import Prediction


class PredictionSpool:
    """Keeps the predictions of many frames in a nameless temporary file, in half precision, so that memory stays free.

    Args:
        folder: where the file lies; about 4*M*h*w bytes a frame. It is gone with this object or the process.
    """

    def __init__(self, folder: str | Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as this object)
        self._entries: dict[int, tuple[int, tuple[int, ...], torch.Size]] = {}  # offset, ids, shape of each frame

    def put(self, frame: int, prediction: Prediction) -> None:
        """Keep a frame's labels and similarities; what was given is not kept."""
        values = torch.stack([prediction.labels, prediction.similarity]).half().cpu()  # [2,M,h,w]
        self._entries[frame] = (self._file.seek(0, 2), prediction.ids, values.shape)
        self._file.write(values.numpy().tobytes())

    def get(self, frame: int, device: torch.device | str = "cpu") -> Prediction:
        """A kept prediction, float32 on `device`; `KeyError` for a frame that was not put."""
        offset, ids, shape = self._entries[frame]
        self._file.seek(offset)
        values = np.frombuffer(self._file.read(2 * shape.numel()), np.float16).reshape(shape)
        labels, similarity = torch.from_numpy(values.astype(np.float32)).to(device)
        return Prediction(ids, labels, similarity)


def blend(forward: Prediction, backward: Prediction, share: float) -> Prediction:
    """The mean of two predictions of one frame, `share` in [0,1] being the weight of `backward`.

    An object that one direction does not know has no labels there. What was given to `forward` stays.
    """
    ids = (*forward.ids, *(i for i in backward.ids if i not in forward.ids))
    labels, similarity = ((1 - share) * _spread(forward, ids, index) + share * _spread(backward, ids, index)
                          for index in ("labels", "similarity"))
    return forward._replace(ids=ids, labels=labels, similarity=similarity)


def _spread(prediction: Prediction, ids: tuple[int, ...], values: str) -> Tensor:
    """The channels of a prediction's `labels` or `similarity` in the order of `ids`, zeros for those it lacks."""
    maps: Tensor = getattr(prediction, values)
    spread = maps.new_zeros(len(ids), *maps.shape[1:])
    spread[[ids.index(i) for i in prediction.ids]] = maps
    return spread
