"""What a program says while it runs."""

from __future__ import annotations

import logging


def start_console(level: int = logging.INFO) -> None:
    """Messages of this program to standard error, one a line."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", force=True)
