"""Activation checkpointing: less memory for a second forward pass in backward (Chen et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(modules: Iterable[nn.Module]) -> None:
    """Let each module keep only its inputs for backward and run again there; results and statistics stay the same."""
    for module in modules:
        module.forward = partial(_forward, module, module.forward)


def _forward(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False,
                      context_fn=lambda: (nullcontext(), _frozen_statistics(module)))


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let the second pass count its batches on copies: the first one has updated the running statistics already."""
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    counted = [dict(layer.named_buffers(recurse=False)) for layer in layers]
    for layer, buffers in zip(layers, counted):
        for name, buffer in buffers.items():
            setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, buffers in zip(layers, counted):
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)
