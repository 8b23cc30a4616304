"""Both directions of time, and how far a mask may be trusted."""

from __future__ import annotations

import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.video import OwnVideo
from inference.confidence import FOUND_ABOVE, LOST_BELOW, Confidence, LostWatch, confidence_map, confidences
from inference.pipeline import Job, Pass, merged
from inference.two_way import PredictionStore, blend
from models.propagation import Prediction
from utils.errors import UserError


def prediction(ids: tuple[int, ...], labels: list, similarity: float = 0.5) -> Prediction:
    """One row of cells: `labels` [M][w]."""
    maps = torch.tensor(labels)[:, None]
    return Prediction(ids, maps, torch.full_like(maps, similarity))


def test_what_is_put_is_got_back_to_the_last_bit(tmp_path):
    store, mask = PredictionStore(tmp_path), np.ones((2, 2), np.uint8)
    kept = {7: prediction((0, 3), [[0.1, 1], [0.9, 0]]), 6: prediction((0, 3, 9), [[0.1, 1], [0.9, 0], [0, 0]], 0.9)}
    store.put(7, kept[7], 4)
    store.put(6, kept[6]._replace(given=mask, named=(9,)), 5)
    for frame, one in kept.items():
        got = store.get(frame, given=mask)
        assert got.ids == one.ids
        assert torch.equal(got.labels, one.labels) and torch.equal(got.similarity, one.similarity)
    assert (store.get(6, given=mask).named, store.get(6, given=mask).given is mask) == ((9,), True)
    assert (store.get(7, given=mask).named, store.get(7, given=mask).given) == ((), None)
    assert (store.basis(7), store.basis(6)) == (4, 5)
    with pytest.raises(UserError, match=r"5\.npz is needed to go on"):
        store.get(5)


ONE, OTHER = np.ones((4, 4), np.uint8), np.full((4, 4), 2, np.uint8)


@pytest.mark.parametrize(("order", "before", "now", "known"), [
    (range(8), {0: ONE}, {0: ONE}, 8), (range(8), {0: ONE}, {0: OTHER}, 0), (range(8), {0: ONE}, {0: ONE, 5: ONE}, 5),
    (range(8), {0: ONE, 5: ONE}, {0: ONE, 5: OTHER}, 5), (range(8), {0: ONE, 5: ONE}, {0: ONE}, 5),
    (range(2, 8), {2: ONE}, {2: ONE, 6: ONE}, 4), (range(2, 8), {1: ONE, 2: ONE}, {2: ONE}, 0),
    (range(6, -1, -1), {6: ONE}, {6: ONE}, 7), (range(6, -1, -1), {6: ONE}, {4: ONE, 6: ONE}, 2),
    (range(6, -1, -1), {6: ONE, 7: ONE}, {6: ONE}, 0), (range(7, -1, -1), {6: ONE}, {6: ONE, 7: ONE}, 0)])
def test_what_is_known_are_the_frames_before_the_first_changed_mask(tmp_path, order, before, now, known):
    store, one = PredictionStore(tmp_path), prediction((0, 1), [[0.5], [0.5]])
    assert store.known(order, before) == 0
    for number in order:
        store.put(number, one, 0)
    assert store.known(order, now) == known
    assert store.known(order, before) <= known, "it is forgotten, not put aside"


def test_a_damaged_prediction_ends_what_is_known(tmp_path):
    store, one = PredictionStore(tmp_path), prediction((0, 1), [[0.5], [0.5]])
    store.known(range(5), {0: ONE})
    for number in range(5):
        store.put(number, one, 0)
    file = tmp_path / "3.npz"
    file.write_bytes(file.read_bytes()[:-40])
    assert store.known(range(5), {0: ONE}) == 3
    (tmp_path / "1.npz").write_bytes(b"")
    assert store.known(range(5), {0: ONE}) == 1


class BlackVideo(OwnVideo):
    def __init__(self):
        self.names = list("abcd")

    def frames(self, start=0, stop=None):
        return iter([np.zeros((4, 4, 3), np.uint8)] * len(self.names[start:stop]))

    def reversed_frames(self, start):
        return self.frames(0, start + 1)


def test_kept_predictions_come_to_the_device_of_the_propagator(tmp_path, monkeypatch):
    job, one = Job(BlackVideo(), {1: ONE, 3: ONE}, backward=True), prediction((0, 1), [[0.5], [0.5]])
    for name, order in (("forward", range(1, 4)), ("backward", range(3, -1, -1))):
        store = PredictionStore(tmp_path / name)
        store.known(order, job.masks)
        for number in order:
            store.put(number, one, 0)
    forward, backward = (Pass(job, backward=back, folder=tmp_path) for back in (False, True))
    devices, get = [], PredictionStore.get
    monkeypatch.setattr(PredictionStore, "get", lambda store, number, device, given: (
        devices.append(device), get(store, number, "cpu", given))[1])
    results = merged(job, forward, backward, SimpleNamespace(device=torch.device("cuda")))
    assert [result.number for result in results] == [0, 1, 2, 3]
    assert devices == 5 * [torch.device("cuda")], "three of the one way, two of the other"


def test_memory_does_not_grow_with_what_is_kept(tmp_path):
    store, maps = PredictionStore(tmp_path), []
    tracemalloc.start()  # of arrays and bytes; what becomes of tensors the references tell
    for frame in range(10):
        one = Prediction((0, 1), torch.rand(2, 60, 108), torch.rand(2, 60, 108))
        maps += [weakref.ref(one.labels), weakref.ref(one.similarity)]
        store.put(frame, one, 0)
        del one
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000, "of a million bytes on disk"
    assert not any(tensor() is not None for tensor in maps)


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


def test_confidence_is_told_of_cells_where_labels_are_of_their_parts():
    labels = torch.tensor([[[0.9, 0.2], [0.4, 0.6]], [[0.1, 0.8], [0.6, 0.4]]])
    detail = torch.tensor([[0.1, -0.1], [-0.1, 0.1]]).repeat(2, 2)
    parts = labels.repeat_interleave(2, 1).repeat_interleave(2, 2) + torch.stack([detail, -detail])
    similarity = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0))
    of_cells, of_parts = (confidences(Prediction((0, 4), maps, similarity)) for maps in (labels, parts))
    for one, other in zip(of_cells, of_parts, strict=True):
        assert one == pytest.approx(other)


def test_an_object_without_a_cell_has_no_confidence():
    assert confidences(prediction((0, 4), [[1.0], [0.0]])) == [Confidence(4, 0, 0, 0)]


def test_the_flag_stays_until_the_object_is_found_again():
    watch, between = LostWatch(), (LOST_BELOW + FOUND_ABOVE) / 2
    trusts = [0.9, between, LOST_BELOW - 0.01, between, FOUND_ABOVE + 0.01, between]
    lost = [watch([Confidence(1, 5, 1.0, trust), Confidence(2, 9, 1.0, 1.0)]) for trust in trusts]
    assert lost == [set(), set(), {1}, {1}, set(), set()]
