"""What a study keeps on disk, so that options are compared without encoding or carrying again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.files import replacing


class LabelStore:
    """Labels that were carried, kept in a folder for another run; without a folder nothing is kept.

    Args:
        folder: it is made where it is missing.
        name: of what the labels depend on beside the options: model, sequence, size and frames.
    """

    def __init__(self, folder: Path | None, name: str):
        self._folder, self._name = folder, name

    def get(self, options: Any, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The labels [M,h,w] of each frame by `options`, a dataclass, made where they are not there."""
        if self._folder is None:
            return make()
        changed = {key: value for key, value in dataclasses.asdict(options).items()
                   if value != getattr(type(options), key)}
        path = self._folder / "-".join([self._name, *(f"{key}_{value}" for key, value in changed.items())])
        if not path.is_file():
            with replacing(path) as temporary:
                torch.save(torch.stack(make()), temporary)
        return list(torch.load(path).float())


class FeatureCache:
    """Features of videos in a folder, one float16 array [N,C,h,w] a video, read as they are asked for.

    Args:
        folder: it is made where it is missing; None keeps nothing.
        key: of what features depend on beside what `get` is told, such as the weights.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]):
        self._folder, self._key = folder, dict(key)

    def get(self, files: Sequence[Path], settings: Mapping[str, Any],
            make: Callable[[], Iterable[Tensor]]) -> Sequence[Tensor]:
        """The features [C,h,w] of the frames in `files`, encoded by `settings`; `make` gives them where they lack."""
        if self._folder is None:
            return list(make())
        stamps = [[str(file.resolve()), (status := file.stat()).st_size, status.st_mtime_ns] for file in files]
        key = json.dumps([self._key, dict(settings), stamps], sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        if not path.is_file():
            with replacing(path) as temporary:
                self._write(temporary, len(files), iter(make()))
        return _Stored(np.load(path, mmap_mode="r"))

    @staticmethod
    def _write(path: Path, count: int, features: Iterator[Tensor]) -> None:
        first = next(features)
        array = np.lib.format.open_memmap(path, "w+", np.float16, (count, *first.shape))
        array[0] = first.numpy()
        for number, each in enumerate(features, 1):
            array[number] = each.numpy()
        array.flush()


class _Stored(Sequence):
    """Features on disk as float32 tensors of unit length over their channels."""

    def __init__(self, array: np.ndarray):
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, number: int) -> Tensor:
        return torch.from_numpy(self._array[number].astype(np.float32))
