"""Batches: every clip once an epoch, the same for any number of processes, from any batch on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.sampler import EpochBatchSampler
from utils.errors import UserError


def batches(num_clips=23, epoch=1, batch=0, **options):
    sampler = EpochBatchSampler(num_clips, **{"batch_size": 4, "seed": 5} | options)
    sampler.set_position(epoch, batch)
    return list(sampler)


def test_an_epoch_has_every_clip_at_most_once_and_leaves_out_the_incomplete_batch():
    epoch = batches()
    assert len(epoch) == len(EpochBatchSampler(23, batch_size=4, seed=5)) == 5
    indices = [index for batch in epoch for _, index in batch]
    assert len(set(indices)) == 20 and set(indices) <= set(range(23))
    assert {number for batch in epoch for number, _ in batch} == {1}


def test_seed_and_epoch_fix_the_order():
    assert batches() == batches()
    orders = [[clip for batch in batches(**change) for _, clip in batch] for change in ({}, {"epoch": 2}, {"seed": 6})]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_epochs_of_any_length_take_every_clip_before_one_comes_again():
    for num_clips, per_epoch in ((3, 8), (10, 4), (7, 7)):
        taken = [clip for epoch in range(1, 43) for batch in batches(num_clips, epoch, clips_per_epoch=per_epoch,
                                                                     batch_size=1) for clip in batch]
        assert len(taken) == 42 * per_epoch and len(set(taken)) == len(taken), "no sample comes twice"
        passes = [taken[i:i + num_clips] for i in range(0, len(taken), num_clips)]
        assert all({index for _, index in one} == set(range(num_clips)) for one in passes[:-1])
    assert batches(clips_per_epoch=23, epoch=3) == batches(epoch=3)
    assert len(batches(3, clips_per_epoch=9)) == 2


@given(st.integers(4, 60), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.integers(0, 1000),
       st.sampled_from([0, 25]))
def test_processes_share_each_batch_and_a_restart_goes_on(num_clips, world_size, share, start, seed, per_epoch):
    if num_clips < world_size * share:
        return
    options = {"num_clips": num_clips, "batch_size": world_size * share, "seed": seed, "clips_per_epoch": per_epoch}
    whole = batches(**options)
    parts = [batches(**options, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [[clip for part in together for clip in part] for together in zip(*parts)] == whole
    assert batches(**options, batch=start) == whole[start:]


@pytest.mark.parametrize("num_clips, options, words", [
    (3, {"batch_size": 4}, ["4", "3", "TRAIN.BATCH_SIZE", "TRAIN.CLIPS_PER_EPOCH 40"]),
    (30, {"batch_size": 4, "clips_per_epoch": 3}, ["4", "TRAIN.CLIPS_PER_EPOCH is 3"]),
    (30, {"batch_size": 4, "world_size": 3}, ["4", "3", "multiple"]),
])
def test_impossible_batches_are_refused(num_clips, options, words):
    with pytest.raises(UserError) as caught:
        EpochBatchSampler(num_clips, seed=0, **options)
    assert all(word in str(caught.value) for word in words)
