"""Which clips make up which batch: fixed by (seed, epoch), for any number of processes, from any batch on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError


class EpochBatchSampler(Sampler):
    """Yield this process's part of each batch of an epoch as a list of `(epoch, index)`.

    An epoch is a permutation of all clips, seeded by (seed, epoch); an incomplete last batch is left out. `batch_size`
    is that of all `world_size` processes together, of which `rank` takes its slice. `UserError` where the processes
    cannot share a batch evenly or a batch needs more clips than there are.
    """

    def __init__(self, num_clips: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size % world_size:
            raise UserError(f"TRAIN.BATCH_SIZE is shared evenly by all processes: {batch_size} does not divide by "
                            f"{world_size}; choose a multiple of {world_size}")
        if num_clips < batch_size:
            raise UserError(f"a batch needs TRAIN.BATCH_SIZE = {batch_size} clips and the data has {num_clips}; "
                            "lower TRAIN.BATCH_SIZE or add data")
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        share = batch_size // world_size
        self.part = slice(rank * share, (rank + 1) * share)
        self.epoch, self.batch = 0, 0

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration yield the batches of `epoch` from number `batch` on."""
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.num_clips // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_clips)
        for batch in range(self.batch, len(self)):
            clips = order[batch * self.batch_size:(batch + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in clips[self.part]]
