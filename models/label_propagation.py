"""Soft labels through a video: context, reference frames and classes (DESIGN section 8).

M classes: channel 0 is the background, each further one an object; [h,w] is the feature map. Labels are [M,h,w], or
[M,P,h,w] with several for each position of it, which its features carry together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.frame_store import PreparedFeatures
from models.neighbours import Carried, Memory, NeighbourPropagation
from utils.errors import UserError

CUSTOM_GAPS = (*range(1, 11), 12, 14, 16, 18, 20, 23, 26, 30, 34, 39)


def context_gaps(count: int, custom_interval: bool) -> tuple[int, ...]:
    """How many frames back the recent context lies: 1 ... count, or the first `count` of `CUSTOM_GAPS`."""
    if not custom_interval:
        return tuple(range(1, count + 1))
    if count > len(CUSTOM_GAPS):
        raise UserError(f"--custom_interval has {len(CUSTOM_GAPS)} gaps, so TEST.CXT_SIZE may be at most that; "
                        f"it is {count}; lower it or leave --custom_interval out")
    return CUSTOM_GAPS[:count]


def context_frames(reference: int, frame: int, gaps: Sequence[int], first: str = "repeat") -> list[int]:
    """The context of `frame`: the reference frame, then the recent ones, oldest first; a multiset, repeats count.

    `first` says how often the reference stands among the recent ones: "repeat" for each gap that reaches it or what
    lies before it, "once", or "never".
    """
    recent = [frame - gap for gap in sorted(gaps, reverse=True)]
    if first == "repeat":
        return [reference] + [max(reference, number) for number in recent]
    return [reference] + [number for number in recent if number > reference or (number, first) == (reference, "once")]


class Group(NamedTuple):
    """Classes with the same reference frames; made where labels are given, as a GPU copies lists at each use."""

    references: tuple[int, ...]
    classes: Tensor  # [m] int64
    leading: bool  # they are the first m

    def part_of(self, memory: Memory) -> Memory:
        """A frame with the labels of these classes alone."""
        labels = memory.labels
        return Memory(memory.features, labels[:len(self.classes)] if self.leading
                      else labels.index_select(0, self.classes))


class LabelPropagator:
    """Soft labels through one video, one `step` a frame. Keeps the frames with given labels and what the gaps reach.

    The reference frames of a class are those that gave its labels. Classes with the same ones are searched together.

    Args:
        neighbours: the search that carries labels from a context to a frame.
        gaps: how many frames back each frame of the recent context lies.
        first: how often a reference stands in it, as in `context_frames`.
    """

    def __init__(self, neighbours: NeighbourPropagation, gaps: Sequence[int], first: str = "repeat"):
        self._neighbours, self._first = neighbours, first
        self._gaps = tuple(gaps)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a video."""
        self._references: list[tuple[int, ...]] = []  # of each class, oldest first
        self._groups: list[Group] = []
        self._given: dict[int, Memory] = {}  # frames that are somebody's reference, with the labels of all classes
        self._history: dict[int, Memory] = {}
        self._frame = 0

    def step(self, features: Tensor, given: Tensor | None = None,
             classes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """The next frame's soft labels and similarities [M,h,w] from its features [C,h,w].

        `given`, m of the M in [0,1], are the labels of `classes`: new ones, which follow the known ones, or corrected
        ones. Left out, they are m new ones. The first frame needs them, with the background as class 0. An error leaves
        everything as it was.
        """
        if given is None and not self._references:
            raise ValueError("the first frame needs given labels")
        query = self._neighbours.prepare(features)
        shape = given.shape[1:] if given is not None else self._history[self._frame - 1].labels.shape[1:]
        labels, similarity = self._predict(query, features, shape)
        if given is not None:
            known = len(labels)
            classes = list(range(known, known + len(given)) if classes is None else classes)
            labels, similarity, classes = _with_given(labels, similarity, given, classes)
            self._give(self._frame, Memory(query, labels), classes)
        self._history[self._frame] = Memory(query, labels)
        self._history.pop(self._frame - max(self._gaps), None)
        self._frame += 1
        return labels, similarity

    @property
    def basis_frame(self) -> int:
        """The frame whose features the bounds of the search rest on; it changes in the course of a video."""
        return max(self._frame - 1 - self._history[self._frame - 1].features.store.age, 0)

    def reach(self, frames: int) -> range:
        """Which of the first `frames` frames are in reach of the gaps for the next one."""
        return range(max(frames - max(self._gaps), 0), frames)

    def recall(self, frames: int, features: Mapping[int, Tensor], labels: Callable[[int], Tensor],
               given: Mapping[int, Sequence[int]], basis: int) -> None:
        """Stand where `step` left off after `frames` frames.

        Args:
            features: [C,h,w] by frame: those in reach, those of `given`, and `basis`, the `basis_frame` of then.
            labels: a frame to the labels that `step` had returned.
            given: the classes that labels were given of, by frame.
        """
        self.reset()
        anchor = self._neighbours.prepare(features[basis])  # the first frame of a store gives it its basis
        for frame in sorted({*given, *self.reach(frames)}):
            memory = Memory(self._neighbours.prepare(features[frame]), labels(frame))
            if frame in given:
                corrected = min(given[frame]) < len(self._references)
                self._give(frame, memory, [0, *given[frame]] if corrected else given[frame])  # as in `_with_given`
            if frame in self.reach(frames):
                self._history[frame] = memory
        self._frame = frames
        anchor.store.age = frames - 1 - basis

    def delete(self, classes: Sequence[int]) -> None:
        """Forget classes other than 0; in all frames kept the background takes their labels. Later ones move up."""
        gone, device = set(classes), self._history[self._frame - 1].labels.device
        for frames in (self._given, self._history):
            for frame, (features, labels) in frames.items():
                kept = labels[[i for i in range(len(labels)) if i not in gone]]  # an earlier frame knows fewer classes
                kept[0] += labels[[i for i in gone if i < len(labels)]].sum(0)
                frames[frame] = Memory(features, kept)
        self._refer([own for i, own in enumerate(self._references) if i not in gone], device)
        self._given = {frame: self._given[frame] for frame in {frame for own in self._references for frame in own}}

    def _give(self, frame: int, memory: Memory, classes: Sequence[int]) -> None:
        """Make a frame a reference of `classes`, of which labels were given there."""
        self._given[frame] = memory
        references = self._references + [()] * (len(memory.labels) - len(self._references))
        self._refer([own + (frame,) * (i in classes) for i, own in enumerate(references)], memory.labels.device)

    def _refer(self, references: list[tuple[int, ...]], device: torch.device) -> None:
        """Take `references` of each class, and prepare what every frame from now on needs of them on `device`."""
        self._references = references
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, own in enumerate(references):
            groups.setdefault(own, []).append(i)
        self._groups = [Group(own, torch.tensor(classes, device=device), max(classes) + 1 == len(classes))
                        for own, classes in groups.items()]

    def _predict(self, query: PreparedFeatures, features: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Labels, of this shape each, and similarities of all known classes, each from its own context."""
        labels = features.new_empty(len(self._references), *shape)
        similarity = features.new_empty(len(self._references), *features.shape[1:])
        for group in self._groups:
            carried = self._carry(query, group)
            labels.index_copy_(0, group.classes, carried.labels)
            similarity.index_copy_(0, group.classes, carried.similarity.expand(len(group.classes), -1, -1))
        return labels, similarity

    def _carry(self, query: PreparedFeatures, group: Group) -> Carried:
        # What was wrong before the last correction must not come back: recent frames are those since then.
        _, *recent = context_frames(group.references[-1], self._frame, self._gaps, self._first)
        # One Memory a frame: a repeat is the same object, which the search may count instead of searching twice.
        memories = {frame: group.part_of(self._history[frame]) for frame in set(recent)}
        return self._neighbours(query, [group.part_of(self._given[frame]) for frame in group.references],
                                [memories[frame] for frame in recent])


def _with_given(labels: Tensor, similarity: Tensor, given: Tensor,
                classes: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Predicted labels and similarities, M each, with the m labels `given` in the place of `classes`; also whose they
    are.

    All other classes share what the given ones leave of each cell. Where known objects are corrected, the background
    takes what they give up, and so is given, too.
    """
    known, free = len(labels), 1 - given.sum(0)
    unknown = max(max(classes) + 1 - known, 0)
    labels, similarity = (torch.cat([maps, maps.new_zeros(unknown, *maps.shape[1:])])
                          for maps in (labels * free, similarity))
    labels[classes] = given
    if min(classes) < known:
        others = [i for i in range(1, known) if i not in classes]
        labels[0] = (free - labels[others].sum(0)).clamp(min=0)
        classes = [0, *classes]
    similarity[classes] = 1
    return labels, similarity, classes
