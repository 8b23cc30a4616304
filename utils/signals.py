"""Ending a long run cleanly."""

from __future__ import annotations

import signal
from typing import Any


class StopRequest:
    """Remembers SIGTERM or Ctrl-C, so that the step in progress ends and is saved."""

    def __init__(self):
        self.received: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.received = number
