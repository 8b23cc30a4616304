"""Fixtures that several files use."""

from __future__ import annotations

import logging
import signal

import pytest
import torch


@pytest.fixture
def restored_process():
    """For tests that call a command's `main` in this process: one thread, and signals and log handlers put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads, root = torch.get_num_threads(), logging.getLogger()
    state = root.level, root.handlers[:]
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    root.setLevel(state[0])
    root.handlers[:] = state[1]
