"""From features to masks, frame by frame: context, reference frames and objects (DESIGN section 8).

    propagator = build_propagator(load_model("model.pkl", "cpu"), load_settings().TEST)
    ids = propagator.step(first_frame, first_mask)      # uint8 [H,W,3] and [H,W] to uint8 [H,W]
    for frame in frames:
        ids = propagator.step(frame)

M classes: channel 0 is the background, each further one an object; [h,w] is the feature map, [H,W] the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.colornet import ColorNet
from models.neighbours import Carried, Memory, NeighbourPropagation, PreparedFeatures
from models.upsampling import CLASSES_AT_ONCE, EdgeUpsampling, strongest
from utils.config import TestSettings
from utils.device import PRECISIONS
from utils.errors import UserError
from utils.images import normalise
from utils.masks import object_ids

CUSTOM_GAPS = (*range(1, 11), 12, 14, 16, 18, 20, 23, 26, 30, 34, 39)


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


class Prediction(NamedTuple):
    """What is known of a frame on the feature map; channel i is object `ids[i]`, channel 0 the background."""

    ids: tuple[int, ...]
    labels: Tensor  # [M,h,w] soft labels
    similarity: Tensor  # [M,h,w] mean similarity of the neighbours that a channel's labels come from, 1 where given
    given: np.ndarray | None = None  # uint8 [H,W]: what the frame's mask says for certain, with `named`
    named: tuple[int, ...] = ()  # objects that are nowhere but in `given`


class LabelPropagator:
    """Soft labels through one video, one `step` a frame. Keeps the frames with given labels and what the gaps reach.

    The reference frames of a class are those that gave its labels. Classes with the same ones are searched together.

    Args:
        neighbours: the search that carries labels from a context to a frame.
        gaps: how many frames back each frame of the recent context lies.
    """

    def __init__(self, neighbours: NeighbourPropagation, gaps: Sequence[int]):
        self._neighbours = neighbours
        self._gaps = tuple(gaps)
        self._references: list[tuple[int, ...]] = []  # of each class, oldest first
        self._given: dict[int, Memory] = {}  # frames that are somebody's reference, with the labels of all classes
        self._history: dict[int, Memory] = {}
        self._frame = 0

    def step(self, features: Tensor, given: Tensor | None = None,
             classes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """The next frame's soft labels and similarities, [M,h,w] both, from its features [C,h,w].

        `given` [m,h,w] in [0,1] are the labels of `classes`: new ones, which follow the known ones, or corrected ones.
        Left out, they are m new ones. The first frame needs them, with the background as class 0.
        """
        if given is None and not self._references:
            raise ValueError("the first frame needs given labels")
        query = self._neighbours.prepare(features)
        labels, similarity = self._predict(query, features)
        if given is not None:
            known = len(labels)
            classes = list(range(known, known + len(given)) if classes is None else classes)
            labels, similarity, classes = _with_given(labels, similarity, given, classes)
            self._references += [()] * (len(labels) - known)
            for i in classes:
                self._references[i] += (self._frame,)
            self._given[self._frame] = Memory(query, labels)
        self._history[self._frame] = Memory(query, labels)
        self._history.pop(self._frame - max(self._gaps), None)
        self._frame += 1
        return labels, similarity

    def _predict(self, query: PreparedFeatures, features: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and similarities of all known classes, each from its own context."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, references in enumerate(self._references):
            groups.setdefault(references, []).append(i)
        labels, similarity = features.new_empty(2, len(self._references), *features.shape[1:])
        for references, classes in groups.items():
            labels[classes], similarity[classes] = self._carry(query, references, classes)
        return labels, similarity

    def _carry(self, query: PreparedFeatures, references: Sequence[int], classes: list[int]) -> Carried:
        # What was wrong before the last correction must not come back: recent frames are those since then.
        _, *recent = context_frames(references[-1], self._frame, self._gaps)
        some = lambda memory: Memory(memory.features, memory.labels[classes])
        # One Memory a frame: a repeat is the same object, which the search may count instead of searching twice.
        memories = {frame: some(self._history[frame]) for frame in set(recent)}
        return self._neighbours(query, [some(self._given[frame]) for frame in references],
                                [memories[frame] for frame in recent])


def _with_given(labels: Tensor, similarity: Tensor, given: Tensor,
                classes: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Predicted labels and similarities [M,h,w] with `given` [m,h,w] in the place of `classes`; also whose they are.

    All other classes share what the given ones leave of each cell. Where known objects are corrected, the background
    takes what they give up, and so is given, too.
    """
    known, free = len(labels), 1 - given.sum(0)
    unknown = given.new_zeros(max(max(classes) + 1 - known, 0), *free.shape)
    labels, similarity = torch.cat([labels * free, unknown]), torch.cat([similarity, unknown])
    labels[classes] = given
    if min(classes) < known:
        others = [i for i in range(1, known) if i not in classes]
        labels[0] = (free - labels[others].sum(0)).clamp(min=0)
        classes = [0, *classes]
    similarity[classes] = 1
    return labels, similarity, classes


class VideoPropagator:
    """Masks of one video from the mask of its first frame: frames in, masks out. One object serves one video.

    Args:
        model: in eval mode, on the device to compute on.
        key: the feature, "color", "cls" or "merge"; `UserError` for the last two without a global head.
        size: [pixels] (width, height) that frames are resized to, multiples of 8; or their short side, as in
            `keeping_aspect`.
        neighbours, gaps: as for `LabelPropagator`.
        precision: "fp32", "bf16" or "fp16", of the encoder; features leave it as float32.
        upsample: "bilinear", or "edge", by which masks follow the colours of the frame (`EdgeUpsampling`).
        normalise: stretch the labels (`stretched`) before the strongest class of a pixel is taken.
        background: weight of the background's labels then.
    """

    def __init__(self, model: ColorNet, *, key: str, size: tuple[int, int] | int, neighbours: NeighbourPropagation,
                 gaps: Sequence[int], precision: str = "fp32", upsample: str = "bilinear",
                 normalise: bool = False, background: float = 1):
        if key != "color" and not model.has_global:
            raise UserError(f"feature {key} needs a model trained with is_dul: true, and this one has no global head; "
                            "use TEST.KEY color or another model")
        self._model, self._key, self._size, self._dtype = model, key, size, PRECISIONS[precision]
        self._device = next(model.parameters()).device
        self._labels = LabelPropagator(neighbours, gaps)
        self._edges = EdgeUpsampling() if upsample == "edge" else None
        self._normalise, self._background = normalise, background
        self._ids: list[int] = []

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None, *, correct: bool = False) -> np.ndarray:
        """The next frame, uint8 RGB [H,W,3], to its index mask, uint8 [H,W]; see `predict` for the rest."""
        return self.index_mask(self.predict(self.encode([frame])[0], mask, correct=correct), frame)

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Frames, uint8 RGB [H,W,3] each, to unit features [N,C,h,w], float32; for several frames at once."""
        (height, width), size = frames[0].shape[:2], self._size
        width, height = keeping_aspect(width, height, size) if isinstance(size, int) else size
        pictures = [torch.from_numpy(np.ascontiguousarray(frame)).to(self._device) for frame in frames]
        resized = [resize(normalise(picture.permute(2, 0, 1)), (height, width)) for picture in pictures]
        # [N,3,H,W] with the channels last in memory: convolutions are a sixth faster that way.
        batch = torch.stack(resized).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._model.embed(batch, self._key)

    @torch.inference_mode()
    def predict(self, features: Tensor, mask: np.ndarray | None = None, *, correct: bool = False) -> Prediction:
        """The next frame's features [C,h,w] to what is known of it.

        Args:
            features: of one frame, from `encode`.
            mask: uint8 [H,W], gives objects: of the first frame all; later only ids not seen before are taken.
            correct: take all ids of `mask`: those of known objects correct them from this frame on.

        Raises:
            ValueError: the first frame has no mask, or the mask is not uint8 [H,W].
        """
        if mask is None:
            return Prediction(tuple(self._ids), *self._labels.step(features))
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise ValueError(f"a mask is uint8 [H,W]; got {mask.dtype} {mask.shape}")
        first, found = not self._ids, object_ids(np.ascontiguousarray(mask))
        named = found if correct and not first else sorted({0, *found} - set(self._ids))
        self._ids += [i for i in named if i not in self._ids]
        given = self._soft_labels(mask, named, features.shape[1:]) if named else None
        labels, similarity = self._labels.step(features, given, [self._ids.index(i) for i in named])
        certain = mask if first or correct else None
        return Prediction(tuple(self._ids), labels, similarity, certain, tuple(named) if certain is not None else ())

    @torch.inference_mode()
    def index_mask(self, prediction: Prediction, frame: np.ndarray) -> np.ndarray:
        """A prediction to the index mask, uint8 [H,W], of its frame, uint8 RGB [H,W,3]; what was given stays as given.

        `ValueError` where the given mask has another size than the frame.
        """
        given = prediction.given
        if given is not None and given.shape != frame.shape[:2]:
            raise ValueError(f"a mask has the size of its frame {frame.shape[:2]}; it is {given.shape}")
        if given is not None and {0, *prediction.named} == {0, *prediction.ids}:
            return given.copy()
        labels = weighed(prediction.labels, self._normalise, self._background)
        winner = self._edges.strongest_class(labels, frame) if self._edges else \
            strongest_class(labels, frame.shape[:2])
        mask = np.array(prediction.ids, np.uint8)[winner.cpu().numpy()]
        if given is None:
            return mask
        mask[np.isin(mask, prediction.named)] = 0
        return np.where(given > 0, given, mask)

    def _soft_labels(self, mask: np.ndarray, ids: Sequence[int], shape: tuple[int, int]) -> Tensor:
        """Index mask [H,W] to the share of each id in every feature cell, [m,h,w]."""
        index = torch.from_numpy(np.ascontiguousarray(mask)).to(self._device)
        return torch.cat([resize((index == i)[None].float(), shape) for i in ids])


def build_propagator(model: ColorNet, settings: TestSettings, *, precision: str = "fp32",
                     method: str = "exact", max_memory: int | None = None) -> VideoPropagator:
    """A `VideoPropagator` by the YAML file's section TEST; `method` and `max_memory` [bytes] are the search's."""
    neighbours = NeighbourPropagation(knn=settings.KNN, radius=settings.RADIUS, temperature=settings.TEMP,
                                      method=method, max_memory=max_memory)
    size = settings.INFER_WH if any(settings.INFER_WH) else settings.INPUT_SIZE
    return VideoPropagator(model, key=settings.KEY, size=size, neighbours=neighbours, precision=precision,
                           gaps=context_gaps(settings.CXT_SIZE, settings.CUSTOM_INTERVAL), upsample=settings.UPSAMPLE,
                           normalise=settings.NORMALISE, background=settings.BACKGROUND)


def keeping_aspect(width: int, height: int, short_side: int) -> tuple[int, int]:
    """A frame's size scaled to a short side, [pixels], each side rounded up to a multiple of 16."""
    scale = short_side / min(width, height)
    return math.ceil(round(width * scale, 6) / 16) * 16, math.ceil(round(height * scale, 6) / 16) * 16


def resize(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize maps [C,H,W] bilinearly with the corners aligned, as every resizing of this method is."""
    return F.interpolate(maps[None], size=tuple(shape), mode="bilinear", align_corners=True)[0]


def stretched(labels: Tensor) -> Tensor:
    """Soft labels [M,h,w] with the range of each class stretched to [0,1], by moving and scaling it by a half at most.

    A class that has faded everywhere counts again where it is strongest; traces of one that is gone do not.
    """
    least = labels.amin((1, 2), keepdim=True).clamp(max=0.5)
    return (labels - least) / (labels.amax((1, 2), keepdim=True) - least).clamp(min=0.5)


def weighed(labels: Tensor, normalise: bool, background: float) -> Tensor:
    """Soft labels [M,h,w] as they count when the strongest class of a pixel is taken; see `VideoPropagator`."""
    labels = stretched(labels) if normalise else labels
    return torch.cat([labels[:1] * background, labels[1:]])


def strongest_class(labels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Soft labels [M,h,w] to the channel that is largest at each pixel of the full size, [H,W]; of equals the first."""
    return strongest(resize(part, shape) for part in labels.split(CLASSES_AT_ONCE))
