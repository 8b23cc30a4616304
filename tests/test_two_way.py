"""Both directions of time, and how far a mask may be trusted."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from inference.confidence import FOUND_ABOVE, LOST_BELOW, Confidence, LostWatch, confidence_map, confidences
from inference.two_way import PredictionSpool, blend
from models.propagation import Prediction


def prediction(ids: tuple[int, ...], labels: list, similarity: float = 0.5) -> Prediction:
    """One row of cells: `labels` [M][w]."""
    maps = torch.tensor(labels)[:, None]
    return Prediction(ids, maps, torch.full_like(maps, similarity))


def test_what_is_put_is_got_back_to_half_precision(tmp_path):
    spool = PredictionSpool(tmp_path)
    kept = {7: prediction((0, 3), [[0.25, 1], [0.75, 0]]), 6: prediction((0, 3, 9), [[0.1, 1], [0.9, 0], [0, 0]], 0.9)}
    for frame, one in kept.items():
        spool.put(frame, one)
    assert list(tmp_path.iterdir()) == [], "the file has no name that could be left behind"
    for frame, one in reversed(kept.items()):
        got = spool.get(frame)
        assert got.ids == one.ids and got.labels.dtype == torch.float32
        torch.testing.assert_close(got.labels, one.labels, rtol=1e-3, atol=0)
        torch.testing.assert_close(got.similarity, one.similarity, rtol=1e-3, atol=0)
    with pytest.raises(KeyError):
        spool.get(5)


def test_memory_does_not_grow_with_what_is_kept(tmp_path):
    spool, one = PredictionSpool(tmp_path), Prediction((0, 1), torch.rand(2, 60, 108), torch.rand(2, 60, 108))
    spool.put(0, one)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for frame in range(1, 1000):
        spool.put(frame, one)
    assert os.fstat(spool._file.fileno()).st_size == 1000 * 2 * 2 * 2 * 60 * 108
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes, of 52000 on disk"


def test_a_blend_weighs_by_its_share_and_knows_the_objects_of_both():
    forward = prediction((0, 1), [[1.0, 0.0], [0.0, 1.0]], 1.0)
    backward = prediction((0, 2, 1), [[0.0, 0], [1, 1], [0, 0]])
    both = blend(forward, backward, 0.25)
    assert both.ids == (0, 1, 2)
    assert both.labels[:, 0].tolist() == [[0.75, 0], [0, 0.75], [0.25, 0.25]]
    assert both.similarity[:, 0, 0].tolist() == [0.875, 0.875, 0.125]
    assert torch.equal(blend(forward, backward, 0).labels[:2], forward.labels)


def test_confidence_is_the_mean_over_the_cells_that_are_the_objects():
    labels = [[0.1, 0.2, 0.9, 0.3], [0.9, 0.7, 0.1, 0.3], [0, 0.1, 0, 0.4]]  # object 5 has two cells, object 6 one
    one = prediction((0, 5, 6), labels, 0.8)
    rows = confidences(one)
    assert [row[:2] for row in rows] == [(5, 2), (6, 1)]
    assert rows[0][2:] == pytest.approx((0.8, (0.8 + 0.5) / 2)) and rows[1][2:] == pytest.approx((0.8, 0.1))
    torch.testing.assert_close(confidence_map(one), 0.8 * torch.tensor([[0.8, 0.5, 0.8, 0.1]]))


def test_an_object_without_a_cell_has_no_confidence():
    assert confidences(prediction((0, 4), [[1.0], [0.0]])) == [Confidence(4, 0, 0, 0)]


def test_the_flag_stays_until_the_object_is_found_again():
    watch, between = LostWatch(), (LOST_BELOW + FOUND_ABOVE) / 2
    trusts = [0.9, between, LOST_BELOW - 0.01, between, FOUND_ABOVE + 0.01, between]
    lost = [watch([Confidence(1, 5, 1.0, trust), Confidence(2, 9, 1.0, 1.0)]) for trust in trusts]
    assert lost == [set(), set(), {1}, {1}, set(), set()]
