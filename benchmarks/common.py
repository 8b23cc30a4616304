"""What several benchmarks share."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def width_and_height(text: str) -> tuple[int, int]:
    """`864x480` to two numbers, for argparse."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, both above 0; got {text}; give for example 864x480")
    return int(sides[0]), int(sides[1])


def alone(function: Callable, *arguments: Any) -> Any:
    """A function's result in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
