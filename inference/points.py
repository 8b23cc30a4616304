"""Points through a video: each is a channel of labels, a heat map on the feature map that the same search carries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.points import Point, PointRow, write_rows
from datasets.video import OwnVideo
from inference.run import Preparation
from inference.writer import VideoWriter
from models.propagation import VideoPropagator
from utils.files import replacing
from utils.iterators import ahead, batches
from utils.overlay import PALETTES

# As in the evaluation of keypoints by CRW's release.
SIGMA = 0.5  # of a given point's Gaussian, which ends at three of them [feature cells]
STRONGEST = 3  # cells whose weighted mean is a point's position

VISIBLE_FROM = 0.1  # label of a point's strongest cell; a heat map that is spread wider has lost it
DOT_SHARE = 1 / 120  # of the picture's height: a point's radius

logger = logging.getLogger(__name__)


def carry_points(video: OwnVideo, points: Sequence[Point], new_propagator: Callable[[], VideoPropagator], *,
                 batch_size: int = 1) -> Iterator[tuple[np.ndarray, list[PointRow]]]:
    """Every frame of a video, uint8 RGB [H,W,3], with what is found of the points; a point begins where it is given."""
    encoder, size = new_propagator(), video.size
    groups = {frame: (new_propagator(), [point for point in points if point.frame == frame])
              for frame in sorted({point.frame for point in points})}
    for batch in batches(ahead(enumerate(video.frames()), 2 * batch_size + 4), batch_size):
        encoded = encoder.encode([frame for _, frame in batch])
        for (number, frame), features in zip(batch, encoded):
            rows = []
            for start, (propagator, own) in groups.items():
                if number == start:
                    maps = heat_maps(own, size, features, propagator.align_corners)
                    propagator.carry_labels(features, torch.cat([(1 - maps.sum(0, keepdim=True)).clamp(min=0), maps]))
                    found = [(point.x, point.y, 1.0, True) for point in own]
                elif number > start:
                    labels, similarity = propagator.carry_labels(features)
                    found = locate(labels[1:], similarity[1:], size, propagator.align_corners)
                else:
                    continue
                rows += [PointRow(number, float(video.time(number)), point.name, *one)
                         for point, one in zip(own, found)]
            yield frame, rows


def write_points(video: OwnVideo, points: Sequence[Point], table: Path, prepare: Preparation, *, movie: bool,
                 palette: str = "davis", batch_size: int = 1) -> None:
    """Carry points and write the `table` of them, CSV, and with `movie` a video beside it that shows them, .mp4."""
    names, rows = [point.name for point in points], []
    with ExitStack() as stack:
        if movie:
            file = stack.enter_context(replacing(table.with_suffix(".mp4")))
            writer = VideoWriter(file, video.size, video.rate, pixel_aspect=video.pixel_aspect)
            stack.callback(writer.close)
        found = carry_points(video, points, prepare(video.frames(), len(video)), batch_size=batch_size)
        for number, (frame, own) in enumerate(tqdm(found, total=len(video), unit="frame", disable=None)):
            rows += own
            if movie:
                writer.write(draw_points(frame, own, names, palette=palette), video.time(number))
    write_rows(table, rows)
    logger.info("%d points in %d frames are in %s", len(points), len(video), table)


def heat_maps(points: Sequence[Point], size: tuple[int, int], features: Tensor, align_corners: bool) -> Tensor:
    """Given points of frames of `size` (width, height) as labels [P,h,w] of `features` [C,h,w]."""
    height, width = features.shape[1:]
    scale, shift = _cells(size, (width, height), align_corners)
    middles = torch.tensor([(point.x, point.y) for point in points], dtype=torch.float64) * scale + shift
    offset_x, offset_y = (torch.arange(length) - middle[:, None]
                          for length, middle in zip((width, height), middles.unbind(1)))
    kernel = [torch.where(offset.abs() <= 3 * SIGMA, torch.exp(-offset ** 2 / (2 * SIGMA ** 2)), 0)
              for offset in (offset_y, offset_x)]
    return torch.einsum("ph,pw->phw", *kernel).to(features)


def locate(labels: Tensor, similarity: Tensor, size: tuple[int, int],
           align_corners: bool) -> list[tuple[float, float, float, bool]]:
    """Labels and similarities [P,h,w] to each point's x, y [pixels of `size`], similarity, and whether it is visible.

    The position is the mean of the strongest cells weighted by their labels; NaN where all labels are 0.
    """
    height, width = labels.shape[1:]
    values, cells = labels.flatten(1).topk(min(STRONGEST, height * width))
    weights = values / values.sum(1, keepdim=True)  # NaN where nothing is left
    places = torch.stack([cells % width, cells // width], dim=-1)
    scale, shift = _cells(size, (width, height), align_corners)
    middles = (places.double() * weights[..., None]).sum(1).cpu()
    middles = ((middles - shift) / scale).clamp(min=torch.zeros(2), max=torch.tensor(size) - 1)
    similar = (similarity.flatten(1).gather(1, cells) * weights).sum(1)
    return [(*place, alike, peak >= VISIBLE_FROM)
            for place, alike, peak in zip(middles.tolist(), similar.tolist(), values[:, 0].tolist())]


def draw_points(frame: np.ndarray, rows: Sequence[PointRow], order: Sequence[str], *,
                palette: str = "davis") -> np.ndarray:
    """A copy of a frame with a dot at each visible point; its place in `order` says its colour."""
    picture = np.array(frame, order="C")
    radius = max(2, round(len(frame) * DOT_SHARE))
    for row in rows:
        if row.visible:
            middle = round(row.x), round(row.y)
            color = PALETTES[palette][order.index(row.point) % 255 + 1].tolist()
            cv2.circle(picture, middle, radius + max(1, radius // 3), (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(picture, middle, radius, color, -1, cv2.LINE_AA)
    return picture


def _cells(size: tuple[int, int], cells: tuple[int, int], align_corners: bool) -> tuple[Tensor, Tensor]:
    """By what (x, y) [pixels] is multiplied, and what is added then, to count in cells of the feature map."""
    pixels, places = torch.tensor(size, dtype=torch.float64), torch.tensor(cells, dtype=torch.float64)
    if align_corners:
        return (places - 1).clamp(min=1e-9) / (pixels - 1).clamp(min=1), torch.zeros(2, dtype=torch.float64)
    return places / pixels, (places / pixels - 1) / 2
