"""From the label map to pixels along the edges of the picture, against a reference that does one pixel at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import upsampling
from models.colornet import ColorNet
from models.label_maps import upsampled_argmax
from models.propagation import build_propagator
from models.upsampling import BilateralUpsampling, lay_axis
from utils.config import load_settings


def soft_labels(classes: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(classes, h, w, generator=torch.Generator().manual_seed(seed))).softmax(0)


def patches(H: int, W: int, seed: int = 0) -> np.ndarray:
    """A picture with edges: a few flat patches of random colours, and noise of a few levels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 236, (-(-H // 11), -(-W // 9), 3))
    return (np.kron(coarse, np.ones((11, 9, 1), int))[:H, :W] + rng.integers(-12, 13, (H, W, 3))).astype(np.uint8)


def nearest_cell(pixel: int, pixels: int, cells: int) -> tuple[int, float]:
    """The cell nearest to a pixel, the later of two, and the pixel's position on the label map [cells]."""
    position = pixel * (cells - 1) / max(pixels - 1, 1)
    return math.floor(position + 0.5 + 1e-9), position


def reference(labels: torch.Tensor, picture: np.ndarray, *, window: int = 5, sigma_color: float = 0.1,
              sigma_distance: float = 1.5) -> np.ndarray:
    """The definition: soft labels [M,H,W] in float64, one pixel after the other."""
    (_, h, w), (H, W, _) = labels.shape, picture.shape
    values = labels.double().numpy()
    colors = picture.astype(float) / 255
    members = {(i, j): [] for i in range(h) for j in range(w)}
    for y in range(H):
        for x in range(W):
            members[nearest_cell(y, H, h)[0], nearest_cell(x, W, w)[0]].append(colors[y, x])
    means = {cell: np.mean(inside, 0) for cell, inside in members.items() if inside}
    result = np.zeros((len(values), H, W))
    for y in range(H):
        for x in range(W):
            (i, down), (j, right) = nearest_cell(y, H, h), nearest_cell(x, W, w)
            cells = [(a, b) for a in range(i - window // 2, i + window // 2 + 1) if 0 <= a < h
                     for b in range(j - window // 2, j + window // 2 + 1) if 0 <= b < w]
            near = np.array([-((down - a) ** 2 + (right - b) ** 2) / (2 * sigma_distance**2) for a, b in cells])
            alike = np.array([-((colors[y, x] - means[a, b]) ** 2).sum() / (2 * sigma_color**2) for a, b in cells])
            bilinear = np.array([max(1 - abs(down - a), 0) * max(1 - abs(right - b), 0) for a, b in cells])
            weights = bilinear + softmax(near + alike) - softmax(near)
            result[:, y, x] = sum(weight * values[:, a, b] for weight, (a, b) in zip(weights, cells))
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize(("h", "w", "H", "W", "options"), [
    (4, 5, 32, 40, {}),  # eight times
    (4, 6, 29, 43, {}),  # no multiple of it
    (7, 8, 24, 33, {"sigma_color": 0.05}),
    (5, 4, 37, 23, {"window": 3, "sigma_distance": 0.7}),
    (2, 2, 45, 50, {}),  # tiles smaller than a cell
    (1, 6, 9, 40, {}), (5, 1, 40, 9, {}), (1, 1, 20, 30, {}),  # one row or column of cells
    (1, 5, 1, 33, {}),
    (5, 7, 5, 7, {}),  # as many pixels as cells
])
def test_it_is_the_bilinear_map_and_what_colors_add(h, w, H, W, options):
    labels, picture = soft_labels(3, h, w), patches(H, W)
    wanted = reference(labels, picture, **options)
    method = BilateralUpsampling(**options)
    np.testing.assert_allclose(method.soft_labels(labels, picture), wanted, atol=1e-5)
    ranked = np.sort(wanted, 0)
    clear = ranked[-1] - ranked[-2] > 1e-5
    assert clear.mean() > 0.99
    classes = method.argmax(labels, picture)
    assert classes.dtype == torch.int64
    assert np.array_equal(classes.numpy()[clear], wanted.argmax(0)[clear])


def test_weights_by_hand():
    """Two cells over four pixels, which stand at 0, 1/3, 2/3 and 1; two are black, two white."""
    picture = np.repeat(np.array([[0, 0, 255, 255]], np.uint8)[..., None], 3, 2)
    labels = torch.tensor([[[1.0, 0.0]]])
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    # Squared distances to the two cells differ by 1, 1/3, -1/3 and -1, squared colour distances by 3.
    for sigma_color, color in ((1, 3 / 2), (1e6, 0)):
        soft = BilateralUpsampling(sigma_color=sigma_color, sigma_distance=1).soft_labels(labels, picture)[0, 0]
        wanted = [bilinear + sigmoid(near + side * color) - sigmoid(near) for bilinear, near, side in
                  ((1, 1 / 2, 1), (2 / 3, 1 / 6, 1), (1 / 3, -1 / 6, -1), (0, -1 / 2, -1))]
        torch.testing.assert_close(soft, torch.tensor(wanted))


def test_labels_end_at_the_edge_of_the_picture():
    """The edge lies inside a row of cells, where bilinear resizing can only guess."""
    picture = np.zeros((64, 80, 3), np.uint8)
    object_mask = np.zeros((64, 80), bool)
    object_mask[21:46, 30:57] = True
    picture[object_mask] = (200, 30, 60)
    share = F.interpolate(torch.from_numpy(object_mask)[None, None].float(), (8, 10), mode="area")[0]
    labels = torch.cat([1 - share, share])
    edge = BilateralUpsampling().argmax(labels, picture).numpy() == 1
    bilinear = F.interpolate(labels[None], (64, 80), mode="bilinear", align_corners=True)[0].argmax(0).numpy() == 1
    assert (bilinear != object_mask).sum() > 90
    assert (edge != object_mask).sum() < 10


@pytest.mark.parametrize("color", [0, 77, (3, 250, 131)])
def test_a_flat_picture_is_resized_bilinearly(color):
    labels, picture = soft_labels(3, 5, 7), np.full((39, 50, 3), color, np.uint8)
    bilinear = F.interpolate(labels[None], (39, 50), mode="bilinear", align_corners=True)[0]
    method = BilateralUpsampling(sigma_color=1e-3)
    torch.testing.assert_close(method.soft_labels(labels, picture), bilinear, rtol=0, atol=2e-6)
    assert (method.argmax(labels, picture) == bilinear.argmax(0)).float().mean() > 0.999
    torch.testing.assert_close(BilateralUpsampling(sigma_color=1e9).soft_labels(labels, patches(39, 50)), bilinear,
                               rtol=0, atol=2e-6)


@pytest.mark.parametrize("sharpness", [2, 6, 20])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_what_needs_no_weights_is_what_they_would_give(classes, sharpness):
    """Also where colours are like nothing that a cell has."""
    generator = torch.Generator().manual_seed(classes)
    coarse = sharpness * torch.randn(1, classes, 3, 4, generator=generator)
    labels = F.interpolate(coarse, (15, 20), mode="bilinear")[0].softmax(0)
    picture = np.random.default_rng(0).integers(0, 2, (121, 157, 3)).astype(np.uint8) * 255
    picture[:60] = patches(60, 157)
    method = BilateralUpsampling(sigma_color=0.02)
    assert torch.equal(method.argmax(labels, picture), method.soft_labels(labels, picture).argmax(0))


def test_windows_without_a_boundary_are_left_alone():
    share = torch.zeros(12, 20)
    share[:, 10:] = 1
    share[3, 3] = 0.2  # too little to matter
    undecided = upsampling.undecided(torch.stack([1 - share, share]), 5)
    assert torch.equal(undecided, F.pad(torch.ones(12, 4), (8, 8)).bool())


def test_a_color_that_no_cell_has_still_gets_a_class():
    """A red pixel on green: every weight alone would be zero in float32."""
    picture = np.full((41, 41, 3), (0, 255, 0), np.uint8)
    picture[20, 20] = picture[3, 9] = (255, 0, 0)
    labels = soft_labels(3, 6, 6)
    soft = BilateralUpsampling().soft_labels(labels, picture)
    torch.testing.assert_close(soft.sum(0), torch.ones(41, 41))


def test_no_object_out_of_its_reach():
    labels = torch.zeros(2, 9, 9)
    labels[0] = 0.1
    labels[:, 4, 4] = torch.tensor([0.0, 1.0])
    noise = np.random.default_rng(1).integers(0, 256, (73, 73, 3)).astype(np.uint8)
    found = BilateralUpsampling().argmax(labels, noise).bool()
    assert found.any()
    # Cells are 9 pixels apart: the windows that hold the cell at 36 belong to pixels nearest to the cells 2 to 6.
    assert not found[:14].any() and not found[59:].any() and not found[:, :14].any() and not found[:, 59:].any()
    assert (BilateralUpsampling().soft_labels(labels, noise)[1][:14] == 0).all()


def test_equal_shares_go_to_the_first_class():
    labels = torch.zeros(40, 5, 6)
    labels[[7, 20, 33]] = 1
    assert (BilateralUpsampling().argmax(labels, patches(33, 47)) == 7).all()
    labels[7, 2, 3] = 0  # now there are windows with two answers
    assert set(BilateralUpsampling().argmax(labels, patches(33, 47)).unique().tolist()) <= {7, 20}


@pytest.fixture
def small_parts(monkeypatch):
    """Everything that is done in parts is done in parts of nearly nothing, of odd sizes."""
    lay_axis.cache_clear()
    monkeypatch.setattr(upsampling, "WEIGHTS_AT_ONCE", {"cpu": 5000})
    monkeypatch.setattr(upsampling, "CLASSES_AT_ONCE", 2)
    monkeypatch.setattr(upsampling, "LONGEST_TILE", 3)
    monkeypatch.setattr(upsampling, "ROWS_AT_ONCE", 7)
    yield
    lay_axis.cache_clear()


def test_parts_do_not_show(request):
    labels, picture, method = soft_labels(5, 6, 8), patches(47, 61), BilateralUpsampling()
    soft, classes = method.soft_labels(labels, picture), method.argmax(labels, picture)
    assert torch.equal(soft.argmax(0), classes)
    request.getfixturevalue("small_parts")
    torch.testing.assert_close(method.soft_labels(labels, picture), soft, rtol=0, atol=1e-6)
    assert torch.equal(method.argmax(labels, picture), classes)


def test_threads_do_not_show(small_parts):
    labels, picture = soft_labels(5, 6, 8), patches(47, 61)
    alone = BilateralUpsampling().argmax(labels, picture)
    torch.set_num_threads(2)
    try:
        assert torch.equal(BilateralUpsampling().argmax(labels, picture), alone)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_memory_does_not_grow_with_classes_or_pixels(monkeypatch):
    taken = []
    mix = upsampling.mix
    monkeypatch.setattr(upsampling, "mix", lambda labels, cells, weights: (
        taken.append((len(labels), weights.numel())), mix(labels, cells, weights))[1])
    labels = soft_labels(70, 3, 3)
    BilateralUpsampling().argmax(labels, patches(300, 400))
    assert max(classes for classes, _ in taken) <= upsampling.CLASSES_AT_ONCE
    assert max(weights for _, weights in taken) <= upsampling.WEIGHTS_AT_ONCE["cpu"]
    assert sum(weights for _, weights in taken) > 2 * upsampling.WEIGHTS_AT_ONCE["cpu"], "the parts were never needed"


def test_pictures_may_be_views_and_tensors():
    picture = patches(30, 40)
    labels = soft_labels(2, 4, 5)
    wanted = BilateralUpsampling().argmax(labels, picture[:, ::-1].copy())
    assert torch.equal(BilateralUpsampling().argmax(labels, picture[:, ::-1]), wanted)
    assert torch.equal(BilateralUpsampling().argmax(labels, torch.from_numpy(picture).flip(1)), wanted)
    transposed = torch.from_numpy(np.ascontiguousarray(picture[:, ::-1].transpose(2, 0, 1))).permute(1, 2, 0)
    assert torch.equal(BilateralUpsampling().argmax(labels, transposed), wanted)


def test_wrong_use_is_refused():
    labels, picture = soft_labels(2, 4, 5), patches(30, 40)
    for options, word in (({"window": 4}, "odd"), ({"window": -1}, "odd"), ({"sigma_color": 0}, "sigma"),
                          ({"sigma_distance": -1}, "sigma")):
        with pytest.raises(ValueError, match=word):
            BilateralUpsampling(**options)
    for bad in (labels[0], labels.long(), labels.double(), labels[:0]):
        with pytest.raises(ValueError, match="soft labels"):
            BilateralUpsampling().argmax(bad, picture)
    for bad in (picture[..., 0], picture.astype(np.float32), picture[..., :2]):
        with pytest.raises(ValueError, match="picture"):
            BilateralUpsampling().soft_labels(labels, bad)


@pytest.mark.parametrize(("upsample", "wanted"), [
    ("bilinear", lambda labels, frame: upsampled_argmax(labels, frame.shape[:2])),
    ("bilateral", lambda labels, frame: BilateralUpsampling().argmax(labels, frame))])
def test_the_propagator_upsamples_as_it_is_told(upsample, wanted):
    torch.manual_seed(0)
    model = ColorNet(size="S", has_global=False, stem_kernel=3, feature_dim=16).eval()
    settings = load_settings(overrides=["TEST.INFER_WH", "[64, 48]", "TEST.KEY", "color", "TEST.UPSAMPLE", upsample])
    frames = [patches(50, 70, seed) for seed in (0, 1)]
    mask = np.zeros((50, 70), np.uint8)
    mask[10:30, 20:50] = 5
    video = build_propagator(model, settings.TEST)
    video.step(frames[0], mask)
    prediction = video.predict(video.encode(frames[1:])[0])
    assert np.array_equal(video.index_mask(prediction, frames[1]), 5 * wanted(prediction.labels, frames[1]).numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_classes_of_the_cpu():
    labels, picture, method = soft_labels(20, 12, 17), patches(95, 131), BilateralUpsampling()
    on_gpu = method.soft_labels(labels.cuda(), picture).cpu()
    assert (on_gpu - method.soft_labels(labels, picture)).abs().max() < 1e-5
    gpu, cpu = (method.argmax(on, picture).cpu() for on in (labels.cuda(), labels))
    assert (gpu == cpu).float().mean() >= 0.999
