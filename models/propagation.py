"""From frames to masks, one by one: features, objects and pixels (DESIGN section 8).

    propagator = build_propagator(load_model("model.pkl", "cpu"), load_settings().TEST)
    ids = propagator.step(first_frame, first_mask)      # uint8 [H,W,3] and [H,W] to uint8 [H,W]
    for frame in frames:
        ids = propagator.step(frame)

M classes: channel 0 is the background, each further one an object; [h,w] is the feature map, [H,W] the picture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.colornet import Branches, ColorNet
from models.label_maps import interpolated, map_of_parts, parts_of_cells, resize, upsampled_argmax, weighed
from models.label_propagation import LabelPropagator, context_gaps
from models.neighbours import NeighbourPropagation
from models.upsampling import BilateralUpsampling
from utils.config import TestSettings
from utils.device import PRECISIONS
from utils.errors import UserError
from utils.masks import object_ids

PIXELS_AT_ONCE = 8 * 864 * 480  # in an encoder's batch on a GPU: eight frames of the published size


class Prediction(NamedTuple):
    """What is known of a frame on the feature map; channel i is object `ids[i]`, channel 0 the background."""

    ids: tuple[int, ...]
    labels: Tensor  # [M,n*h,n*w] soft labels, n*n a cell
    similarity: Tensor  # [M,h,w] mean similarity of the neighbours that a channel's labels come from, 1 where given
    given: np.ndarray | None = None  # uint8 [H,W]: what the frame's mask says for certain, with `named`
    named: tuple[int, ...] = ()  # objects that are nowhere but in `given`


class Encoder(Protocol):
    """What makes features of frames, such as `models.colornet.Branches`."""

    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames in [0,1], float32 [N,3,H,W], to features [N,C,h,w] of unit length over C."""


class VideoPropagator:
    """Masks of one video from the mask of its first frame: frames in, masks out. One object serves one video at a time.

    Args:
        encoder: makes the features; a module in eval mode, or any object with `encode`.
        size: [pixels] (width, height) that frames are resized to, or what makes it of a frame's width and height.
        neighbours, gaps, first: as for `LabelPropagator`.
        device: where it is computed; by default where the encoder's parameters are, the CPU where it has none.
        precision: "fp32", "bf16" or "fp16", of the encoder; features leave it as float32.
        reduce: masks to the feature map by "bilinear" or "nearest".
        subcells: n; labels are carried for the n x n parts of each cell (`interpolated`), 1 for whole cells.
        upsample: labels to pixels: "bilinear", or "bilateral", by the colours of the frame (`BilateralUpsampling`).
        align_corners: both put the centres of the corner cells on those of the corner pixels; else borders on borders.
        min_max: bring each class's labels to the range [0,1] before the argmax.
        stretch: move and scale each class's labels towards [0,1] (`stretched`; TEST.STRETCH).
        background: weight of the background's labels then.

    Its methods raise `ValueError` for what is no frame, no mask or no feature, and change nothing then.
    """

    def __init__(self, encoder: Encoder, *, size: tuple[int, int] | Callable[[int, int], tuple[int, int]],
                 neighbours: NeighbourPropagation, gaps: Sequence[int], first: str = "repeat",
                 device: torch.device | str | None = None, precision: str = "fp32", reduce: str = "bilinear",
                 subcells: int = 1, upsample: str = "bilinear", align_corners: bool = True, min_max: bool = False,
                 stretch: bool = False, background: float = 1):
        if upsample == "bilateral" and not align_corners:
            raise UserError("UPSAMPLE bilateral aligns corners, and TEST.ALIGN_CORNERS is false; change one of them")
        if device is None:
            parameters = encoder.parameters() if isinstance(encoder, nn.Module) else iter(())
            device = next((parameter.device for parameter in parameters), "cpu")
        self._encoder, self.device, self._dtype = encoder, torch.device(device), PRECISIONS[precision]
        self._size = size
        self._labels = LabelPropagator(neighbours, gaps, first)
        self._reduce, self._subcells, self.align_corners = reduce, subcells, align_corners
        self._bilateral = BilateralUpsampling() if upsample == "bilateral" else None
        self._weigh = functools.partial(weighed, min_max=min_max, stretch=stretch, background=background)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a video."""
        self._ids: list[int] = []
        self._frame_shape: tuple[int, int] | None = None  # [H,W] of all frames of the video
        self._labels.reset()

    @torch.inference_mode()
    def delete(self, ids: Sequence[int]) -> None:
        """Forget objects: from the next frame on they are background. An id may be given again later.

        `ValueError` for 0 and for ids that are not known.
        """
        unknown = sorted(set(ids) - set(self._ids[1:]))
        if unknown:
            raise ValueError(f"objects to delete are among {self._ids[1:]}; got {unknown}")
        self._labels.delete([self._ids.index(i) for i in set(ids)])
        self._ids = [i for i in self._ids if i not in ids]

    def step(self, frame: np.ndarray, mask: np.ndarray | None = None, *, correct: bool = False) -> np.ndarray:
        """The next frame, uint8 RGB [H,W,3], to its index mask, uint8 [H,W]; see `predict` for the rest."""
        self._check_mask(mask, self._check_frames([frame]))
        return self.index_mask(self.predict(self.encode([frame])[0], mask, correct=correct), frame)

    @torch.inference_mode()
    def encode(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Frames, uint8 RGB [H,W,3] each, to unit features [N,C,h,w], float32; for several frames at once.

        `UserError` for a frame of another size than the video's others.
        """
        height, width = shape = self._check_frames(frames)
        width, height = self._size(width, height) if callable(self._size) else self._size
        pictures = [torch.from_numpy(np.ascontiguousarray(frame)).to(self.device) for frame in frames]
        resized = [resize(picture.permute(2, 0, 1).float() / 255, (height, width)) for picture in pictures]
        # [N,3,H,W] with the channels last in memory: convolutions are a sixth faster that way.
        batch = torch.stack(resized).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            features = self._encoder.encode(batch).float()
        if self._frame_shape is None:
            _check_features(features, len(frames))
        self._frame_shape = shape
        return features

    @torch.inference_mode()
    def predict(self, features: Tensor, mask: np.ndarray | None = None, *, correct: bool = False) -> Prediction:
        """The next frame's features [C,h,w] to what is known of it.

        Args:
            features: of one frame, from `encode`.
            mask: uint8 [H,W], gives objects: of the first frame all; later only ids not seen before are taken.
            correct: take all ids of `mask`: those of known objects correct them from this frame on.

        Raises:
            ValueError: the first frame has no mask, or the mask is not uint8 [H,W] of the frames' size.
        """
        self._check_mask(mask, self._frame_shape)
        if mask is None:
            labels, similarity = self._labels.step(features)
            return Prediction(tuple(self._ids), map_of_parts(labels, self._subcells), similarity)
        first = not self._ids
        named, ids = _taken(mask, self._ids, correct)
        given = self._soft_labels(mask, named, (features.shape[1], features.shape[2])) if named else None
        labels, similarity = self._labels.step(features, given, [ids.index(i) for i in named])
        self._ids = ids
        certain = mask if first or correct else None
        return Prediction(tuple(ids), map_of_parts(labels, self._subcells), similarity, certain,
                          tuple(named) if certain is not None else ())

    @torch.inference_mode()
    def carry_labels(self, features: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Soft labels of one's own in the place of masks: the next frame's labels and similarities, [M,h,w] both.

        The first frame needs `given`, [M,h,w] in [0,1], with the background as channel 0. Not to be mixed with
        `predict` in one video.
        """
        return self._labels.step(features, given)

    @property
    def basis_frame(self) -> int:
        """What `recall` wants to know of the frames so far."""
        return self._labels.basis_frame

    def reach(self, frames: int) -> range:
        """Which of the first `frames` frames the next one is compared with, besides those with masks."""
        return self._labels.reach(frames)

    @torch.inference_mode()
    def recall(self, frames: int, features: Mapping[int, Tensor], prediction: Callable[[int], Prediction],
               masks: Mapping[int, np.ndarray], basis: int, *, correct: bool = False) -> None:
        """Stand where `predict` left off after the first `frames` frames of a video, to the last bit.

        Args:
            features: by frame, from `encode`: those in `reach`, those with masks, and `basis`.
            prediction: a frame to what `predict` had returned.
            masks: by frame, all that `predict` was given, with `correct`.
            basis: `basis_frame` as it was after these frames.
        """
        ids: list[int] = []
        given = {}
        for frame in sorted(masks):
            named, ids = _taken(masks[frame], ids, correct)
            if named:
                given[frame] = [ids.index(i) for i in named]
        self._labels.recall(frames, features, lambda frame: parts_of_cells(prediction(frame).labels, self._subcells),
                            given, basis)
        self._ids = ids

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
        labels = self._weigh(interpolated(prediction.labels, self._subcells))
        channel = self._bilateral.argmax(labels, frame) if self._bilateral else \
            upsampled_argmax(labels, frame.shape[:2], self.align_corners)
        mask = _table(prediction.ids, labels.device)[channel].cpu().numpy()
        if given is None:
            return mask
        mask[np.isin(mask, prediction.named)] = 0
        return np.where(given > 0, given, mask)

    def _check_frames(self, frames: Sequence[np.ndarray]) -> tuple[int, int]:
        """The size [H,W] of the video's frames."""
        for frame in frames:
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 \
                    or frame.shape[2] != 3 or not frame.size:
                raise ValueError(f"a frame is RGB with levels 0 to 255, uint8 [H,W,3]; got {_kind(frame)}; convert it")
        shapes = [self._frame_shape or frames[0].shape[:2], *(frame.shape[:2] for frame in frames)]
        if len(set(shapes)) > 1:
            sizes = " and ".join(sorted({f"{width}x{height}" for height, width in shapes}))
            raise UserError(f"the frames of a video have one size; here are {sizes}; resize them to one")
        return shapes[0]

    def _check_mask(self, mask: np.ndarray | None, shape: tuple[int, int] | None) -> None:
        if mask is None:
            if not self._ids:
                raise ValueError("the first frame of a video needs a mask; give it, of zeros where there is no object")
        elif not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
            raise ValueError(f"a mask holds object ids, uint8 [H,W]; got {_kind(mask)}; convert it")
        elif shape and mask.shape != shape:
            raise ValueError(f"a mask has the size of its frame {shape}; it is {mask.shape}; resize it by nearest")

    def _soft_labels(self, mask: np.ndarray, ids: Sequence[int], shape: tuple[int, int]) -> Tensor:
        """Index mask [H,W] to the share of each id in every part of the cells of a map [h,w], [m,n*n,h,w]."""
        n = self._subcells
        shape = n * shape[0], n * shape[1]
        index = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device)
        if self._reduce == "nearest":
            index = F.interpolate(index[None, None].float(), shape, mode="nearest-exact")[0, 0]
            labels = torch.stack([index == i for i in ids]).float()
        else:
            labels = torch.cat([resize((index == i)[None].float(), shape, self.align_corners) for i in ids])
        return parts_of_cells(labels, n)


def _taken(mask: np.ndarray, known: Sequence[int], correct: bool) -> tuple[list[int], list[int]]:
    """The ids that a mask gives where others are `known`, and all that are known then."""
    found = object_ids(np.ascontiguousarray(mask))
    named = found if correct and known else sorted({0, *found} - set(known))
    return named, [*known, *(i for i in named if i not in known)]


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _check_features(features: Tensor, frames: int) -> None:
    """`ValueError` where an encoder's output is not what the search takes; it compares by products of unit vectors."""
    if features.ndim != 4 or len(features) != frames or 0 in features.shape:
        raise ValueError(f"features are [N,C,h,w], here with N = {frames}; the encoder gave {tuple(features.shape)}")
    off = (torch.linalg.vector_norm(features, dim=1) - 1).abs().amax()
    if not off < 1e-2:
        raise ValueError(f"features have unit length over their channels; the encoder's are off by {off:.3g}; let it "
                         "normalise them")


@functools.lru_cache(maxsize=16)
def _table(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The object id of each channel, uint8 [M]."""
    return torch.tensor(ids, dtype=torch.uint8, device=device)


def build_propagator(encoder: ColorNet | Encoder, settings: TestSettings, *, precision: str = "fp32",
                     method: str = "exact", max_memory: int | None = None) -> VideoPropagator:
    """A `VideoPropagator` by the YAML file's section TEST; `method` and `max_memory` [bytes] are the search's.

    A ColorNet gives the feature that TEST.KEY names; `UserError` where it has none of this kind.
    """
    encoder = Branches(encoder, settings.KEY) if isinstance(encoder, ColorNet) else encoder
    neighbours = NeighbourPropagation(knn=settings.KNN, radius=settings.RADIUS, temperature=settings.TEMP,
                                      window=settings.WINDOW, near_references=settings.RADIUS_ON_FIRST,
                                      method=method, max_memory=max_memory)
    size = settings.INFER_WH if any(settings.INFER_WH) else functools.partial(
        keeping_aspect, short_side=settings.INPUT_SIZE, multiples=settings.SIZE_MULTIPLES,
        rounding=settings.SIZE_ROUNDING)
    return VideoPropagator(encoder, size=size, neighbours=neighbours, precision=precision,
                           gaps=context_gaps(settings.CXT_SIZE, settings.CUSTOM_INTERVAL),
                           first=settings.FIRST_IN_RECENT, reduce=settings.REDUCE, subcells=settings.SUBCELLS,
                           upsample=settings.UPSAMPLE, align_corners=settings.ALIGN_CORNERS, min_max=settings.MIN_MAX,
                           stretch=settings.STRETCH, background=settings.BACKGROUND)


def encoder_batch(device: torch.device, size: tuple[int, int], short_side: int) -> int:
    """How many frames to encode at once, of `size` [pixels] or, where that is (0, 0), of a short side; 1 of any (0).

    A CPU is fastest with one. On a GPU memory bounds them: it grows with their pixels together.
    """
    width, height = size if any(size) else (2 * short_side, short_side)  # few videos are wider
    return 1 if device.type == "cpu" or not width else max(PIXELS_AT_ONCE // (width * height), 1)


def keeping_aspect(width: int, height: int, short_side: int, multiples: tuple[int, int] = (16, 16),
                   rounding: str = "up") -> tuple[int, int]:
    """A frame's size scaled to a short side (0: not scaled), [pixels].

    The short and the long side are rounded "up", "down" or "nearest" to multiples of `multiples`.
    """
    scale = short_side / min(width, height) if short_side else 1
    whole = {"up": math.ceil, "down": math.floor, "nearest": lambda value: math.floor(value + 0.5)}[rounding]
    short, long = (max(whole(round(side * scale, 6) / multiple), 1) * multiple
                   for side, multiple in zip(sorted((width, height)), multiples))
    return (long, short) if width > height else (short, long)
