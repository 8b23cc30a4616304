"""Iterating in groups and ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice, repeat
from typing import TypeVar

Item = TypeVar("Item")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def each_within(context: Callable[[], AbstractContextManager], items: Iterable[Item]) -> Iterator[Item]:
    """Pass `items` on; each one is waited for within a new `context()`."""
    iterator = iter(items)
    while True:
        with context():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """Pass `items` on, up to `count` of the following ones being made by a thread meanwhile; its errors are raised."""
    iterator, done = iter(items), object()
    # Only one thread: an iterator is asked for one item at a time.
    for item in called_ahead(repeat(partial(next, iterator, done)), count, threads=1):
        if item is done:
            break
        yield item


def called_ahead(calls: Iterable[Callable[[], Item]], count: int, *, threads: int) -> Iterator[Item]:
    """Results of `calls` in order, up to `count` of the following ones being made by threads meanwhile.

    A call's error is raised in its place. Who stops early leaves the calls that were not begun alone.
    """
    calls = iter(calls)
    pool = ThreadPoolExecutor(threads)
    try:
        pending = deque(pool.submit(call) for call in islice(calls, count + 1))
        while pending:
            result = pending.popleft().result()
            yield result
            pending.extend(pool.submit(call) for call in islice(calls, 1))
    finally:
        pool.shutdown(cancel_futures=True)
