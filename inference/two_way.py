"""Both directions of time: predictions of a pass kept on disk, and those of two passes blended."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.propagation import Prediction
from utils.errors import UserError
from utils.files import replacing, write_text


class PredictionStore:
    """Keeps the predictions of a pass in a folder, a file a frame, to the last bit; memory stays free.

    A frame takes about 4*M*h*w bytes, less where objects are small.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)

    def known(self, order: range, masks: Mapping[int, np.ndarray]) -> int:
        """How many frames of `order` have predictions that come from `masks`; what else is kept is no longer.

        From now on the folder is that of these masks.
        """
        given = {str(number): digest(mask) for number, mask in masks.items()}
        record = self._folder / "given.json"
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
            changed = [int(number) for number in {*before, *given} if before.get(number) != given.get(number)]
        except (OSError, ValueError):
            changed = [order[0]]
        count = min([len(order), *(max((number - order[0]) * order.step, 0) for number in changed)])
        count = next((place for place, number in enumerate(order[:count]) if not self._is_whole(number)), count)
        for number in order[count:] if self._folder.is_dir() else ():
            self._file(number).unlink(missing_ok=True)
        write_text(record, json.dumps(given))
        return count

    def put(self, frame: int, prediction: Prediction, basis: int) -> None:
        """Keep a frame's prediction, and the `basis_frame` of the propagator that made it."""
        with replacing(self._file(frame), sync=False) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, basis=basis, ids=np.array(prediction.ids, np.uint8),
                                named=np.array(prediction.named, np.uint8), labels=prediction.labels.cpu().numpy(),
                                similarity=prediction.similarity.cpu().numpy())

    def get(self, frame: int, device: torch.device | str = "cpu", given: np.ndarray | None = None) -> Prediction:
        """A kept prediction on `device`, with the mask `given` of this frame; `UserError` where it was not put."""
        kept = self._read(frame)
        labels, similarity = (torch.from_numpy(kept[name]).to(device) for name in ("labels", "similarity"))
        named = tuple(kept["named"].tolist())
        return Prediction(tuple(kept["ids"].tolist()), labels, similarity, given if named else None, named)

    def basis(self, frame: int) -> int:
        """The `basis` that was put with a frame."""
        return int(self._read(frame)["basis"])

    def _read(self, frame: int) -> dict[str, np.ndarray]:
        file = self._file(frame)
        try:
            with np.load(file) as kept:
                return dict(kept)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{file} is needed to go on, and cannot be read ({error}); give --overwrite to start "
                            "anew") from error

    def _is_whole(self, frame: int) -> bool:
        try:
            self._read(frame)
        except UserError:
            return False
        return True

    def _file(self, frame: int) -> Path:
        return self._folder / f"{frame}.npz"


def digest(mask: np.ndarray) -> str:
    """Tells masks apart."""
    return hashlib.sha256(repr(mask.shape).encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()


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
