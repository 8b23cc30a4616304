"""Which frames are best looked at next: where a correction is expected to gain most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from inference.confidence import FOUND_ABOVE


def doubtful_frames(confidence: Mapping[int, Mapping[int, float]], given: Iterable[int]) -> list[int]:
    """One frame for each object and each span between two masks given in which it falls below `FOUND_ABOVE`.

    Args:
        confidence: of each object, in [0,1] by frame.
        given: frames that have masks of a person.

    Returns:
        frame numbers, each once, in order.
    """
    marks = sorted(given)
    found = set()
    for of_object in confidence.values():
        known = sorted(of_object)
        spans = [[f for f in known if start <= f < stop] for start, stop in zip(marks, [*marks[1:], np.inf])]
        spans += [[f for f in reversed(known) if f <= marks[0]]] if marks else []  # carried backward from there
        for span in spans:
            values = np.array([of_object[f] for f in span])
            if len(span) > 1 and values[1:].min() < FOUND_ABOVE:
                found.add(span[1 + int(np.argmax(expected_gain(values)[1:]))])
    return sorted(found)


def expected_gain(values: np.ndarray) -> np.ndarray:
    """What a correction of each frame of a span is expected to add, from confidence [N] that begins at a mask given.

    After a correction at i confidence falls as it has fallen after the span's beginning, instead of going on as it is:
    a gain of sum(values[:N-i]) - sum(values[i:]). It counts by the confidence at i, since a correction takes
    the place of what came before it, and where the object is hidden it has little to show.
    """
    sums = np.concatenate([[0], np.cumsum(values)])
    return values * (sums[len(values):0:-1] - (sums[-1] - sums[:-1]))
