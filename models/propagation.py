"""From features to masks, frame by frame: context, reference frames and objects (DESIGN section 8).

    propagator = build_propagator(load_model("model.pkl", "cpu"), load_settings().TEST)
    ids = propagator.step(first_frame, first_mask)      # uint8 [H,W,3] and [H,W] to uint8 [H,W]
    for frame in frames:
        ids = propagator.step(frame)

M classes: channel 0 is the background, each further one an object; [h,w] is the feature map, [H,W] the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.colornet import ColorNet
from models.neighbours import Memory, NeighbourPropagation, PreparedFeatures
from utils.config import TestSettings
from utils.device import PRECISIONS
from utils.errors import UserError
from utils.images import normalise
from utils.masks import object_ids

CUSTOM_GAPS = (*range(1, 11), 12, 14, 16, 18, 20, 23, 26, 30, 34, 39)
CLASSES_AT_ONCE = 16  # full-size soft labels held at a time, so that memory does not grow with the number of objects


def context_gaps(count: int, custom_interval: bool) -> tuple[int, ...]:
    """How many frames back the recent context lies: 1 ... count, or the first `count` of `CUSTOM_GAPS`."""
    if not custom_interval:
        return tuple(range(1, count + 1))
    if count > len(CUSTOM_GAPS):
        raise UserError(f"--custom_interval has {len(CUSTOM_GAPS)} gaps, so TEST.CXT_SIZE may be at most that; "
                        f"it is {count}; lower it or leave --custom_interval out")
    return CUSTOM_GAPS[:count]


def context_frames(reference: int, frame: int, gaps: Sequence[int]) -> list[int]:
    """The context of `frame`: the reference frame, then the recent ones, oldest first; a multiset, repeats count."""
    return [reference] + [max(reference, frame - gap) for gap in sorted(gaps, reverse=True)]


class Reference(NamedTuple):
    """A frame that brought classes with a given mask: its number, its memory (labels of these classes alone), and
    which channels of the label map they are.
    """

    frame: int
    memory: Memory
    classes: slice


class LabelPropagator:
    """Soft labels through one video, one `step` a frame. Keeps the references and what the gaps can still reach.

    Args:
        neighbours: the search that carries labels from a context to a frame.
        gaps: how many frames back each frame of the recent context lies.
    """

    def __init__(self, neighbours: NeighbourPropagation, gaps: Sequence[int]):
        self._neighbours = neighbours
        self._gaps = tuple(gaps)
        self._references: list[Reference] = []
        self._history: dict[int, Memory] = {}
        self._frame = 0
        self.classes = 0

    def step(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """The next frame's soft labels [M,h,w] from its features [C,h,w].

        `given` [m,h,w] in [0,1] are the labels of m classes that appear in this frame; they become the last m of the M
        channels. The first frame needs it, with the background as channel 0.
        """
        if given is None and not self._references:
            raise ValueError("the first frame needs given labels")
        query = self._neighbours.prepare(features)
        # Each reference predicts the classes it brought, so the label map is their predictions in a row.
        parts = [self._predict(query, reference) for reference in self._references]
        if given is not None:
            free = 1 - given.sum(0)
            parts = [*(part * free for part in parts), given]
            classes = slice(self.classes, self.classes + len(given))
            self._references.append(Reference(self._frame, Memory(query, given), classes))
            self.classes = classes.stop
        labels = torch.cat(parts)  # [M,h,w]
        self._history[self._frame] = Memory(query, labels)
        self._history.pop(self._frame - max(self._gaps), None)
        self._frame += 1
        return labels

    def _predict(self, query: PreparedFeatures, reference: Reference) -> Tensor:
        _, *recent = context_frames(reference.frame, self._frame, self._gaps)
        # One Memory a frame: a repeat is the same object, which the search may count instead of searching twice.
        memories = {frame: Memory(self._history[frame].features, self._history[frame].labels[reference.classes])
                    for frame in set(recent)}
        return self._neighbours(query, reference.memory, [memories[frame] for frame in recent])


class VideoPropagator:
    """Masks of one video from the mask of its first frame: frames in, masks out. One object serves one video.

    Args:
        model: in eval mode, on the device to compute on.
        key: the feature, "color", "cls" or "merge"; `UserError` for the last two without a global head.
        size: [pixels] (width, height) that frames are resized to, multiples of 8.
        neighbours, gaps: as for `LabelPropagator`.
        precision: "fp32", "bf16" or "fp16", of the encoder; features leave it as float32.
    """

    def __init__(self, model: ColorNet, *, key: str, size: tuple[int, int], neighbours: NeighbourPropagation,
                 gaps: Sequence[int], precision: str = "fp32"):
        if key != "color" and not model.has_global:
            raise UserError(f"feature {key} needs a model trained with is_dul: true, and this one has no global head; "
                            "use TEST.KEY color or another model")
        self._model, self._key, self._size, self._dtype = model, key, size, PRECISIONS[precision]
        self._device = next(model.parameters()).device
        self._labels = LabelPropagator(neighbours, gaps)
        self._ids: list[int] = []

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """The next frame, uint8 RGB [H,W,3], to its index mask, uint8 [H,W]; see `propagate` for `mask`."""
        return self.propagate(self.encode([frame])[0], frame.shape[:2], mask)

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Frames, uint8 RGB [H,W,3] each, to unit features [N,C,h,w], float32; for several frames at once."""
        width, height = self._size
        pictures = [torch.from_numpy(np.ascontiguousarray(frame)).to(self._device) for frame in frames]
        resized = [resize(normalise(picture.permute(2, 0, 1)), (height, width)) for picture in pictures]
        # [N,3,H,W] with the channels last in memory: convolutions are a sixth faster that way.
        batch = torch.stack(resized).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._model.embed(batch, self._key)

    @torch.inference_mode()
    def propagate(self, features: Tensor, shape: tuple[int, int], mask: np.ndarray | None = None) -> np.ndarray:
        """The next frame's features [C,h,w] to its index mask, uint8 `shape` = [H,W].

        `mask`, uint8 [H,W], gives objects: of the first frame all, which is returned as given; later only ids not
        seen before are taken. `ValueError` where the first frame has none, and for another type or shape.
        """
        if mask is not None and (mask.dtype != np.uint8 or mask.shape != tuple(shape)):
            raise ValueError(f"a mask is uint8 of its frame's size {tuple(shape)}; got {mask.dtype} {mask.shape}")
        first = not self._ids
        new = [] if mask is None else sorted({0, *object_ids(np.ascontiguousarray(mask))} - set(self._ids))
        given = self._soft_labels(mask, new, features.shape[1:]) if new else None
        labels = self._labels.step(features, given)
        self._ids += new
        if first:
            return mask.copy()
        return np.array(self._ids, np.uint8)[strongest_class(labels, shape).cpu().numpy()]

    def _soft_labels(self, mask: np.ndarray, ids: Sequence[int], shape: tuple[int, int]) -> Tensor:
        """Index mask [H,W] to the share of each id in every feature cell, [m,h,w]."""
        index = torch.from_numpy(np.ascontiguousarray(mask)).to(self._device)
        return torch.cat([resize((index == i)[None].float(), shape) for i in ids])


def build_propagator(model: ColorNet, settings: TestSettings, *, custom_interval: bool = False,
                     precision: str = "fp32", method: str = "exact", max_memory: int | None = None) -> VideoPropagator:
    """A `VideoPropagator` by the YAML file's section TEST; `method` and `max_memory` [bytes] are the search's."""
    neighbours = NeighbourPropagation(knn=settings.KNN, radius=settings.RADIUS, temperature=settings.TEMP,
                                      method=method, max_memory=max_memory)
    return VideoPropagator(model, key=settings.KEY, size=settings.INFER_WH, neighbours=neighbours,
                           gaps=context_gaps(settings.CXT_SIZE, custom_interval), precision=precision)


def resize(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize maps [C,H,W] bilinearly with the corners aligned, as every resizing of this method is."""
    return F.interpolate(maps[None], size=tuple(shape), mode="bilinear", align_corners=True)[0]


def strongest_class(labels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Soft labels [M,h,w] to the channel that is largest at each pixel of the full size, [H,W]; of equals the first."""
    best = winner = None
    for start in range(0, len(labels), CLASSES_AT_ONCE):
        value, index = resize(labels[start:start + CLASSES_AT_ONCE], shape).max(0)  # [H,W] both
        if best is None:
            best, winner = value, index
        else:
            better = value > best
            best, winner = torch.where(better, value, best), torch.where(better, index + start, winner)
    return winner
