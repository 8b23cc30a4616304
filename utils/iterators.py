"""Iterating in groups and ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """Pass `items` on, up to `count` of the following ones being made by a thread meanwhile; its errors are raised."""
    iterator, done = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, iterator, done) for _ in range(count))
        while (item := pending.popleft().result()) is not done:
            pending.append(pool.submit(next, iterator, done))
            yield item
