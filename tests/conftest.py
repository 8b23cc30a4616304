"""Fixtures that several files use."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal

import pytest
import torch

import infer_vos_dul

torch.set_num_threads(1)  # tensors here are small, and threads that wait for each other on a busy machine cost minutes


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on the CPU, with what they start; those marked `gpu`, which compare with it, by `pytest -m gpu`."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """What is imported lives as long as the process: the collector of garbage need not walk it again and again."""
    gc.freeze()


@pytest.fixture(scope="module")
def models_read_once():
    """For tests that call `infer_vos_dul.main` many times: it reads each of their models once, and changes none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_vos_dul, "load_model", functools.cache(infer_vos_dul.load_model))
        yield


@pytest.fixture
def restored_process():
    """For tests that call a command's `main` in this process: signals and log handlers are put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root = logging.getLogger()
    state = root.level, root.handlers[:]
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    root.setLevel(state[0])
    root.handlers[:] = state[1]
