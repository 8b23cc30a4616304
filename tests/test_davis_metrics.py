"""J and F against the published definition, computed the slow and obvious way, and against golden numbers."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.davis_metrics import (
    best_matching,
    boundary_map,
    evaluate_sequence,
    frame_scores,
    object_births,
    score_proposals,
    statistics,
    tolerance,
)

GOLDEN = np.load(Path(__file__).parent / "golden/davis_metrics_unit.npz")


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    """Positions [n,2] of the pixels that differ from their right, lower or lower right neighbour inside the frame."""
    differs = np.zeros_like(mask)
    differs[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    differs[:-1] |= mask[:-1] != mask[1:]
    differs[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return np.argwhere(differs)


def slow_scores(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """J and F of two bool masks by counting pixels and measuring all distances between boundary pixels."""
    both, either = int((truth & prediction).sum()), int((truth | prediction).sum())
    J = both / either if either else 1.0
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    a, b = slow_boundary(truth), slow_boundary(prediction)
    if not len(a) and not len(b):
        return J, 1.0
    if not len(a) or not len(b):  # one of precision and recall is 0, the other 1
        return J, 0.0
    close = ((a[:, None] - b[None]) ** 2).sum(axis=-1) <= radius**2
    recall, precision = close.any(axis=1).mean(), close.any(axis=0).mean()
    return J, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def slow_statistics(values: list[float]) -> tuple[float, float, float]:
    n = len(values)
    edges = [int(np.round(1 + (n - 1) * i / 4 + 1e-10)) for i in range(5)]  # 1-based and inclusive on both sides
    first, last = values[edges[0] - 1:edges[1]], values[edges[3] - 1:edges[4]]
    return sum(values) / n, sum(v > 0.5 for v in values) / n, sum(first) / len(first) - sum(last) / len(last)


@st.composite
def masks(draw) -> np.ndarray:
    """Two index masks: empty, full, one pixel, noise, or rectangles that may touch the border; radius 1 to 8."""
    H, W = draw(st.integers(1, 40)), draw(st.integers(1, 40) | st.integers(130, 999))
    pair = []
    for _ in range(2):
        mask = np.zeros((H, W), np.uint8)
        kind = draw(st.sampled_from(["empty", "full", "pixel", "noise", "rectangles", "rectangles", "rectangles"]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        if kind == "full":
            mask[:] = 1
        elif kind == "pixel":
            mask[rng.integers(H), rng.integers(W)] = 1
        elif kind == "noise":
            mask[:, -40:] = rng.integers(0, 6, mask[:, -40:].shape)
        elif kind == "rectangles":
            for k in rng.integers(1, 10, 6):
                y, x = rng.integers(-5, H), rng.integers(-5, 40)
                mask[max(0, y):max(0, y + rng.integers(1, 20)), max(0, x):max(0, x + rng.integers(1, 20))] = k
        pair.append(mask)
    return np.stack(pair)


@settings(max_examples=300, deadline=None)
@given(masks())
def test_any_masks_agree_with_the_definition(pair):
    truth, prediction = pair
    ids = list(range(1, 10))
    expected = [slow_scores(truth == k, prediction == k) for k in ids]
    np.testing.assert_allclose(frame_scores(truth, prediction, ids), expected, rtol=0, atol=1e-9)


def test_tolerance_reaches_exactly_to_its_radius():
    truth = np.zeros((300, 400), np.uint8)  # the radius is 4; one pixel has a boundary of 2x2
    truth[100, 100] = 1
    for shift, F in ((0, 1), (4, 1), (5, 0.5), (6, 0)):
        assert frame_scores(truth, np.roll(truth, shift, axis=1), [1])[0, 1] == F


@pytest.mark.parametrize("corner", [(0, 0), (3, 499), (0, 499), (2, 40)])
def test_the_disk_is_round_in_every_direction(corner):
    truth = np.zeros((16, 500), np.uint8)  # radius 5
    truth[corner] = 1
    for dy, dx in itertools.product(range(-7, 8), repeat=2):
        prediction = np.zeros_like(truth)
        prediction[np.clip(corner[0] + dy, 0, 15), np.clip(corner[1] + dx, 0, 499)] = 1
        assert frame_scores(truth, prediction, [1])[0, 1] == pytest.approx(slow_scores(truth == 1, prediction == 1)[1])


def test_boundary_by_hand():
    mask = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)
    assert boundary_map(mask).tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]]
    assert slow_boundary(mask).tolist() == np.argwhere(boundary_map(mask)).tolist()


def test_tolerance_is_rounded_up():
    assert [tolerance(s) for s in ((480, 854), (300, 400), (1080, 1920), (1, 1))] == [8, 4, 18, 1]


@pytest.mark.parametrize("truth, prediction, J, F", [(0, 0, 1, 1), (1, 1, 1, 1), (1, 0, 0, 1), (0, 1, 0, 1)])
def test_full_and_empty_frames_have_no_boundary(truth, prediction, J, F):
    scores = frame_scores(np.full((6, 9), truth, np.uint8), np.full((6, 9), prediction, np.uint8), [1])
    assert scores.tolist() == [[J, F]]


def test_golden_values_of_the_official_package():
    truth, prediction = GOLDEN["gt"].astype(np.uint8), GOLDEN["pred"].astype(np.uint8)
    scores = np.stack([frame_scores(g, p, [1])[0] for g, p in zip(truth, prediction)])
    slow = [slow_scores(g == 1, p == 1) for g, p in zip(truth, prediction)]
    for values in (scores, np.array(slow)):
        np.testing.assert_allclose(values[:, 0], GOLDEN["J"], atol=1e-9)
        np.testing.assert_allclose(values[:, 1], GOLDEN["F"], atol=1e-9)
    np.testing.assert_allclose(statistics(scores[:, 0]), GOLDEN["J_stats"], atol=1e-9)
    np.testing.assert_allclose(statistics(scores[:, 1]), GOLDEN["F_stats"], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=700))
def test_statistics_agree_with_the_definition(values):
    np.testing.assert_allclose(statistics(np.array(values)), slow_statistics(values), rtol=0, atol=1e-9)


def test_statistics_of_a_long_sequence_and_of_frames_not_scored():
    ramp = np.linspace(1, 0, 1001)
    assert statistics(ramp).decay == pytest.approx(0.75, abs=1e-9)  # edges in uint8 would give another value
    padded = np.concatenate([[np.nan], ramp, [np.nan] * 5])
    assert statistics(padded) == statistics(ramp)
    assert all(math.isnan(v) for v in statistics(np.full(3, np.nan)))


def moving_square(frames: int, start: int, k: int = 1, first: int = 0) -> list[np.ndarray]:
    masks = [np.zeros((40, 60), np.uint8) for _ in range(frames)]
    for t in range(first, frames):
        masks[t][10:20, start + t:start + t + 10] = k
    return masks


def test_a_sequence_leaves_out_its_first_and_last_frame():
    truth = moving_square(5, 3)
    scores = evaluate_sequence(truth, [truth[0]] * 5)
    assert scores.ids == [1]
    np.testing.assert_allclose(scores.J, [[np.nan, 9 / 11, 8 / 12, 7 / 13, np.nan]])
    everything = evaluate_sequence(truth, [truth[0]] * 5, include_first_last=True)
    np.testing.assert_allclose(everything.J, [[1, 9 / 11, 8 / 12, 7 / 13, 6 / 14]])


def test_a_late_object_counts_from_the_frame_after_its_first():
    truth = [np.maximum(a, b) for a, b in zip(moving_square(6, 3), moving_square(6, 30, k=7, first=2))]
    scores = evaluate_sequence(truth, truth)
    assert scores.ids == [1, 7]
    assert np.isnan(scores.J).tolist() == [[True, False, False, False, False, True],
                                           [True, True, True, False, False, True]]
    assert np.nanmin(scores.J) == np.nanmin(scores.F) == 1


def test_void_is_background_unless_it_is_the_only_label():
    only_255 = [mask * 255 for mask in moving_square(4, 3)]
    assert object_births(only_255) == {255: 0}
    with_void = [mask.copy() for mask in moving_square(4, 3)]
    for mask in with_void:
        mask[30:] = 255
    assert object_births(with_void) == {1: 0}
    predicted = [np.where(mask == 255, 1, mask) for mask in with_void]  # 100 of 700 pixels are right
    assert np.nanmax(evaluate_sequence(with_void, predicted).J) == pytest.approx(100 / 700)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2), st.integers(0, 2**32 - 1), st.booleans())
def test_matching_is_the_best_of_all(rows, more, seed, ties):
    rng = np.random.default_rng(seed)
    gain = rng.integers(0, 4, (rows, rows + more)) / 3 if ties else rng.random((rows, rows + more))
    match = best_matching(gain)
    assert len(set(match.tolist())) == rows
    best = max(sum(gain[i, j] for i, j in enumerate(columns))
               for columns in itertools.permutations(range(rows + more), rows))
    assert gain[np.arange(rows), match].sum() == pytest.approx(best)


def test_proposals_are_matched_over_the_whole_sequence_and_void_is_not_judged():
    truth = [np.maximum(a, b) for a, b in zip(moving_square(4, 3), moving_square(4, 30, k=2))]
    proposals = [np.select([m == 1, m == 2], [5, 3], 0).astype(np.uint8) for m in truth]
    for mask, proposal in zip(truth, proposals):
        mask[30:] = 255
        proposal[32:] = 3
    scores = score_proposals(zip(truth, proposals), [1, 2])
    assert (scores.ids, scores.proposals) == ([2, 1], [3, 5])
    assert scores.J.tolist() == scores.F.tolist() == [[1] * 4] * 2
    alone = score_proposals([(t, p * (p == 5)) for t, p in zip(truth, proposals)], [1, 2])
    assert alone.J[alone.ids.index(1)].tolist() == [1] * 4
    assert alone.J[alone.ids.index(2)].tolist() == [0] * 4
