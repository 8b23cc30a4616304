"""Protocols of related methods: each preset against its own rules, written out here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.label_maps import min_max_of
from models.label_propagation import context_frames
from models.propagation import build_propagator, keeping_aspect
from utils.config import PRESETS, load_settings
from utils.errors import UserError

H, W, h, w = 64, 104, 8, 13


class Stored:
    """An encoder that gives features made before, whatever the frames."""

    def __init__(self, features):
        self._features = iter(features)

    def encode(self, frames):
        return torch.stack([next(self._features) for _ in frames])


def walk(frames: int) -> torch.Tensor:
    """Unit features [N,C,h,w] that change slowly over frames and map."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 6, frames // 2, 3, 5, generator=generator)
    fine = F.interpolate(coarse, size=(frames, h, w), mode="trilinear")[0].transpose(0, 1)
    return F.normalize(fine + 0.1 * torch.randn(fine.shape, generator=generator), dim=1)


def carried(query, keys, labels, near, temperature, knn):
    """The reference: similarities of each cell with all cells of `keys` [n,C,h,w] that `near` [n,hw,hw] allows."""
    similarity = torch.einsum("cq,nck->nqk", query.flatten(1), keys.flatten(2)).masked_fill(~near, -torch.inf)
    best = similarity.permute(1, 0, 2).flatten(1).topk(knn, dim=1)  # [hw,k] of n*hw
    values = labels.flatten(2).permute(0, 2, 1).flatten(0, 1)[best.indices]  # [hw,k,M]
    return ((best.values / temperature).softmax(1)[..., None] * values).sum(1).T.view(-1, h, w)


def distances():
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return ((a.flatten()[:, None] - a.flatten()).abs() for a in (y, x))


RULES = {  # the recent frames of frame t, the window, whether it holds for the first frame, T, k
    "crw": (lambda t: [max(i, 0) for i in range(t - 20, t)], "circle", False, 0.05, 10),
    "dul": (lambda t: [max(i, 0) for i in range(t - 20, t)], "circle", False, 0.05, 10),
    "vfs": (lambda t: list(range(max(t - 20, 0), t)), "circle", True, 0.07, 10),
    "dino": (lambda t: list(range(max(t - 7, 1), t)), "square", True, 0.1, 5),
}


@pytest.mark.parametrize("preset", RULES)
def test_a_presets_masks_follow_its_rules(preset, radius=3.0):
    recent_of, window, near_first, temperature, knn = RULES[preset]
    settings = dataclasses.replace(load_settings(preset=preset).TEST, RADIUS=radius, INFER_WH=(W, H))
    assert knn == settings.KNN
    features = walk(24)
    video = build_propagator(Stored(features), settings)
    mask = np.zeros((H, W), np.uint8)
    mask[9:37, 20:61], mask[30:, 70:] = 1, 2
    layers = torch.stack([torch.from_numpy(mask) == i for i in range(3)]).float()
    if preset in ("vfs", "dino"):
        labels = [layers[:, 4::8, 4::8]]  # of an even count the upper of the two in the middle, as Pillow takes it
    else:
        labels = [F.interpolate(layers[None], (h, w), mode="bilinear", align_corners=preset == "dul")[0]]
    dy, dx = distances()
    within = dy**2 + dx**2 < radius**2 if window == "circle" else torch.maximum(dy, dx) <= radius
    frame = np.zeros((H, W, 3), np.uint8)
    video.step(frame, mask)
    for t in range(1, 24):
        recent = recent_of(t)
        near = torch.stack([within if near_first else torch.ones_like(within), *[within] * len(recent)])
        labels.append(carried(features[t], features[[0, *recent]], torch.stack([labels[i] for i in [0, *recent]]),
                              near, temperature, knn))
        prediction = video.predict(video.encode([frame])[0])
        torch.testing.assert_close(prediction.labels, labels[t], rtol=1e-4, atol=1e-5)
    strong = labels[-1]
    if preset in ("vfs", "dino"):
        least, most = strong.amin((1, 2), keepdim=True), strong.amax((1, 2), keepdim=True)
        strong = (strong - least) / (most - least)
    full = F.interpolate(strong[None], (H, W), mode="bilinear", align_corners=preset == "dul")[0]
    assert (video.index_mask(prediction, frame) == full.argmax(0).numpy()).mean() > 0.999


@pytest.mark.parametrize("preset, frame, expected", [
    ("colornet", (854, 480), (864, 480)), ("dul", (854, 480), (854, 480)), ("crw", (1280, 720), (1280, 720)),
    ("vfs", (1280, 720), (853, 480)), ("vfs", (480, 854), (480, 854)), ("dino", (854, 480), (832, 480)),
    ("dino", (1080, 1920), (480, 832)), ("dino", (500, 500), (480, 448))])
def test_frames_are_resized_as_the_preset_does(preset, frame, expected):
    test = load_settings(preset=preset).TEST
    assert keeping_aspect(*frame, test.INPUT_SIZE, test.SIZE_MULTIPLES, test.SIZE_ROUNDING) == expected


def test_papers_presets_state_every_key_but_the_features():
    names = {field.name for field in dataclasses.fields(load_settings().TEST)} - {"KEY"}
    for preset in ("colornet", *RULES):
        assert {name for name in names if f"{name}:" not in PRESETS[preset].read_text()} == set(), preset
    protocols = [dataclasses.astuple(load_settings(preset=preset).TEST) for preset in PRESETS]
    assert len(set(protocols)) == len(protocols)


def test_the_default_is_colornets():
    assert load_settings().TEST == load_settings(preset="colornet").TEST


def test_how_often_the_first_frame_counts():
    gaps = (1, 2, 5)
    assert context_frames(3, 5, gaps, "once") == [3, 3, 4] and context_frames(3, 5, gaps, "never") == [3, 4]
    assert context_frames(3, 4, gaps, "never") == [3] and context_frames(3, 9, gaps, "never") == [3, 4, 7, 8]


def test_min_max_leaves_what_is_nowhere():
    labels = torch.tensor([[[0.2, 0.6, 0.4]], [[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]])
    torch.testing.assert_close(min_max_of(labels), torch.tensor([[[0, 1, 0.5]], [[0, 0, 0]], [[1, 1, 1]]]))


def test_edges_are_followed_with_aligned_corners_only():
    test = load_settings(preset="dino", overrides=["TEST.UPSAMPLE", "bilateral"]).TEST
    with pytest.raises(UserError, match="ALIGN_CORNERS"):
        build_propagator(Stored([]), test)
