"""Ending a long run: cleanly at the first signal, at once at the second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

ECHO = 1.0  # [seconds] torchrun passes on a signal that the terminal has sent to all processes already


class Stopped(KeyboardInterrupt):
    """The end that signal `number` asked for; `words` say where it leaves the user."""

    def __init__(self, number: int, words: str = "interrupted"):
        super().__init__(words)
        self.number = number


class StopRequest:
    """What SIGTERM and Ctrl-C do: raise `Stopped`, or within `deferred` be noted in `received`. A second one ends
    the process where it stands.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred, self._since = False, 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    @contextmanager
    def deferred(self, defer: bool = True) -> Iterator[None]:
        """Note a signal within the block and go on: a step in progress ends and is saved."""
        before, self._deferred = self._deferred, defer
        try:
            yield
        finally:
            self._deferred = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Stopped` within the block of `deferred`, for what may take for ever and leaves nothing undone."""
        if self.received is not None:
            raise Stopped(self.received)
        with self.deferred(False):
            yield

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            if not self._deferred:
                raise Stopped(number)
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self._since > ECHO:
            end_now(128 + number)


def end_now(status: int) -> NoReturn:
    """End the process and those that it started, whatever they wait for."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    end_children()
    os._exit(status)


def end_children() -> None:
    """Kill the processes that this one has started: some ignore signals, and the interpreter's end would join them."""
    children = multiprocessing.active_children()
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler makes an error of a loader process that ends
    for child in children:
        child.kill()
