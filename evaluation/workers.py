"""Work that is spread over processes, none of which outlives the one that started it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from utils.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """`map`, in this process or in several, which end with it."""
    if workers <= 1:
        yield from map(function, items)
        return
    try:
        with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
            yield from pool.map(function, items)
    except BrokenProcessPool:
        raise UserError(f"one of the {workers} processes was ended from outside, probably for want of memory; "
                        "use fewer --workers") from None


def _start_worker() -> None:
    """Let a worker end with the process that started it, however that ends, and leave Ctrl-C to it."""
    cv2.setNumThreads(0)  # OpenCV's own threads do not survive a fork, and would fight over the processors
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker has one

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
