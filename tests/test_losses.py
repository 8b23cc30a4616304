"""The three terms against golden values, hand-computed cases, and every switch's effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.baselines import losses as plain_losses
from losses import build_objective
from losses.color import color_loss, rebuild_colors
from losses.common import ohem_mean, smooth_l1
from losses.consistency import consistency_loss
from losses.dense import dense_loss, draw_grid_cells, grid_cells
from models.colornet import ColorNet
from tests.helpers import golden_json, golden_model
from utils.config import load_settings, load_train_config, parse_train_config, resolved
from utils.errors import UserError

CLIPS, FRAMES = 2, 3


@pytest.fixture(scope="module")
def golden_batch():
    rng = np.random.default_rng(7)
    normal = lambda *shape: torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    frames = (CLIPS, FRAMES, 3, 256, 256)
    view_a, view_b = normal(*frames), normal(*frames)
    target = torch.from_numpy(rng.random(frames).astype(np.float32))
    edge = torch.from_numpy((1 + 4 * (rng.random((CLIPS, FRAMES, 1, 256, 256)) < 0.2)).astype(np.float32))
    theta = torch.tensor([[0.8, 0, 0.1], [0, 0.8, -0.05]]).repeat(CLIPS * FRAMES, 1, 1)
    theta[1::2, 0, 0] *= -1
    grid = F.affine_grid(theta, (CLIPS * FRAMES, 128, 32, 32), align_corners=False) + 0.05 * normal(6, 32, 32, 2)
    zoom = torch.tensor([[0.7, 0, 0.2], [0, 0.7, 0.1]]).repeat(CLIPS, 1, 1)
    zoom[1, 0, 0] *= -1
    return {"color": {"view_a": view_a, "view_b": view_b, "target": target, "edge": edge,
                      "grid": grid.unflatten(0, (CLIPS, FRAMES))},
            "dense": {"view_1": normal(*frames), "view_2": normal(*frames), "theta": zoom}}


def config(**changes):
    published = resolved(load_train_config())
    return parse_train_config(published | {"model_size": "S", "video_len": FRAMES} | changes, "test")


def golden_cells(clips, width, size, generator):
    i, spacing = torch.arange(clips), width // size
    return grid_cells(torch.stack([(3 * i + 1) % spacing, (5 * i + 2) % spacing], dim=1), width, size)


@pytest.mark.slow
@pytest.mark.parametrize("name, changes", [("dul_neg", {}), ("dul_noneg", {"is_neg": False}),
                                           ("color_neg_ohem", {"is_dul": False, "ohem_range": [0.2, 0.8]})])
def test_losses_and_gradients_equal_golden(golden_batch, monkeypatch, name, changes):
    monkeypatch.setattr("losses.objective.draw_grid_cells", golden_cells)
    golden, train_config = golden_json("losses.json")[name], config(**changes)
    model = golden_model(has_global=train_config.is_dul).train()
    losses = build_objective(train_config, load_settings())(model, golden_batch, torch.Generator())
    losses.total.backward()
    for term, key in (("total", "total"), ("color", "loss_color"), ("consistency", "loss_ce"), ("dense", "loss_dul")):
        assert float(getattr(losses, term).detach()) == pytest.approx(golden[key], rel=1e-4), term
    parameters = dict(model.named_parameters())
    for parameter, norm in golden["grad_norm"].items():
        # The stem's gradients are small differences of large sums: in float32 they vary by 2e-3 between processors, and
        # golden ones are up to 1.2e-3 from those in float64. The next test has all gradients exactly.
        within = 3e-3 if parameter in ("conv1.weight", "bn1.weight") else 1e-4
        assert float(parameters[parameter].grad.norm()) == pytest.approx(norm, rel=within), parameter


@pytest.mark.slow
def test_losses_and_gradients_equal_the_plain_transcription(monkeypatch):
    """Every parameter's gradient, on views of 64x64 in float64; only the cross-entropies are computed in float32."""
    model = golden_model().train().double()
    generator = torch.Generator().manual_seed(0)
    views = lambda: torch.randn(2, FRAMES, 3, 64, 64, generator=generator).double()
    theta = torch.tensor([[[0.7, 0, 0.2], [0, 0.7, 0.1]], [[-0.7, 0, 0.2], [0, 0.7, 0.1]]]).double()
    grid = F.affine_grid(theta, (2, 1, 8, 8), align_corners=False)[:, None].expand(-1, FRAMES, -1, -1, -1)
    batch = {"color": {"view_a": views(), "view_b": views(), "target": views().sigmoid(), "grid": grid,
                       "edge": 1 + 4 * (views()[:, :, :1] > 1).double()},
             "dense": {"view_1": views(), "view_2": views(), "theta": theta}}
    monkeypatch.setattr(plain_losses, "grid_features", lambda features, size, _: pick_golden_cells(features, size))
    monkeypatch.setattr("losses.objective.draw_grid_cells", golden_cells)
    results = []
    for total in (lambda: plain_losses.plain_total(model, batch, torch.Generator()),
                  lambda: build_objective(config(), load_settings())(model, batch, torch.Generator()).total):
        model.zero_grad()
        loss = total()
        loss.backward()
        results.append((loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (plain, plain_gradients), (ours, gradients) = results
    assert ours == pytest.approx(plain, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-5, atol=1e-8,
                                   msg=name)


def pick_golden_cells(features, size):
    """[B,C,h,w] at the cells of `golden_cells`: [B*size^2,C]."""
    cells = golden_cells(len(features), features.shape[-1], size, None)
    return torch.cat([clip.flatten(1)[:, chosen].t() for clip, chosen in zip(features, cells)])


def test_smooth_l1_is_quadratic_below_one_half():
    assert smooth_l1(torch.tensor([0.2, 2.0]), torch.zeros(2)).tolist() == pytest.approx([0.04, 1.75])


@pytest.mark.parametrize("ohem_range, expected", [((0, 1), 2.5), ((0.5, 1), 3.5), ((0.25, 0.75), 2.5), ((0, 0.5), 1.5),
                                                  ((0.99, 1), 4.0)])
def test_ohem_mean_takes_the_sorted_slice(ohem_range, expected):
    assert float(ohem_mean(torch.tensor([3.0, 1.0, 4.0, 2.0]), ohem_range)) == expected


def plain_rebuild(features, target, temperature, negatives):
    """The sum of DESIGN section 6 by loops: [B,T,T,hw,P] with [b,i,j] the patches of frame j from frame i."""
    B, T = features.shape[:2]
    cells = lambda x, n: F.unfold(x, n, stride=n).transpose(1, 2)
    q = features.flatten(3).transpose(2, 3)
    patches = torch.stack([cells(clip, 8) for clip in target])
    out = torch.zeros(B, T, T, *patches.shape[2:])
    for b in range(B):
        for i in range(T):
            for j in range(T):
                clips = [b, B - 1 - b] if negatives else [b]
                keys = torch.cat([q[c, i] for c in clips])
                out[b, i, j] = (temperature * q[b, j] @ keys.t()).softmax(1) @ torch.cat([patches[c, i] for c in clips])
    return out


@pytest.mark.parametrize("negatives", [True, False])
def test_rebuilding_is_the_sum_over_sources(negatives):
    torch.manual_seed(0)
    features = F.normalize(torch.randn(3, 3, 16, 4, 4), dim=2)
    target = torch.rand(3, 3, 3, 32, 32)
    plain = plain_rebuild(features, target, 7.0, negatives)
    expected = torch.stack([torch.cat([plain[:, i, j] for j in range(3) if j != i], dim=1) for i in range(3)], dim=1)
    torch.testing.assert_close(rebuild_colors(features, target, temperature=7.0, negatives=negatives), expected)


def test_identical_frames_with_distinct_cells_are_rebuilt_without_loss():
    features = torch.eye(16).view(16, 4, 4).expand(2, 3, 16, 4, 4)
    target = torch.rand(2, 1, 3, 32, 32).expand(2, 3, 3, 32, 32)
    options = {"temperature": 200.0, "ohem_range": (0, 1)}
    assert float(color_loss(features, target, None, negatives=False, **options)) < 1e-6
    # The mirrored clip's cells look the same and have other colours: half of the weight is wrong.
    assert float(color_loss(features, target, None, negatives=True, **options)) > 1e-3


def test_edge_weight_scales_the_error_of_its_pixels():
    features = torch.eye(16).view(16, 4, 4).expand(1, 2, 16, 4, 4)
    target = torch.zeros(1, 2, 3, 32, 32)
    target[:, 1] = 0.1  # an error of 0.1 everywhere: 0.01 by the quadratic part
    options = {"temperature": 200.0, "negatives": False, "ohem_range": (0, 1)}
    assert float(color_loss(features, target, None, **options)) == pytest.approx(0.01, rel=1e-4)
    weight = torch.full((1, 2, 1, 32, 32), 3.0)
    assert float(color_loss(features, target, weight, **options)) == pytest.approx(0.09, rel=1e-4)


def test_consistency_is_zero_for_the_identity_and_for_a_flip_that_the_grid_describes():
    features = F.normalize(torch.randn(2, 8, 4, 4), dim=1)
    identity = F.affine_grid(torch.eye(2, 3).expand(2, 2, 3), (2, 8, 4, 4), align_corners=False)
    assert float(consistency_loss(features, identity, features, ohem_range=(0, 1))) == 0
    flipped = identity * torch.tensor([-1.0, 1.0])
    assert float(consistency_loss(features, flipped, features.flip(3), ohem_range=(0, 1))) == 0
    assert float(consistency_loss(features, flipped, features, ohem_range=(0, 1))) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_geometry_and_logits_are_float32_in_every_precision(dtype):
    """Features that the precision holds exactly give the losses of float32: nothing else is rounded."""
    generator = torch.Generator().manual_seed(0)
    features = lambda *shape: F.normalize(torch.randn(*shape, generator=generator), dim=-3).to(dtype)
    view_1, view_2 = features(2, 3, 16, 32, 32), features(2, 3, 16, 32, 32)
    theta = torch.tensor([[[0.73, 0, 0.21], [0, 0.61, 0.13]], [[-0.57, 0, 0.2], [0, 0.87, 0.1]]])
    grid = F.affine_grid(theta, (2, 1, 32, 32), align_corners=False) + 0.01 * torch.randn(2, 32, 32, 2)
    cells = draw_grid_cells(2, 32, 8, torch.Generator().manual_seed(1))

    def losses(cast):
        dense = dense_loss(cast(view_1), cast(view_2), theta, anchor_cells=cells, point_cells=cells, temperature=0.05,
                           cross_view_weight=0.1)
        return dense, consistency_loss(cast(view_1[:, 0]), grid, cast(view_2[:, 0]), ohem_range=(0, 1))

    expected = losses(torch.Tensor.float)
    with torch.autocast("cpu", dtype):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(losses(lambda x: x), expected))


def test_grid_cells_start_at_the_offset():
    assert grid_cells(torch.tensor([[1, 2]]), 8, 2).tolist() == [[2 * 8 + 1, 2 * 8 + 5, 6 * 8 + 1, 6 * 8 + 5]]


def test_a_view_too_small_for_its_grid_is_refused():
    with pytest.raises(UserError, match=r"it has 4, and the grid 8 points; raise DATASET\.CROP_SIZE"):
        draw_grid_cells(2, 4, 8, torch.Generator())


def test_drawn_grids_differ_by_clip_and_stay_on_the_map():
    cells = draw_grid_cells(50, 32, 8, torch.Generator().manual_seed(0))
    assert cells.shape == (50, 64) and cells.min() >= 0 and cells.max() < 32 * 32
    assert len({tuple(row.tolist()) for row in cells}) > 10


def small_batch():
    views, other = torch.randn(2, 2, 3, 64, 64), torch.randn(2, 2, 3, 64, 64)
    grid = F.affine_grid(torch.eye(2, 3).expand(4, 2, 3), (4, 1, 8, 8), align_corners=False).unflatten(0, (2, 2))
    return {"color": {"view_a": views, "view_b": other, "grid": grid, "target": torch.rand(2, 2, 3, 64, 64)},
            "dense": {"view_1": views, "view_2": other, "theta": torch.eye(2, 3).expand(2, 2, 3)}}


class Recorder(torch.nn.Module):
    """A network that notes which branch each pass asked for."""

    def __init__(self):
        super().__init__()
        self.net, self.passes = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16), []

    def forward(self, frames, local=True, dense=True):
        self.passes.append((len(frames), local, dense, torch.is_grad_enabled()))
        return self.net(frames, local=local, dense=dense)


@pytest.mark.parametrize("changes, passes", [
    ({}, [(4, True, False, True), (4, True, False, False), (6, False, True, True), (2, False, True, False)]),
    ({"space_consistency": False}, [(4, True, False, True), (6, False, True, True), (2, False, True, False)]),
    ({"is_dul": False}, [(4, True, False, True), (4, True, False, False)])])
def test_only_needed_branches_run(changes, passes):
    model = Recorder()
    objective = build_objective(config(video_len=2, **changes), load_settings())
    losses = objective(model, small_batch(), torch.Generator())
    assert model.passes == passes
    assert (float(losses.consistency) == 0) == ("space_consistency" in changes)
    assert (float(losses.dense) == 0) == ("is_dul" in changes)


@pytest.fixture(scope="module")
def total():
    """An objective's total on one small batch."""
    torch.manual_seed(0)
    model, batch = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16), small_batch()
    return lambda objective: float(objective(model, batch, torch.Generator().manual_seed(1)).total.detach())


@pytest.fixture(scope="module")
def published_total(total):
    return total(build_objective(config(), load_settings()))


@pytest.mark.parametrize("field, key, value", [
    ("color_temperature", "TEMP", 3), ("negatives", "is_neg", False), ("ohem_range", "ohem_range", [0.25, 0.5]),
    ("color_weight", "color_mode", "AB"), ("consistency", "space_consistency", False), ("dense", "is_dul", False),
    ("dense_weight", "MODEL.DUL_WEIGHT", 0.5), ("dense_temperature", "MODEL.DUL_TEMP", 1.0),
    ("anchor_grid", "MODEL.GRID_SIZE", 2), ("cross_view_grid", "MODEL.GRID_SIZE_REF", 2),
    ("cross_view_weight", "MODEL.CE_REF", 0.9)])
def test_every_key_of_the_objective_changes_the_total(field, key, value, total, published_total):
    overrides = [key, str(value)] if "." in key else []
    changed = build_objective(config(**({} if overrides else {key: value})), load_settings(overrides=overrides))
    assert getattr(changed, field) != getattr(build_objective(config(), load_settings()), field)
    assert total(changed) != published_total
