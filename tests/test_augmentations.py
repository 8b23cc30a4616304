"""Augmentations: each with its mean, range and rate of application, and views that lie where their grid says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF

from datasets import photometric as photometric_module
from datasets import shadow as shadow_module
from datasets import views as views_module
from datasets.edges import edge_weight, pack_contours
from datasets.geometry import apply_theta, color_frame, crop_frame, draw_theta, rotate, theta_grid
from datasets.lab import color_levels, color_target
from datasets.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    photometric,
)
from datasets.shadow import cast_shadow, painted_shadow, shadow_mask, smooth_exponent, smooth_shadow
from datasets.views import ColorViews, DenseViews, ViewGeometry, finished

WHOLE = (0, 0, 1, 1)
GEOMETRY = ViewGeometry(size=64, short_range=(64, 80), random_crop=True, guided_flip=True, zoom_range=(0.5, 1.0))
COLOR = ColorViews(GEOMETRY, color_mode="LAB", clip_lab=True, augment=True, shadow=True, liquid=True, edge=True,
                   consistency=True, turned=False)


def coordinates(height, width):
    """A picture whose red is x and whose green is y, each from 0 to 255 over the picture; blue is 128."""
    x, y = (255 * (np.arange(n) + 0.5) / n for n in (width, height))
    picture = np.stack([np.tile(x, (height, 1)), np.tile(y[:, None], (1, width)), np.full((height, width), 128)], -1)
    return np.rint(picture).astype(np.uint8)


def texture(height=96, width=144, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def as_tensor(picture):
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()


def close(a, b, within):
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=within)


# --- geometry ---

@pytest.mark.parametrize("vertical, horizontal", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("crop", [WHOLE, (0.1, 0.2, 0.7, 0.5), (0.25, 0.0, 0.5, 0.75)])
def test_color_frame_shows_the_crop_of_the_flipped_frame(crop, vertical, horizontal):
    x, y, w, h = crop
    view = color_frame(coordinates(120, 200), 100, 64, vertical_flip=vertical, angle=0, crop=crop,
                        horizontal_flip=horizontal)
    u = (np.arange(64) + 0.5) / 64
    expected_x = x + w * (1 - u if horizontal else u)
    expected_y = y + h * u
    inner = slice(2, -2)  # reflection changes the gradient at the frame's border
    close(view[32, inner, 0], 255 * expected_x[inner], within=2.5)
    close(view[inner, 32, 1], 255 * (1 - expected_y if vertical else expected_y)[inner], within=2.5)


def test_color_frame_turns_about_the_centre_before_it_squeezes():
    frame = np.full((100, 200, 3), 200, np.uint8)
    frame[49:51, 50:150] = (255, 0, 0)  # a bar of half the width
    view = color_frame(frame, 100, 100, vertical_flip=False, angle=30, crop=WHOLE, horizontal_flip=False)
    rows, columns = np.nonzero((view[..., 0] > 200) & (view[..., 1] < 190))
    half_x, half_y = 50 * np.cos(np.pi / 6) / 2, 50 * np.sin(np.pi / 6)  # the frame is squeezed 2 to 1 afterwards
    close((np.ptp(columns) / 2, np.ptp(rows) / 2), (half_x, half_y), within=2)
    close((columns.mean(), rows.mean()), (49.5, 49.5), within=0.5)
    assert not view[0, 0].any() and not view[-1, -1].any()  # black corners


def test_color_frame_without_turn_has_no_black_border():
    view = color_frame(np.full((90, 160, 3), 200, np.uint8), 80, 64, vertical_flip=True, angle=0,
                        crop=(0, 0, 0.5, 0.5), horizontal_flip=True)
    assert (view == 200).all()


def test_a_turn_by_whole_degrees_keeps_size_and_centre():
    turned = rotate(coordinates(101, 201), 30)
    assert turned.shape == (101, 201, 3)
    close(turned[50, 100], coordinates(101, 201)[50, 100], within=2)
    expected = 255 * (100.5 + 40 * np.cos(np.pi / 6)) / 201, 255 * (50.5 + 40 * np.sin(np.pi / 6)) / 101
    close(turned[50, 140, :2], expected, within=3)


def test_small_frames_are_reflected_up_to_the_crop():
    frame = coordinates(40, 120)
    view = color_frame(frame, 40, 64, vertical_flip=False, angle=0, crop=WHOLE, horizontal_flip=False)
    close(view[31:33, :, 1].mean(), 127.5, within=3)
    close(view[12:52, 32, 1], frame[:, 60, 1], within=4)  # the frame itself in the middle
    close(view[:12, 32, 1], view[13:25, 32, 1][::-1], within=8)  # and its reflection above
    assert crop_frame(frame, 40, 64, origin=np.zeros(2), horizontal_flip=False).shape == (64, 64, 3)


@pytest.mark.parametrize("origin", [(0, 0), (1, 1), (0.3, 0.8)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_frame_is_a_window_of_the_resized_frame(origin, flip):
    view = crop_frame(coordinates(200, 300), 100, 64, origin=np.array(origin), horizontal_flip=flip)
    x = (origin[0] * (150 - 64) + np.arange(64) + 0.5) / 150
    y = (origin[1] * (100 - 64) + np.arange(64) + 0.5) / 100
    close(view[10, :, 0], 255 * (x[::-1] if flip else x), within=2.5)
    close(view[:, 10, 1], 255 * y, within=2.5)


def test_theta_moves_pictures_and_features_as_torch_does():
    rng = np.random.default_rng(0)
    for _ in range(10):
        theta = draw_theta(rng, flip=True, zoom_range=(0.5, 1.0))
        picture = texture(64, 64)
        grid = F.affine_grid(torch.from_numpy(theta)[None], (1, 3, 64, 64), align_corners=False)
        expected = F.grid_sample(as_tensor(picture), grid, padding_mode="reflection", align_corners=False)
        close(as_tensor(apply_theta(picture, theta)), expected, within=4)
        close(theta_grid(theta, 8), F.affine_grid(torch.from_numpy(theta)[None], (1, 3, 8, 8), align_corners=False)[0],
              within=1e-6)


def test_guided_transforms_are_drawn_as_specified():
    rng = np.random.default_rng(0)
    thetas = np.stack([draw_theta(rng, flip=True, zoom_range=(0.5, 1.0)) for _ in range(4000)])
    scale = thetas[:, 1, 1]
    close((thetas[:, 0, 0] < 0).mean(), 0.5, within=0.03)
    assert np.array_equal(abs(thetas[:, 0, 0]), scale) and 0.5 <= scale.min() < 0.51 and 0.99 < scale.max() <= 1
    close(scale.mean(), 0.75, within=0.01)
    shift = thetas[:, :, 2]
    assert (abs(shift) <= 1 - scale[:, None] + 1e-6).all()  # the crop stays inside
    close(shift.mean(0), 0, within=0.02)
    close((shift / (1 - scale[:, None])).std(), 1 / np.sqrt(3), within=0.02)  # uniform over what fits
    same = draw_theta(rng, flip=False, zoom_range=None)
    assert np.array_equal(same, np.eye(3, dtype=np.float32)[:2])


# --- photometric ---

@pytest.mark.parametrize("ours, theirs, factors, within", [
    (adjust_brightness, TF.adjust_brightness, (0.6, 1.0, 1.4), 1),
    (adjust_contrast, TF.adjust_contrast, (0.6, 1.0, 1.4), 2),
    (adjust_saturation, TF.adjust_saturation, (0.8, 1.0, 1.2), 2),
    (adjust_hue, TF.adjust_hue, (-0.1, 0.0, 0.1), 10),
])
def test_color_changes_are_those_of_torchvision(ours, theirs, factors, within):
    picture = texture()
    for factor in factors:
        expected = theirs(torch.from_numpy(picture).permute(2, 0, 1), factor).permute(1, 2, 0).numpy()
        difference = abs(ours(picture, factor).astype(int) - expected)
        assert difference.max() <= within and difference.mean() < 1.5, factor


def record(monkeypatch, module, name, result=lambda image, *_, **__: image):
    """Replace a function of `module` by one that notes its arguments; returns the notes."""
    calls = []

    def noting(*args, **kwargs):
        calls.append((args, kwargs))
        return result(*args, **kwargs)

    monkeypatch.setattr(module, name, noting)
    return calls


def test_jitter_is_drawn_as_specified_and_in_any_order(monkeypatch):
    names, order = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"), []
    calls = {name: record(monkeypatch, photometric_module, name, lambda image, factor, name=name: order.append(name))
             for name in names}
    rng = np.random.default_rng(0)
    for _ in range(4000):
        color_jitter(np.zeros((2, 2, 3), np.uint8), rng)
    for name, (low, high) in zip(names, ((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))):
        drawn = np.array([args[1] for args, _ in calls[name]])
        assert len(drawn) == 4000 and low <= drawn.min() and drawn.max() <= high
        close((drawn.min(), drawn.max(), drawn.mean()), (low, high, (low + high) / 2), within=0.02 * (high - low))
    orders = Counter(zip(*[iter(order)] * 4))
    assert len(orders) == 24 and min(orders.values()) > 4000 / 24 / 2


@pytest.mark.parametrize("blur, solarise", [(0.2, 0), (0.3, 0.1)])
def test_photometric_changes_have_their_rates(monkeypatch, blur, solarise):
    calls = {name: record(monkeypatch, photometric_module, name) for name in ("cast_shadow", "color_jitter", "to_grey")}
    blurs, solarised = record(monkeypatch, cv2, "GaussianBlur"), record(monkeypatch, cv2, "LUT")
    rng = np.random.default_rng(0)
    picture = np.zeros((2, 2, 3), np.uint8)
    for _ in range(4000):
        photometric(picture, rng, shadow=True, blur_probability=blur, solarise_probability=solarise)
    rates = [len(noted) / 4000 for noted in (*calls.values(), blurs, solarised)]
    close(rates, (0.8, 0.8, 0.2, blur, solarise), within=0.025)
    radii = np.array([args[2] for args, _ in blurs])
    close((radii.min(), radii.max(), radii.mean()), (0.1, 2, 1.05), within=0.07)
    shadows = len(calls["cast_shadow"])
    photometric(picture, rng, shadow=False, blur_probability=0, solarise_probability=0)
    assert len(calls["cast_shadow"]) == shadows


def test_solarise_and_grey_do_what_they_say():
    picture = np.array([[[0, 127, 128], [200, 255, 30]]], np.uint8)
    assert cv2.LUT(picture, photometric_module.SOLARISED).tolist() == [[[0, 127, 127], [55, 0, 30]]]
    grey = photometric_module.to_grey(picture)
    assert (np.ptp(grey, axis=2) == 0).all() and grey[0, 1, 0] == round(0.299 * 200 + 0.587 * 255 + 0.114 * 30)


# --- shadow ---

def test_shadows_are_painted_three_times_of_four(monkeypatch):
    painted = record(monkeypatch, shadow_module, "painted_shadow")
    smooth = record(monkeypatch, shadow_module, "smooth_shadow")
    rng = np.random.default_rng(0)
    for _ in range(4000):
        cast_shadow(None, rng)
    close((len(painted) / 4000, len(smooth) / 4000), (0.75, 0.25), within=0.025)


def test_shadow_masks_are_three_to_six_quadrilaterals_mostly_with_soft_edges(monkeypatch):
    fills = record(monkeypatch, cv2, "fillConvexPoly", cv2.fillConvexPoly)
    blurs = record(monkeypatch, cv2, "GaussianBlur", cv2.GaussianBlur)
    rng, counts, cover = np.random.default_rng(0), Counter(), []
    for _ in range(1500):
        before = len(fills)
        mask = shadow_mask(60, 80, rng)
        counts[len(fills) - before] += 1
        cover.append(mask.mean() / 255)
    assert set(counts) == {3, 4, 5, 6}
    close([count / 1500 for count in counts.values()], 0.25, within=0.05)
    close(len(blurs) / 1500, 0.8, within=0.04)
    kernels, sigmas = Counter(args[1] for args, _ in blurs), np.array([args[2] for args, _ in blurs])
    assert set(kernels) == {(k, k) for k in (3, 5, 7, 9)} and min(kernels.values()) > len(blurs) / 4 * 0.8
    close((sigmas.min(), sigmas.max(), sigmas.mean()), (7, 12, 9.5), within=0.15)
    assert min(cover) >= 0 and 0.1 < np.mean(cover) < 0.6
    corners = np.concatenate([args[1].reshape(-1, 2) for args, _ in fills])
    assert corners.min() == 0 and tuple(corners.max(0)) == (79, 59)  # clipped to the picture, all of it reached


def test_painted_shadows_rescale_and_change_the_gamma_inside_the_mask(monkeypatch):
    half = np.zeros((4, 8), np.uint8)
    half[:, 4:] = 255
    monkeypatch.setattr(shadow_module, "shadow_mask", lambda *_: half)
    picture = np.tile(np.array([20, 60, 120, 220], np.uint8), 2)[None, :, None].repeat(4, 0).repeat(3, 2)
    unit = (np.array([20, 60, 120, 220]) - 20) / 220
    rng, gammas = np.random.default_rng(0), []
    for _ in range(600):
        out = painted_shadow(picture, rng)
        close(out[0, :4, 0], 255 * unit, within=1)
        gammas.append(np.log(out[0, 6, 0] / 255) / np.log(unit[2]))
        close(out[0, 4:, 0], 255 * unit ** gammas[-1], within=2)
    gammas = np.array(gammas)
    close((gammas.min(), gammas.max(), (gammas < 1).mean()), (0.5, 1.5, 0.5), within=0.06)


def test_painting_on_a_black_picture_is_no_division_by_zero():
    black = np.zeros((16, 16, 3), np.uint8)
    rng = np.random.default_rng(0)
    assert not painted_shadow(black, rng).any() and not smooth_shadow(black, rng).any()


def test_smooth_shadows_raise_to_exponents_from_a_half_to_two(monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(50):
        exponent = smooth_exponent(32, 48, rng)
        assert exponent.shape == (32, 48)
        close((exponent.min(), exponent.max()), (0.5, 2), within=1e-5)
        assert abs(np.diff(exponent, axis=1)).max() < 1.2
    monkeypatch.setattr(shadow_module, "smooth_exponent", lambda *_: exponent)
    picture = texture(32, 48)
    close(smooth_shadow(picture, rng), 255 * (picture / 255) ** exponent[..., None], within=0.6)


# --- views ---

def free_frames(monkeypatch, views, clips=1500, T=3):
    """The arguments of every frame of view A in many clips."""
    calls = record(monkeypatch, views_module, "color_frame", lambda frame, *_, **__: frame)
    quick = replace(views, augment=False, edge=False, consistency=False)
    rng = np.random.default_rng(0)
    for _ in range(clips):
        quick([np.zeros((8, 8, 3), np.uint8)] * T, rng)
    return calls


def test_free_transforms_of_view_a_have_their_rates_and_ranges(monkeypatch):
    calls = free_frames(monkeypatch, COLOR)
    options = [kwargs for _, kwargs in calls]
    sides = np.array([args[1] for args, _ in calls]).reshape(-1, 3)
    assert (sides == sides[:, :1]).all() and set(np.unique(sides)) == set(range(64, 80))  # one short side a clip
    close(np.mean([o["vertical_flip"] for o in options]), 0.3, within=0.03)
    close(np.mean([o["horizontal_flip"] for o in options]), 0.5, within=0.03)
    angles = np.array([o["angle"] for o in options])
    close((angles != 0).mean(), 0.5, within=0.03)
    close((angles.min(), angles.max(), angles.mean()), (-30, 30, 0), within=0.8)
    crops = np.array([o["crop"] for o in options])
    cropped = crops[crops[:, 2] < 1]
    close(len(cropped) / len(crops), 0.7, within=0.03)
    close((cropped.min(0), cropped.max(0)), ((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)), within=0.01)
    close(cropped.mean(0), (0.125, 0.125, 0.625, 0.625), within=0.01)
    assert abs(np.corrcoef(cropped[:, 2], cropped[:, 3])[0, 1]) < 0.06  # each side of its own
    assert (crops[crops[:, 2] == 1] == WHOLE).all()


def test_frames_that_are_turned_already_are_not_turned_again(monkeypatch):
    assert not any(kwargs["angle"] for _, kwargs in free_frames(monkeypatch, replace(COLOR, turned=True), clips=50))


def test_crops_are_centred_without_random_crop(monkeypatch):
    views = replace(COLOR, geometry=replace(GEOMETRY, random_crop=False))
    crops = np.array([kwargs["crop"] for _, kwargs in free_frames(monkeypatch, views, clips=100)])
    close(crops[:, :2] + crops[:, 2:] / 2, 0.5, within=1e-9)
    assert (crops[:, 2] < 1).any()
    frames = [coordinates(96, 144)]
    view = DenseViews(views.geometry)(frames, np.random.default_rng(0))["view_1"].float()
    close(view[0, :2].mean((1, 2)), 127.5, within=3)


def features(pictures):
    """What a perfect network would see: the mean of each 8x8 block, [T,3,S/8,S/8]."""
    return F.avg_pool2d(pictures.float(), 8)


@pytest.mark.parametrize("liquid", [True, False])
def test_features_of_a_sampled_at_the_grid_are_those_of_b(monkeypatch, liquid):
    geometry = replace(GEOMETRY, size=256, short_range=(256, 257))
    views = replace(COLOR, geometry=geometry, augment=False, liquid=liquid)
    monkeypatch.setattr(views_module, "color_frame", lambda frame, *_, **__: coordinates(256, 256))
    for seed in range(8):
        sample = views([coordinates(256, 256)] * 2, np.random.default_rng(seed))
        grid = sample["grid"]
        inside = (grid.abs() < 0.9).all(-1)
        expected = F.grid_sample(features(sample["view_a"]), grid, align_corners=False, padding_mode="reflection")
        difference = (features(sample["view_b"]) - expected).abs().permute(0, 2, 3, 1)[inside]
        assert difference.max() < 6 and difference.mean() < 1, seed  # [grey levels] 8 are one feature


def test_view_2_is_view_1_sampled_at_theta():
    for seed in range(8):
        sample = DenseViews(GEOMETRY)([texture(seed=1), texture(seed=2)], np.random.default_rng(seed))
        grid = F.affine_grid(sample["theta"].expand(2, 2, 3), (2, 3, 64, 64), align_corners=False)
        expected = F.grid_sample(sample["view_1"].float(), grid, padding_mode="reflection", align_corners=False)
        close(sample["view_2"], expected, within=4)


def test_dense_frames_share_one_crop_and_flip(monkeypatch):
    calls = record(monkeypatch, views_module, "crop_frame", lambda *_, **__: np.zeros((64, 64, 3), np.uint8))
    rng = np.random.default_rng(0)
    for _ in range(1500):
        DenseViews(GEOMETRY)([None, None], rng)
    pairs = list(zip(calls[::2], calls[1::2]))
    assert all(a[0][1] == b[0][1] and a[1]["origin"] is b[1]["origin"]
               and a[1]["horizontal_flip"] == b[1]["horizontal_flip"] for a, b in pairs)
    close(np.mean([kwargs["horizontal_flip"] for _, kwargs in calls[::2]]), 0.5, within=0.04)
    origins = np.array([kwargs["origin"] for _, kwargs in calls[::2]])
    close((origins.min(0), origins.max(0), origins.mean(0)), ((0, 0), (1, 1), (0.5, 0.5)), within=0.03)
    assert {args[1] for args, _ in calls} == set(range(64, 80))


def test_view_b_is_liquid_half_of_the_time_and_never_without_the_switch(monkeypatch):
    still = np.stack(np.meshgrid(*[np.arange(8, dtype=np.float32)] * 2))
    liquid = record(monkeypatch, views_module, "liquid_map", lambda *_: still)
    monkeypatch.setattr(views_module, "color_frame", lambda frame, *_, **__: frame)
    views = replace(COLOR, geometry=replace(GEOMETRY, size=8), augment=False, edge=False)
    rng = np.random.default_rng(0)
    for _ in range(1500):
        views([np.zeros((8, 8, 3), np.uint8)] * 2, rng)
    close(len(liquid) / 2 / 1500, 0.5, within=0.04)
    count = len(liquid)
    for _ in range(30):
        replace(views, liquid=False)([np.zeros((8, 8, 3), np.uint8)] * 2, rng)
    assert len(liquid) == count


def test_photometric_settings_of_the_two_views(monkeypatch):
    calls = record(monkeypatch, views_module, "photometric")
    COLOR([texture()] * 2, np.random.default_rng(0))
    settings = [tuple(kwargs.values()) for _, kwargs in calls]
    assert settings == [(True, 0.2, 0)] * 2 + [(True, 0.3, 0.1)] * 2
    replace(COLOR, shadow=False)([texture()], np.random.default_rng(0))
    assert not calls[-1][1]["shadow"] and len(calls) == 6
    replace(COLOR, augment=False)([texture()], np.random.default_rng(0))
    assert len(calls) == 6


def test_target_is_of_the_unchanged_picture_and_edges_of_the_changed_one(monkeypatch):
    monkeypatch.setattr(views_module, "photometric", lambda image, *_, **__: np.zeros_like(image))
    sample = replace(COLOR, color_mode="RGB")([texture()] * 2, np.random.default_rng(0))
    assert not sample["view_a"].any() and not sample["contours"].any() and sample["levels"].float().std() > 0.05 * 255
    plain = replace(COLOR, color_mode="RGB", augment=False)([texture()] * 2, np.random.default_rng(0))
    assert torch.equal(plain["view_a"], plain["levels"])


def test_only_what_a_switch_asks_for_is_made():
    frames = [texture()] * 3
    sample = COLOR(frames, np.random.default_rng(0))
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in sample.items()}
    assert shapes == {"view_a": (torch.uint8, (3, 3, 64, 64)), "view_b": (torch.uint8, (3, 3, 64, 64)),
                      "levels": (torch.uint8, (3, 3, 64, 64)), "values": (torch.float32, (3, 256)),
                      "contours": (torch.uint8, (3, 32, 4)), "grid": (torch.float32, (3, 8, 8, 2))}
    bare = replace(COLOR, edge=False, consistency=False)(frames, np.random.default_rng(0))
    assert set(bare) == {"view_a", "levels", "values"}


@pytest.mark.parametrize("mode", ["LAB", "AB", "RGB"])
@pytest.mark.parametrize("size", [64, 72, 256])  # half of 72 is no multiple of 8: a row's bits are padded
def test_what_a_loader_process_sends_is_small_and_finished_exactly(mode, size):
    pictures = [[texture(size, size, seed=2 * clip + t) // 2 for t in range(2)] for clip in range(2)]
    for frames in pictures:
        frames[0][:, size // 2:] += 127  # a contour
    sent = []
    for frames in pictures:
        levels, values = color_levels(np.stack(frames), mode, clip=True)
        sent.append({"view_a": torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), "levels": levels,
                     "values": values, "contours": pack_contours(frames)})
    made = finished({name: torch.stack([sample[name] for sample in sent]) for name in sent[0]})
    assert made.keys() == {"view_a", "target", "edge"}
    for clip, frames in enumerate(pictures):
        assert torch.equal(made["target"][clip], color_target(np.stack(frames), mode, clip=True))
        weights = np.stack([edge_weight(frame) for frame in frames])
        assert np.array_equal(made["edge"][clip, :, 0].numpy(), weights) and (weights.max() > 1) == (size > 64)


def test_a_batch_of_eight_clips_leaves_its_loader_process_in_40_megabytes():
    geometry = replace(GEOMETRY, size=256, short_range=(256, 320))
    frames, rng = [texture(300, 400)] * 5, np.random.default_rng(0)
    views = replace(COLOR, geometry=geometry)(frames, rng), DenseViews(geometry)(frames, rng)
    size = sum(value.numel() * value.element_size() for branch in views for value in branch.values())
    assert 8 * size <= 40e6


def test_clip_lab_reaches_the_target():
    frame = np.full((96, 144, 3), 120, np.uint8)
    frame[40:44, 60:64] = (255, 0, 0)  # an outlier to clip
    values = [replace(COLOR, clip_lab=clip)([frame], np.random.default_rng(4))["values"] for clip in (True, False)]
    assert not torch.equal(*values)
