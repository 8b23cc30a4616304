"""Batches that are ready for the objective: made by loader processes, on the device before their step begins."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from datasets.sampler import EpochBatchSampler
from datasets.training import MixedClips, TrainingClips
from datasets.views import finished
from utils.distributed import local_world_size, rank, world_size
from utils.errors import UserError
from utils.signals import end_children
from utils.threads import available_processors

MOST_WORKERS = 12  # make some 400 clips a second, more than a GPU takes

# An error may leave a loader with its processes to the end of the interpreter, which asks them by SIGTERM.
atexit.register(end_children)

Views = dict[str, dict[str, Tensor]]  # branch (`color`, `dense`) to name to [B,...]


class Batch(NamedTuple):
    """B clips of this process: their views as `losses.objective` takes them, and what logs say of them."""

    views: Views
    clips: list[str]
    failed: int  # files that could not be decoded before these clips were taken

    def parts(self, count: int) -> list[Views]:
        """The views in `count` parts of equally many clips."""
        size = len(self.clips) // count
        return [{branch: {name: value[i:i + size] for name, value in views.items()}
                 for branch, views in self.views.items()} for i in range(0, count * size, size)]


class BatchLoader:
    """The batches of an epoch, this process's part of each.

    Args:
        dataset: `dataset[(pass, index)]` is a sample (`datasets.training.TrainingClips`).
        batch_size, seed, clips_per_epoch: as for `EpochBatchSampler`.
        workers: loader processes; 0 makes the batches in this one.
        device: where the views are wanted.
    """

    def __init__(self, dataset: TrainingClips | MixedClips, *, batch_size: int, seed: int, workers: int,
                 device: torch.device, clips_per_epoch: int = 0):
        self.dataset, self._device = dataset, device
        self._sampler = EpochBatchSampler(len(dataset), batch_size=batch_size, seed=seed, rank=rank(),
                                          world_size=world_size(), clips_per_epoch=clips_per_epoch)
        self._loader = DataLoader(dataset, batch_sampler=self._sampler, num_workers=workers, collate_fn=collate,
                                  worker_init_fn=init_worker, persistent_workers=workers > 0,
                                  pin_memory=device.type == "cuda")

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self._sampler)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `first` on; `UserError` where no clip can be decoded for one."""
        self._sampler.set_position(epoch, first)
        if self._device.type == "cuda":
            return copied_ahead(self._loader, self._device)
        return (make_batch(collated, self._device) for collated in self._loader)


def default_workers() -> int:
    """The cores that this process may use, shared with the others of the run, at most `MOST_WORKERS`."""
    return max(1, min(available_processors() // local_world_size(), MOST_WORKERS))


def read_batch(dataset: TrainingClips | MixedClips, positions: Sequence[tuple[int, int]],
               device: torch.device) -> Batch:
    """The batch of the clips at `positions` (epoch, index), made in this process."""
    return make_batch(collate([dataset[position] for position in positions]), device)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the views of samples to [B,...] and keep `clip` and `failed` as lists; an error takes the batch's place."""
    errors = [sample for sample in samples if "error" in sample]
    if errors:
        return errors[0]
    texts = {"clip": [sample["clip"] for sample in samples],
             "failed": [path for sample in samples for path in sample["failed"]]}
    return default_collate([{key: sample[key] for key in sample if key not in texts} for sample in samples]) | texts


def make_batch(collated: dict[str, Any], device: torch.device) -> Batch:
    """What `collate` gave as a batch on the device; a sample's error is raised as `UserError`."""
    if "error" in collated:
        raise UserError(collated["error"])
    views: Views = {
        branch: finished({name: value.to(device, non_blocking=True) for name, value in collated[branch].items()})
        for branch in ("color", "dense") if branch in collated}
    return Batch(views, collated["clip"], len(collated["failed"]))


def copied_ahead(loader: Iterable[dict[str, Any]], device: torch.device) -> Iterator[Batch]:
    """Batches of pinned memory on a CUDA device, each copied while the step before it runs, by a stream of its own."""
    stream, waiting = torch.cuda.Stream(device), None
    for collated in loader:
        with torch.cuda.stream(stream):
            batch = make_batch(collated, device)
        copied = stream.record_event()
        if waiting is not None:
            yield _received(*waiting)
        waiting = batch, copied
    if waiting is not None:
        yield _received(*waiting)


def _received(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch for the stream that computes: it waits for the copy, and the memory waits for what is computed."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for views in batch.views.values():
        for value in views.values():
            value.record_stream(stream)
    return batch


def init_worker(worker: int) -> None:
    """Set up a loader process: one thread, and signals are the training process's business, which ends it."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
