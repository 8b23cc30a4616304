"""What a program says while it runs, and sizes as users write them."""

from __future__ import annotations

import argparse
import logging
import re


def start_console(level: int = logging.INFO) -> None:
    """Messages of this program to standard error, one a line."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", force=True)


def parse_bytes(text: str) -> int:
    """`1.5GB`, `800MB`, `64KB` or a plain number of bytes to bytes; powers of 1000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"a memory size is a positive number with KB, MB or GB; it is {text!r}")
    return int(float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " "))
