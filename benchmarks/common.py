"""What several benchmarks share."""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from models import load_model
from models.colornet import ColorNet


def width_and_height(text: str) -> tuple[int, int]:
    """`864x480` to two numbers, for argparse."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, both above 0; got {text}; give for example 864x480")
    return int(sides[0]), int(sides[1])


def network(path: str | None, size: str, device: torch.device) -> ColorNet:
    """The network of a model file in eval mode; without one, of a size, with both heads and random weights."""
    torch.manual_seed(0)
    return load_model(path, device) if path else \
        ColorNet(size=size, has_global=True, stem_kernel=3, feature_dim=128).to(device).eval()


def alone(function: Callable, *arguments: Any) -> Any:
    """A function's result in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(device: torch.device | None = None) -> float:
    """MB: of the GPU, or the highest resident size of this process (Linux; nan elsewhere).

    Not by `getrusage`, whose figure a process begins with is its parent's.
    """
    if device and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        return math.nan
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM"))
