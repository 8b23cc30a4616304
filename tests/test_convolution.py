"""Winograd convolutions are convolutions: outputs, gradients, and where they are used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainColorNetDUL_benchmark as training
from losses import build_objective
from models.colornet import ColorNet
from models.convolution import WinogradConv2d, use_winograd
from tests.test_losses import config, small_batch
from utils.config import load_settings

WINOGRAD = "models.convolution._Winograd.apply"


def layer(channels=64, outputs=5, **options):
    made = nn.Conv2d(channels, outputs, 3, padding=1, bias=False, **options)
    return use_winograd(nn.Sequential(made))[0]


def results(convolve, x, weight, gradient):
    y = convolve(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), gradient)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("height, width", [(8, 8), (9, 6), (1, 3)])  # whole tiles, cut ones, less than one
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_those_of_the_convolution(height, width, dtype, tolerance, memory_format):
    torch.manual_seed(0)
    conv = layer().to(dtype)
    x = torch.randn(2, 64, height, width, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    gradient = torch.randn(2, 5, height, width, dtype=dtype)
    ours = results(lambda x, weight: conv(x), x, conv.weight, gradient)
    exact = results(lambda x, weight: F.conv2d(x, weight, padding=1), x, conv.weight, gradient)
    for mine, theirs in zip(ours, exact):
        assert (mine - theirs).norm() < tolerance * theirs.norm()


def test_inference_and_half_precision_keep_the_plain_convolution(monkeypatch):
    calls = []
    monkeypatch.setattr(WINOGRAD, lambda x, weight: calls.append(x.dtype) or F.conv2d(x, weight, padding=1))
    conv, x = layer(), torch.randn(1, 64, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        conv(x)
    conv.eval()(x)
    assert calls == []
    conv.train()(x)
    assert calls == [torch.float32]


def test_only_wide_convolutions_of_stride_one_are_replaced():
    kinds = [type(layer()), type(layer(channels=32)), type(layer(stride=2))]
    assert kinds == [WinogradConv2d, nn.Conv2d, nn.Conv2d]


@pytest.mark.slow
def test_a_prepared_network_has_the_losses_and_gradients_of_the_plain_one():
    torch.manual_seed(0)
    plain = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16).double().train()
    prepared = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16).double()
    prepared.load_state_dict(plain.state_dict())
    training.prepare_model(prepared, training.parse_arguments([]), torch.device("cpu"), begins=True)
    convolutions = [module for module in prepared.modules() if type(module) is WinogradConv2d]
    assert len(convolutions) == 19  # layers 2 to 6 but for the stride
    batch = {branch: {name: value.double() for name, value in views.items()}
             for branch, views in small_batch().items()}
    totals = []
    for model in (plain, prepared):
        losses = build_objective(config(video_len=2), load_settings())(model, batch, torch.Generator().manual_seed(1))
        losses.total.backward()
        totals.append(torch.stack(losses).detach())
    torch.testing.assert_close(*totals, rtol=1e-9, atol=0)
    for (name, ours), theirs in zip(prepared.named_parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-10, msg=name)
    for ours, theirs in zip(prepared.buffers(), plain.buffers()):
        torch.testing.assert_close(ours, theirs)
