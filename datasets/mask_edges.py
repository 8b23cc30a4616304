"""Flat colours and their anti-aliased edges: a picture's colours to labels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datasets.object_ids import MAX_ID, Key
from utils.errors import UserError

logger = logging.getLogger(__name__)

STRAY = np.uint16(0xFFFF)  # label of a pixel whose colour is no object's
EDGE_WINDOW = np.ones((5, 5), np.uint8)  # around an anti-aliased pixel: here are the objects it mixes
OVERSHOOT = 1 / 6  # of the step between two colours: what a bicubic resize adds beyond either, at corners
MOST_STRAYS = 1 / 4  # of all pixels: a picture with more is no mask
NAMED = 5  # values or colours that a refusal lists


class Separated(NamedTuple):
    """Labels uint8 [h,w], the colour of each, label 0 being black, and how many pixels were edges."""

    labels: np.ndarray
    colors: list[tuple[int, ...]]
    strays: int


def separate(path: Path, picture: np.ndarray) -> Separated:
    """Tell objects from anti-aliased edges: colours [h,w,C], C 1 (up to 65535) or 3 (up to 255), to objects.

    A colour is an object's where it fills at least one block of 3x3 pixels (or is the only one beside black). A pixel
    of any other colour, a stray, is anti-aliasing where it lies between at least two objects' colours (black is one)
    that are within 5x5 pixels of it, or of the strays connected with it: it takes the nearest of them. Any other stray
    is a `UserError`, because nobody can say what was meant.
    """
    codes = codes_of(picture)
    # first[k] is where the k-th object's colour first fills a block; label 0 is black.
    first = block_starts(codes)
    if not len(first) and len(only := np.unique(codes[codes != 0])) == 1:
        first = np.flatnonzero(codes == only[0])[:1]
    if len(first) > MAX_ID:
        raise UserError(f"a mask has at most {MAX_ID} objects; {path} has {len(first)} colours; give every object one "
                        "colour on black")
    colors = np.vstack([np.zeros((1, picture.shape[2]), np.int32), picture.reshape(-1, picture.shape[2])[first]])
    table = np.full(codes.max() + 1, STRAY)
    table[0] = 0
    table[codes.flat[first]] = np.arange(1, len(first) + 1)
    labels = table[codes]
    strays = np.count_nonzero(labels == STRAY)
    if strays:
        _settle_edges(path, picture, labels, colors)
    return Separated(labels.astype(np.uint8), [tuple(color) for color in colors.tolist()], strays)


def codes_of(picture: np.ndarray) -> np.ndarray:
    """Colours [...,C] to a number each, int32 [...]: black is 0, and no two have the same."""
    codes = picture[..., 0].astype(np.int32)
    for channel in range(1, picture.shape[-1]):
        codes = codes << 8 | picture[..., channel]
    return codes


def block_starts(codes: np.ndarray) -> np.ndarray:
    """Flat index of the first 3x3 block of each code but 0 that fills any, in reading order; codes [h,w]."""
    across = codes[:, 1:] == codes[:, :-1]
    across = across[:, 1:] & across[:, :-1]  # three in a row
    down = codes[1:, :-2] == codes[:-1, :-2]
    solid = across[:-2] & across[1:-1] & across[2:] & down[:-1] & down[1:]
    solid[:, 1:] &= ~solid[:, :-1]  # one of each run: what is left to sort is little
    flat = np.flatnonzero(np.pad(solid, ((0, codes.shape[0] - solid.shape[0]), (0, codes.shape[1] - solid.shape[1]))))
    code, position = np.unique(codes.flat[flat], return_index=True)
    return flat[np.sort(position[code != 0])]


def _settle_edges(path: Path, picture: np.ndarray, labels: np.ndarray, colors: np.ndarray) -> None:
    """Give every `STRAY` of labels, uint16 [h,w], the object it is anti-aliasing of, in place; `UserError` for others.

    `picture` [h,w,C] has the pixels' colours, `colors` int [n,C] those of label 0, 1, ...
    """
    stray = labels == STRAY
    y, x = np.nonzero(stray)  # S pixels
    phantom = np.full(len(y), len(y) > MOST_STRAYS * labels.size)
    if not phantom.any():
        near = np.stack([cv2.dilate((labels == k).astype(np.uint8), EDGE_WINDOW)[y, x] > 0 for k in range(len(colors))],
                        axis=1)  # [S,n]
        n_runs, runs = cv2.connectedComponents(stray.astype(np.uint8), connectivity=8)
        run, near_run = runs[y, x], np.zeros((n_runs, len(colors)), bool)
        pixel, k = np.nonzero(near)
        near_run[run[pixel], k] = True
        phantom = (near_run.sum(axis=1) < 2)[run]  # strays that touch fewer than two labels mix nothing
    if not phantom.any():
        pixels = picture[y, x].astype(np.int32)
        label, between = _nearest_color(pixels, near, colors)
        far = np.flatnonzero(~between)  # a thin tip fades out farther from its object than the window reaches
        label[far], between[far] = _nearest_color(pixels[far], near_run[run[far]], colors)
        labels[y, x], phantom = label, ~between
    if phantom.any():
        raise UserError("a colour is an object's where it fills a block of 3x3 pixels, or anti-aliasing where it lies "
                        f"between two such; {path} has others: {_described(picture, y[phantom], x[phantom])}; draw "
                        "with a hard edge, or save a palette PNG, whose values are taken as they are")
    logger.info("mask %s: %d pixels of anti-aliased edges took the nearest object's colour", path, len(y))


def _nearest_color(pixels: np.ndarray, near: np.ndarray, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest to each pixel [S,C] of the colours [n,C] that `near`, bool [S,n], allows it: its index, uint16 [S].

    The lowest where two are as near. And whether the pixel lies between them in every channel, bool [S].
    """
    best, label = np.full(len(pixels), np.inf), np.full(len(pixels), STRAY)
    low, high = np.full(pixels.shape, np.inf), np.full(pixels.shape, -np.inf)
    for k, color in enumerate(colors):
        rows = np.flatnonzero(near[:, k])
        low[rows], high[rows] = np.minimum(low[rows], color), np.maximum(high[rows], color)
        distance = np.square(pixels[rows] - color, dtype=np.float64).sum(axis=1)
        closer = distance < best[rows]
        best[rows[closer]], label[rows[closer]] = distance[closer], k
    margin = OVERSHOOT * (high - low)
    return label, np.all((pixels >= low - margin) & (pixels <= high + margin), axis=1)


def _described(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> str:
    """The colours of the pixels at y, x in words, most frequent first: colour, number of pixels, place of one."""
    _, first, counts = np.unique(codes_of(picture[y, x]), return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    kind = "value " * (picture.shape[2] == 1)
    shown = [f"{kind}{color_name(picture[y[i], x[i]].tolist())} on {n} pixel{'s' * bool(n > 1)}, one at x {x[i]} "
             f"y {y[i]}" for i, n in zip(first[order[:NAMED]], counts[order[:NAMED]])]
    return "; ".join(shown) + more(len(order))


def color_name(color: Sequence[int]) -> str:
    """A colour as a user knows it: the value of a grey picture, (R, G, B) of another."""
    return str(tuple(color)) if len(color) > 1 else str(color[0])


def few(values: Iterable[Key]) -> str:
    """The first few of some values in words."""
    names = [str(value) for value in values]
    return ", ".join(names[:NAMED]) + more(len(names))


def more(n: int) -> str:
    """What a list of which only the first few are named ends in."""
    return f" and {n - NAMED} more" * (n > NAMED)
