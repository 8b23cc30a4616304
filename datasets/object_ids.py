"""Ids of the objects that a run's mask files show, the same in all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import UserError
from utils.masks import DAVIS_PALETTE, object_ids

logger = logging.getLogger(__name__)

# What a file says an object is: its id, a colour (R, G, B in [0,255]), a name; None: just the object.
Key = int | tuple[int, ...] | str | None

MAX_ID = 255
DAVIS_IDS: dict[Key, int] = {tuple(color): k for k, color in enumerate(DAVIS_PALETTE.tolist()) if k}
SAME_PLACE = 1 / 2  # of the smaller of two objects: overlap that makes a new one suspect of being the old one


class Numbered(str):
    """A name that several objects of a file have, with a number that only the order in the file gives it."""


class Objects(NamedTuple):
    """What a file shows: labels uint8 [h,w], 0 is background, and what it says of every other label."""

    labels: np.ndarray
    keys: dict[int, Key]


class ObjectIds:
    """The ids of a run's objects by what its files call them; ids and masks of earlier frames are remembered.

    A colour of the DAVIS palette is its index in every file, because results are written in these colours. Any other
    colour, and a name, has the lowest id that is free when it first appears. An object that a file says nothing of is
    object 1.
    """

    def __init__(self) -> None:
        self._ids: dict[Key, int] = {}
        self._masks: dict[int, np.ndarray] = {}  # of each object the last one given
        self._new: dict[int, Key] = {}  # of the frame that is being read

    def of(self, keys: Sequence[Key], path: Path) -> list[int]:
        """The ids of one file's objects.

        Raises:
            UserError: more than 255 objects in the run, two of the file that are one, or one that may be any.
        """
        fixed = {key: self._fixed(key, path) for key in keys}
        taken = {k for k in (*fixed.values(), *self._ids.values(), *self._masks) if k}
        ids = {key: self._add(key, taken, path) if k is None else k for key, k in fixed.items()}
        for key, twin in combinations(ids, 2):
            if ids[key] == ids[twin]:
                raise UserError(f"an object has one colour or name in a file; {path} shows object {ids[key]} as {key} "
                                f"and as {twin}; use one of the two")
        return [ids[key] for key in keys]

    def settle(self, mask: np.ndarray, path: Path) -> None:
        """Remember the objects of a frame's mask, uint8 [H,W], the frames given in order.

        `UserError` where a colour or name that is new lies where an object that the mask lacks was last.
        """
        here = object_ids(mask)
        for k, key in self._new.items():
            new = mask == k
            for old in self._masks.keys() - set(here):
                before = self._masks[old] == old
                if np.count_nonzero(new & before) > SAME_PLACE * min(new.sum(), before.sum()):
                    raise UserError(f"an object keeps its colour or name; {path} has a new one, {key}, where object "
                                    f"{old} was in an earlier mask; if it is object {old}, give it the colour "
                                    f"{tuple(DAVIS_PALETTE[old].tolist())}, else save a palette PNG whose value is {k}")
        self._new.clear()
        self._masks.update(dict.fromkeys(here, mask))

    def _fixed(self, key: Key, path: Path) -> int | None:
        """The id that a key has already, or by its kind."""
        if key is None:
            if self._masks.keys() - {1}:
                raise UserError(f"{path} does not say which object it shows, and the masks before it have objects "
                                f"{', '.join(map(str, sorted(self._masks)))}; {_fix(sorted(self._masks))}")
            return 1
        if isinstance(key, int):
            return key
        if isinstance(key, Numbered) and self._masks:
            raise UserError(f"the masks of later frames say which object is which; {path} has {key}, and the order in "
                            "a file says nothing; give objects a track_id (COCO), a group_id (LabelMe) or names")
        return DAVIS_IDS.get(key) or self._ids.get(key)

    def _add(self, key: Key, taken: set[int], path: Path) -> int:
        if self._masks and not self._ids:
            raise UserError(f"{path} has an object {key}, and the masks before it know their objects "
                            f"({', '.join(map(str, sorted(self._masks)))}) by other signs; {_fix(sorted(self._masks))}")
        k = next((k for k in range(1, MAX_ID + 1) if k not in taken), None)
        if k is None:
            raise UserError(f"a run has at most {MAX_ID} objects, and those of its masks are more; use the same colour "
                            "for the same object in all files")
        taken.add(k)
        self._ids[key], self._new[k] = k, key
        logger.info("object %d is %s", k, key)
        return k


def key_of(color: tuple[int, ...]) -> Key:
    """What the colour of a file's only object says of it: white and black nothing."""
    if len(set(color)) == 1 and color[0] in (0, 255, 0xFFFF):
        return None
    return color if len(color) == 3 else color[0]


def _fix(known: Sequence[int]) -> str:
    colors = ", ".join(f"{k} is {tuple(DAVIS_PALETTE[k].tolist())}" for k in known[:3])
    return f"draw in the colours of the results ({colors}), or save a palette PNG whose values are the ids"
