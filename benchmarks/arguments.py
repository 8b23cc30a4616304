"""What the benchmarks' command lines share."""

from __future__ import annotations

import argparse


def width_and_height(text: str) -> tuple[int, int]:
    """`864x480` to two numbers, for argparse."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, both above 0; got {text}; give for example 864x480")
    return int(sides[0]), int(sides[1])
