"""Which clips make up which batch: fixed by (seed, epoch), for any number of processes, from any batch on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError


class EpochBatchSampler(Sampler):
    """Yield this process's part of each batch of an epoch as a list of `(pass, index)`.

    The clips are gone through in passes from 1 on, each a permutation of all of them that is seeded by (seed, pass),
    and an epoch takes up where the one before it ended: as long as not all clips had their turn, none comes again. By
    default an epoch is a pass. An incomplete last batch is left out.

    Args:
        num_clips: how many there are.
        clips_per_epoch: of an epoch, any number; 0: `num_clips`.
        batch_size: of all `world_size` processes together, of which `rank` takes its slice. `UserError` where they
            cannot share it evenly or it needs more clips than an epoch has.
    """

    def __init__(self, num_clips: int, *, batch_size: int, seed: int, clips_per_epoch: int = 0, rank: int = 0,
                 world_size: int = 1):
        if batch_size % world_size:
            raise UserError(f"TRAIN.BATCH_SIZE is shared evenly by all processes: {batch_size} does not divide by "
                            f"{world_size}; choose a multiple of {world_size}")
        self.clips_per_epoch = clips_per_epoch or num_clips
        if self.clips_per_epoch < batch_size:
            have = f"TRAIN.CLIPS_PER_EPOCH is {clips_per_epoch}" if clips_per_epoch else f"the data has {num_clips}"
            raise UserError(f"a batch needs TRAIN.BATCH_SIZE = {batch_size} clips and {have}; lower TRAIN.BATCH_SIZE, "
                            f"add data, or take several clips of a video by TRAIN.CLIPS_PER_EPOCH {10 * batch_size}")
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        share = batch_size // world_size
        self.part = slice(rank * share, (rank + 1) * share)
        self.epoch, self.batch = 1, 0

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration yield the batches of `epoch` from number `batch` on."""
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.clips_per_epoch // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        begin, orders = (self.epoch - 1) * self.clips_per_epoch, {}
        for batch in range(self.batch, len(self)):
            clips = []
            for number in range(begin + batch * self.batch_size, begin + (batch + 1) * self.batch_size)[self.part]:
                earlier, place = divmod(number, self.num_clips)
                if earlier not in orders:
                    order = np.random.default_rng((self.seed, earlier + 1)).permutation(self.num_clips)
                    orders = {earlier: order}
                clips.append((earlier + 1, int(orders[earlier][place])))
            yield clips
