"""The neighbour search against the exhaustive reference, in every way it can go."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import models.neighbours as neighbours
from benchmarks.baselines.propagation import propagate_plainly
from models.frame_store import row_products
from models.neighbours import Memory, NeighbourPropagation, Slots
from tests.helpers import GOLDEN
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = {"bf16": torch.bfloat16, "fp32": torch.float32, "none": None}  # none: every candidate is compared


def smooth_features(generator: torch.Generator, frames: int, C: int, h: int, w: int, rank: int) -> torch.Tensor:
    """Features [N,C,h,w] near a space of `rank` dimensions, that change slowly over the frames and the map."""
    coarse = torch.randn(1, rank, max(frames // 2, 1), max(h // 3, 1), max(w // 3, 1), generator=generator)
    fine = F.interpolate(coarse, size=(frames, h, w), mode="trilinear")[0]  # [rank,N,h,w]
    mixed = torch.einsum("cr,rnhw->nchw", torch.randn(C, rank, generator=generator), fine)
    return F.normalize(mixed + 0.02 * torch.randn(mixed.shape, generator=generator), dim=1)


def run(engine: NeighbourPropagation, features: torch.Tensor, labels: torch.Tensor, recent: list[int],
        references: list[int] = [0]) -> torch.Tensor:  # noqa: B006
    """The last frame's labels from the frames `references` and `recent`."""
    memories = [Memory(engine.prepare(x), y) for x, y in zip(features[:-1], labels)]
    return engine(engine.prepare(features[-1]), [memories[i] for i in references], [memories[i] for i in recent]).labels


def similarities(features: torch.Tensor, references: list[int], recent: list[int], radius: float) -> torch.Tensor:
    """Of every position of the last frame with every one of the context, [h,w,N*hw]; -inf beyond the radius."""
    h, w = features.shape[2:]
    similarity = torch.einsum("chw,ncij->hwnij", features[-1], features[[*references, *recent]])
    y, x = torch.arange(h), torch.arange(w)
    far = (y[:, None, None, None] - y[:, None]) ** 2 + (x[:, None, None] - x) ** 2 >= radius**2
    similarity[:, :, len(references):].masked_fill_(far[:, :, None], -torch.inf)
    return similarity.flatten(2)


def gap_after(similarity: torch.Tensor, knn: int) -> torch.Tensor:
    """How far the k-th best similarity of every position exceeds the next one, [h,w]; inf where there is none."""
    best = similarity.topk(min(knn + 1, similarity.shape[2]), dim=2).values
    if best.shape[2] <= knn:
        return torch.full(similarity.shape[:2], torch.inf)
    return torch.where(best[:, :, knn] == -torch.inf, torch.inf, best[:, :, knn - 1] - best[:, :, knn])


def assert_as_plain(got: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, recent: list[int], *, knn: int,
                    radius: float, temperature: float = 0.05, references: list[int] = [0]) -> None:  # noqa: B006
    context = [*references, *recent]
    expected = propagate_plainly(features[-1], features[context], labels[context], knn=knn, radius=radius,
                                 temperature=temperature, references=len(references))
    decided = gap_after(similarities(features, references, recent, radius), knn) > 1e-6
    assert got.shape == expected.shape
    torch.testing.assert_close(got[:, decided], expected[:, decided], rtol=0, atol=1e-5)
    # A tie is decided either way, but always for labels that some candidate has.
    assert (got >= labels.amin((0, 2, 3))[:, None, None] - 1e-5).all()
    assert (got <= labels.amax((0, 2, 3))[:, None, None] + 1e-5).all()


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("bounds", BOUNDS)
def test_golden_cases(case, bounds, monkeypatch):
    monkeypatch.setattr(neighbours, "bound_dtype", lambda device: BOUNDS[bounds])
    golden = np.load(GOLDEN / "propagation_unit.npz")
    h, w, C, M, n, radius, knn = (int(x) for x in golden[f"case{case}/shape"])
    rng = np.random.default_rng(100 + case)
    features = rng.standard_normal((n + 1, C, h, w)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = torch.from_numpy(rng.random((n, M, h, w)).astype(np.float32))
    engine = NeighbourPropagation(knn=knn, radius=radius, temperature=0.05)
    got = run(engine, torch.from_numpy(features), labels, list(range(1, n)))
    torch.testing.assert_close(got, torch.from_numpy(golden[f"case{case}/pred"]), rtol=0, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_context_gives_the_plain_labels(data):
    draw = lambda strategy, name: data.draw(strategy, label=name)
    h, w = draw(st.integers(1, 24), "h"), draw(st.integers(1, 24), "w")
    C, frames = draw(st.sampled_from([1, 3, 16, 80, 200]), "C"), draw(st.integers(1, 5), "frames")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31), "seed"))
    features = smooth_features(generator, frames + 1, C, h, w, rank=draw(st.sampled_from([2, 8, 300]), "rank"))
    labels = torch.rand(frames, draw(st.sampled_from([1, 2, 7, 30]), "M"), h, w, generator=generator)
    recent = draw(st.lists(st.integers(0, frames - 1), max_size=12), "recent")
    references = draw(st.lists(st.integers(0, frames - 1), min_size=1, max_size=3, unique=True), "references")
    knn = draw(st.sampled_from([1, 2, 10, 40]), "knn")
    radius = draw(st.sampled_from([1, 1.5, 2, 4, 12, 100]), "radius")
    with pytest.MonkeyPatch.context() as patch:
        dtype = BOUNDS[draw(st.sampled_from(list(BOUNDS)), "bounds")]
        patch.setattr(neighbours, "bound_dtype", lambda device: dtype)
        # Few groups, so that queries reach the second try and the exhaustive search on small maps, too.
        patch.setitem(neighbours.TRY_GROUPS, "exact", draw(st.sampled_from([(1, 2), (2, 9), (32, 160)]), "groups"))
        patch.setattr(neighbours, "QUERIES", draw(st.sampled_from([5, 64, 1000]), "tile"))
        engine = NeighbourPropagation(knn=knn, radius=radius, temperature=0.05)
        got = run(engine, features, labels, recent, references)
    assert_as_plain(got, features, labels, recent, knn=knn, radius=radius, references=references)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), bounds=st.sampled_from(list(BOUNDS)), levels=st.integers(1, 3))
def test_ties_go_to_the_lower_candidate(seed, bounds, levels):
    """Few different features, so that almost everything ties; every product is exact in float32."""
    rng = np.random.default_rng(seed)
    h, w, frames, knn, radius = 4, 6, 3, 4, 3
    features = torch.eye(4)[torch.from_numpy(rng.integers(0, levels, (frames + 1, h, w)))].permute(0, 3, 1, 2)
    labels = torch.from_numpy(rng.random((frames, 2, h, w), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "bound_dtype", lambda device: BOUNDS[bounds])
        patch.setitem(neighbours.TRY_GROUPS, "exact", (1, 3))
        engine = NeighbourPropagation(knn=knn, radius=radius, temperature=0.05)
        got = run(engine, features, labels, [2, 1, 2])
    products = torch.einsum("cyx,nclk->yxnlk", features[-1], features[:-1]).tolist()
    for y in range(h):
        for x in range(w):
            candidates = []
            for frame, copies in ((0, 1), (2, 2), (1, 1)):  # the reference, then by first appearance
                for cx in range(w):  # the map is wide: line by line is column by column
                    for cy in range(h):
                        recent = len(candidates) >= h * w
                        if recent and (cy - y) ** 2 + (cx - x) ** 2 >= radius**2:
                            candidates += [(-np.inf, None)] * copies
                            continue
                        candidates += [(products[y][x][frame][cy][cx], labels[frame, :, cy, cx])] * copies
            best = sorted(candidates, key=lambda item: -item[0])[:knn]  # stable: of equals the first
            weights = torch.tensor([s for s, _ in best]).div(0.05).softmax(0)
            expected = sum(weight * label for weight, (_, label) in zip(weights, best))
            torch.testing.assert_close(got[:, y, x], expected, rtol=0, atol=1e-5)


def test_similarity_is_the_mean_over_the_neighbours_that_count():
    generator = torch.Generator().manual_seed(5)
    features = smooth_features(generator, 4, 16, 5, 7, rank=6)
    engine = NeighbourPropagation(knn=6, radius=2, temperature=0.05)
    memories = [Memory(engine.prepare(x), torch.rand(1, 5, 7, generator=generator)) for x in features[:-1]]
    for recent in ([1, 2, 2], []):
        got = engine(engine.prepare(features[-1]), memories[:1], [memories[i] for i in recent]).similarity
        expected = similarities(features, [0], recent, 2).topk(6, dim=2).values.mean(2)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    alone = NeighbourPropagation(knn=50, radius=1, temperature=0.05)  # fewer candidates than neighbours
    memory = Memory(alone.prepare(features[0]), memories[0].labels)
    torch.testing.assert_close(alone(alone.prepare(features[-1]), [memory], []).similarity,
                               similarities(features, [0], [], 1).mean(2), rtol=0, atol=1e-6)


def test_identical_frames_return_their_labels():
    features = F.normalize(torch.randn(1, 32, 6, 9, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(1))
    engine = NeighbourPropagation(knn=1, radius=2, temperature=0.05)
    torch.testing.assert_close(run(engine, features[[0, 0]], labels, [0]), labels[0])


def test_a_repeated_frame_counts_as_often_as_it_stands():
    """Three candidates, k = 3: twice the recent frame and once the reference, at one position."""
    features = torch.ones(3, 1, 1, 1)
    labels = torch.tensor([0.0, 1.0])[:, None, None, None]
    engine = NeighbourPropagation(knn=3, radius=1, temperature=0.05)
    torch.testing.assert_close(run(engine, features, labels, [1, 1]), torch.full((1, 1, 1), 2 / 3))


def test_labels_of_one_frame_may_differ_between_entries():
    """Two entries with the same features and other labels are two frames, not a repeat."""
    engine = NeighbourPropagation(knn=3, radius=1, temperature=0.05)
    prepared = engine.prepare(torch.ones(1, 1, 1))
    zero, one = (Memory(prepared, torch.full((1, 1, 1), value)) for value in (0.0, 1.0))
    torch.testing.assert_close(engine(prepared, [zero], [zero, one]).labels, torch.full((1, 1, 1), 1 / 3))


@pytest.mark.parametrize("bounds", ["bf16", "fp32"])
def test_bounds_prove_most_of_a_compressible_video(bounds, monkeypatch):
    """The cheap way is taken, also by threads of its own, and a basis that no longer fits is replaced."""
    monkeypatch.setattr(neighbours, "bound_dtype", lambda device: BOUNDS[bounds])
    monkeypatch.setattr(neighbours, "QUERIES", 50)
    compared = []
    search_all = NeighbourPropagation._search_all
    monkeypatch.setattr(NeighbourPropagation, "_search_all", lambda self, store, query, slots, queries: (
        compared.append(len(queries)), search_all(self, store, query, slots, queries))[1])
    torch.set_num_threads(2)
    try:
        engine = NeighbourPropagation(knn=5, radius=6, temperature=0.05)
        generator = torch.Generator().manual_seed(3)
        features = smooth_features(generator, 6, 64, 18, 24, rank=12)
        labels = torch.rand(5, 2, 18, 24, generator=generator)
        recent = [1, 2, 3, 4, 4]
        found = run(engine, features, labels, recent)
        assert_as_plain(found, features, labels, recent, knn=5, radius=6)
        assert sum(compared) < 0.05 * 18 * 24
        store = engine.prepare(features[0]).store
        basis = store.basis
        monkeypatch.setattr(neighbours, "STALE_SHARE", -1.0)
        monkeypatch.setattr(neighbours, "BASIS_LIFE", 0)
        monkeypatch.setitem(neighbours.TRY_GROUPS, "exact", (1, 160))
        torch.testing.assert_close(run(engine, features, labels, recent), found, rtol=0, atol=1e-5)
        assert not torch.equal(store.basis, basis)
    finally:
        torch.set_num_threads(1)


def test_fast_agrees_on_almost_every_pixel():
    generator = torch.Generator().manual_seed(5)
    features = smooth_features(generator, 9, 64, 30, 40, rank=20)
    masks = (smooth_features(generator, 8, 1, 30, 40, rank=3) > 0).float()
    labels = torch.cat([masks, 1 - masks], 1)
    exact, fast = (run(NeighbourPropagation(knn=10, radius=8, temperature=0.05, method=method), features, labels,
                       list(range(1, 8))).argmax(0) for method in ("exact", "fast"))
    assert (exact == fast).float().mean() >= 0.999


def test_memory_of_frames_that_are_gone_is_used_again():
    engine = NeighbourPropagation(knn=2, radius=3, temperature=0.05)
    features = F.normalize(torch.randn(16, 4, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    kept = engine.prepare(features)
    for _ in range(100):
        engine.prepare(features)
    gc.collect()
    assert len(kept.store.features) == 24
    many = [engine.prepare(features) for _ in range(60)]  # more than there are slots: the tables grow
    assert len({kept.slot, *(prepared.slot for prepared in many)}) == 61
    labels = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(engine(many[-1], [Memory(kept, labels)], []).labels,
                               run(NeighbourPropagation(knn=2, radius=3, temperature=0.05),
                                   torch.stack([features] * 2), labels[None], []))


def test_max_memory_makes_smaller_tiles_of_the_same_result(monkeypatch):
    monkeypatch.setattr(neighbours, "LIBRARY_BYTES", 0)  # more than a frame this small takes
    monkeypatch.setattr(neighbours, "bound_dtype", lambda device: torch.bfloat16)  # the limits below are for its rows
    generator = torch.Generator().manual_seed(2)
    features = smooth_features(generator, 4, 32, 20, 30, rank=10)
    labels = torch.rand(3, 2, 20, 30, generator=generator)
    options = dict(knn=10, radius=8, temperature=0.05)
    expected = run(NeighbourPropagation(**options), features, labels, [1, 2])
    with pytest.raises(UserError, match=r"--max-memory must hold .* it is 0 MB; raise it"):
        run(NeighbourPropagation(**options, max_memory=1000), features, labels, [1, 2])
    sizes = []
    for limit in (1_000_000, 2_000_000, 100_000_000):
        engine = NeighbourPropagation(**options, max_memory=limit)
        torch.testing.assert_close(run(engine, features, labels, [1, 2]), expected, rtol=0, atol=1e-5)
        memories = [Memory(engine.prepare(x), y) for x, y in zip(features, labels)]
        sizes.append(engine._tile(memories[0].features.store, memories, threads=1))
    assert sizes[0] < sizes[1] < sizes[2] == neighbours.QUERIES


def test_videos_of_two_sizes_take_turns():
    """Each size keeps its own frames; a size that no frame is left of takes no memory."""
    engine = NeighbourPropagation(knn=1, radius=2, temperature=0.05)
    sides, memories, labels = (3, 4), {}, {}
    for _ in range(2):
        for side in sides:
            features = F.normalize(torch.randn(8, side, side, generator=torch.Generator().manual_seed(side)), dim=0)
            prepared = engine.prepare(features)
            if side in memories:
                torch.testing.assert_close(engine(prepared, [memories[side]], [memories[side]]).labels, labels[side])
            labels[side] = torch.rand(2, side, side, generator=torch.Generator().manual_seed(side))
            memories[side] = Memory(prepared, labels[side])
    stores = {side: weakref.ref(memory.features.store) for side, memory in memories.items()}
    del prepared, memories[3]
    gc.collect()
    assert stores[3]() is None and stores[4]() is not None


def test_misuse_is_refused():
    with pytest.raises(UserError, match="exact, fast; got slow"):
        NeighbourPropagation(knn=1, radius=1, temperature=1, method="slow")
    engine = NeighbourPropagation(knn=1, radius=1, temperature=1)
    small, large = (engine.prepare(torch.ones(1, side, side)) for side in (1, 2))
    with pytest.raises(ValueError, match="one shape"):
        engine(large, [Memory(small, torch.ones(1, 1, 1))], [])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_finds_what_tiles_find():
    """In Triton's interpreter, which has to be chosen before anything imports Triton: in a process of its own."""
    done = subprocess.run([sys.executable, "-c", "import tests.test_neighbours as t; t.compare_kernel_with_tiles()"],
                          cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compared") == 10


def compare_kernel_with_tiles() -> None:
    from models.neighbours_triton import search_fused

    cases = [(16, 9, 12, 3, 5, 3, 1), (40, 12, 5, 2, 10, 1, 2), (8, 1, 1, 2, 10, 4, 1), (20, 7, 12, 2, 10, 50, 1),
             (8, 25, 9, 3, 4, 5.5, 2)]
    for (C, h, w, frames, knn, radius, whole), fast in itertools.product(cases, [False, True]):
        generator = torch.Generator().manual_seed(h)
        engine = NeighbourPropagation(knn=knn, radius=radius, temperature=0.05)
        # Features that change slowly, as those of frames do, leave most patches out, but many similarities are alike.
        smooth = h > 20
        features = smooth_features(generator, frames + 1, C, h, w, rank=6) if smooth else \
            F.normalize(torch.randn(frames + 1, C, h, w, generator=generator), dim=1)
        prepared = [engine.prepare(x) for x in features]
        store, query, slots = prepared[-1].store, prepared[-1].slot, [x.slot for x in prepared[:-1]]
        with torch.inference_mode():
            similarity, candidate = search_fused(store, query, slots[:whole], slots[whole:], knn, radius, fast=fast)
            expected = engine._search_all(store, query, Slots(slots[:whole], slots[whole:]), torch.arange(h * w))
        torch.testing.assert_close(similarity, expected.similarity, rtol=0, atol=1e-3 if fast else 1e-6)
        found = torch.isfinite(similarity)
        numbers = torch.where(found, candidate, -1 - torch.arange(knn)).sort(1).values
        assert (numbers.diff(dim=1) > 0).all()  # nobody twice
        theirs = (store.features[query, :, None] * store.features[slots].flatten(0, 1)[candidate]).sum(2)
        torch.testing.assert_close(theirs[found], similarity[found], rtol=0, atol=1e-3 if fast else 1e-6)
        if not fast and not smooth:
            assert torch.equal(candidate[found], expected.candidate[found])
        print("compared")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("triton", [True, False])
def test_on_a_gpu(triton, monkeypatch):
    if not triton:
        monkeypatch.setattr(neighbours, "kernels_start", lambda: False)
    generator = torch.Generator().manual_seed(4)
    features = smooth_features(generator, 5, 256, 30, 40, rank=20)
    labels = torch.rand(4, 3, 30, 40, generator=generator)
    engine = NeighbourPropagation(knn=10, radius=8, temperature=0.05)
    got = run(engine, features.cuda(), labels.cuda(), [1, 2, 3, 3])
    assert_as_plain(got.cpu(), features, labels, [1, 2, 3, 3], knn=10, radius=8)


def test_the_precision_around_a_search_does_not_reach_it():
    generator = torch.Generator().manual_seed(6)
    features = smooth_features(generator, 4, 32, 9, 12, rank=8)
    labels = torch.rand(3, 2, 9, 12, generator=generator)
    options = dict(knn=5, radius=4, temperature=0.05)
    expected = run(NeighbourPropagation(**options), features, labels, [1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(NeighbourPropagation(**options), features, labels, [1, 2]), expected)


def test_more_rows_than_a_table_has_are_products_all_the_same():
    queries, table, rows = torch.randn(1, 4), torch.randn(10, 4), torch.tensor([[1, 0, 0, 2, -1] * 6])
    torch.testing.assert_close(row_products(queries, table, rows), (queries @ table.t())[0][rows])
