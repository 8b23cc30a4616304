"""Masks as people have them: palette, grey and colour pictures of a frame's objects to one index mask of its size.

What a value means is told by the kind of the file. A palette PNG holds object ids, taken as they are. A grey picture
holds object ids or one white object, a colour picture one object a colour on black; edges of both may be anti-aliased
(`_separate` has the rule). Ids are 1 to 255, 0 is background.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.errors import UserError
from utils.masks import DAVIS_PALETTE, object_ids
from utils.pictures import Picture, read_picture

logger = logging.getLogger(__name__)

Colour = tuple[int, int, int]  # RGB in [0,255]

MAX_ID = 255
DAVIS_IDS = {tuple(colour): k for k, colour in enumerate(DAVIS_PALETTE.tolist())}
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16L", "I;16B"}
COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX"}
STRAY = np.uint16(0xFFFF)  # label of a pixel whose colour is no object's
EDGE_REACH = 2  # from an anti-aliased pixel to the objects it mixes [pixels]: a 5x5 neighbourhood
OVERSHOOT = 1 / 6  # of the step between two colours: what a bicubic resize adds beyond either, at corners
MOST_STRAYS = 1 / 4  # of all pixels: a picture with more is no mask
NAMED = 5  # values or colours that a refusal lists


class ColourIds:
    """Object ids of colours, the same for all files of a run.

    A colour of the DAVIS palette has its index there, so that a colour copy of a palette mask keeps its ids; any other
    has the lowest id that is free when it first appears.
    """

    def __init__(self) -> None:
        self._ids: dict[Colour, int] = {}

    def of(self, colours: Sequence[Colour]) -> list[int]:
        """The ids of one file's colours, black not among them; `UserError` where a run has more than 255."""
        new = [colour for colour in colours if colour not in self._ids]
        for colour in sorted(new, key=lambda colour: colour not in DAVIS_IDS):  # they have a claim to certain ids
            self._ids[colour] = self._free(DAVIS_IDS.get(colour))
            logger.info("object %d is the colour %s", self._ids[colour], colour)
        return [self._ids[colour] for colour in colours]

    def _free(self, wanted: int | None) -> int:
        free = sorted(set(range(1, MAX_ID + 1)) - set(self._ids.values()))
        if not free:
            raise UserError(f"a run has at most {MAX_ID} objects, and the colours of its masks are more; "
                            "use the same colour for the same object in all files")
        return wanted if wanted in free else free[0]


class MaskFile(NamedTuple):
    """A file that was read: its path and its objects, uint8 [h,w], not yet of the frame's size."""

    path: Path
    ids: np.ndarray


class _Objects(NamedTuple):
    """A file's objects: labels uint8 [h,w], 0 is background, and the value or colour of every other label."""

    labels: np.ndarray
    values: dict[int, int | Colour]


def read_mask_files(paths: Sequence[Path], shape: tuple[int, int], colours: ColourIds) -> np.ndarray:
    """Read the files given for one frame of `shape` (height, width) to its index mask, uint8 [H,W].

    Raises:
        UserError: whatever `load_masks` and `fit_masks` refuse.
    """
    return fit_masks(load_masks(paths, colours), shape)


def load_masks(paths: Sequence[Path], colours: ColourIds) -> list[MaskFile]:
    """Read the files given for one frame; the frame itself need not be known yet.

    The objects of a single file have the ids that it gives them; several files hold one object each, which become
    1, 2, ... in the order given. `colours` gives the ids of colours: hand the same to all frames of a run.

    Raises:
        UserError: a file is missing, damaged, animated or lossy, has no object, more than 255 or colours that are no
            object's, or is one of several and has more than one object.
    """
    if len(paths) == 1:
        labels, values = _read(paths[0])
        coloured = [value for value in values.values() if isinstance(value, tuple)]
        ids = dict(zip(coloured, colours.of(coloured)))
        table = np.zeros(256, np.uint8)
        for label, value in values.items():
            table[label] = ids.get(value, value)
        return [MaskFile(paths[0], table[labels])]
    files = []
    for number, path in enumerate(paths, 1):
        labels, values = _read(path)
        if len(values) > 1:
            raise UserError(f"where several masks are given for a frame each holds one object; {path} has "
                            f"{len(values)} ({_few(values.values())}); give it alone or split it")
        files.append(MaskFile(path, np.where(labels > 0, np.uint8(number), np.uint8(0))))
    return files


def fit_masks(files: Sequence[MaskFile], shape: tuple[int, int]) -> np.ndarray:
    """Lay the files of one frame over each other at its `shape` (height, width): uint8 [H,W], later files on top.

    A file of another size is resized (nearest) and overlaps are resolved, both with a warning; an object that is
    covered whole or too small for the size is a `UserError`.
    """
    H, W = shape
    mask = np.zeros(shape, np.uint8)
    for path, ids in files:
        if ids.shape != shape:
            logger.warning("mask %s is %dx%d and its frame %dx%d: it is resized", path, *ids.shape[::-1], W, H)
            ids = cv2.resize(ids, (W, H), interpolation=cv2.INTER_NEAREST_EXACT)
        covered = np.count_nonzero((mask > 0) & (ids > 0))
        if covered:
            logger.warning("mask %s covers %d pixels of those before it: they are its object's", path, covered)
        np.copyto(mask, ids, where=ids > 0)
    left = set(object_ids(mask))
    for path, ids in files:
        lost = [k for k in object_ids(ids) if k not in left]
        if lost:
            raise UserError(f"every object of a mask has at least one pixel of the frame; object {lost[0]} of {path} "
                            f"has none at {W}x{H}; draw it larger, or give the file that covers it first")
    return mask


def _read(path: Path) -> _Objects:
    """A file's objects by the rule for its kind; `UserError` for what `load_masks` refuses."""
    file = read_picture(path)
    _refuse_unfit(path, file)
    holds_ids = _holds_ids(file)
    picture = _pixels(file)
    if holds_ids:
        found = _Objects(picture[..., 0], {k: k for k in object_ids(picture[..., 0])})
    elif picture.shape[2] == 1:
        found = _grey_objects(path, picture)
    else:
        found = _separate(path, picture)
    if not found.values:
        raise UserError(f"a mask has at least one object; {path} is all background (0, black or transparent); "
                        "draw the object into it")
    if found.labels.all():
        logger.warning("mask %s has no background (0 or black): every pixel is an object's", path)
    return found


def _refuse_unfit(path: Path, file: Picture) -> None:
    """`UserError` for a picture whose values cannot be the ones that were drawn, or that is more than one picture."""
    if file.pictures > 1:
        raise UserError(f"a mask is one picture; {path} has {file.pictures}; save the one that is meant as PNG")
    if file.lossy or file.image.mode not in GREY_MODES | COLOUR_MODES:
        raise UserError("a mask is a palette, grey, RGB or RGBA picture stored without loss (PNG, BMP, GIF, PPM, TIFF, "
                        f"lossless WebP), because lossy formats mix its colours; {path} is {file}; export it again "
                        "from where it was drawn, as PNG")


def _holds_ids(file: Picture) -> bool:
    """Whether values are ids as they are; programs that write other palette formats order the palette as they like."""
    return file.image.mode == "P" and file.format == "PNG"


def _pixels(file: Picture) -> np.ndarray:
    """A picture's pixels [h,w,C]: C is 1 for ids and grey values and 3 for colours, alpha composited over black."""
    image = file.image
    grey = image.mode in GREY_MODES
    if _holds_ids(file) or (grey and not (image.mode in ("L", "LA") and image.has_transparency_data)):
        return np.array(image)[..., None]
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    pixels = np.array(image.convert("LA" if grey else "RGBA")).astype(np.uint16)
    return ((pixels[..., :-1] * pixels[..., -1:] + 127) // 255).astype(np.uint8)


def _grey_objects(path: Path, pixels: np.ndarray) -> _Objects:
    """Objects of a grey picture [h,w,1]: values are ids, but a single white object is 1; `UserError` for higher ids."""
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise UserError(f"the values of a grey mask are 0 to {MAX_ID}, or 0 and 65535; {path} has {pixels.min()} to "
                        f"{pixels.max()}; save it as 8-bit PNG")
    objects = _separate(path, pixels.astype(np.uint16))
    values = {label: value[0] for label, value in objects.values.items()}
    if list(values.values()) in ([255], [0xFFFF]):  # white of 8 or 16 bits
        return _Objects(objects.labels, dict.fromkeys(values, 1))
    if max(values.values(), default=0) > MAX_ID:
        raise UserError(f"object ids are 1 to {MAX_ID}, and the values of a grey mask are ids; {path} has "
                        f"{_few(values.values())}; save it as 8-bit PNG")
    return _Objects(objects.labels, values)


def _separate(path: Path, picture: np.ndarray) -> _Objects:
    """Tell objects from anti-aliased edges: colours [h,w,C], C 1 (up to 65535) or 3 (up to 255), to objects.

    A colour is an object's where it fills at least one block of 3x3 pixels (or is the only one beside black). A pixel
    of any other colour, a stray, is anti-aliasing where it lies between at least two objects' colours (black is one)
    that are within 5x5 pixels of it, or of the strays connected with it: it takes the nearest of them. Any other stray
    is a `UserError`, because nobody can say what was meant.
    """
    codes = _codes(picture)
    # first[k] is where the k-th object's colour first fills a block; label 0 is black.
    first = _block_starts(codes)
    first = first[codes.flat[first] != 0]
    if not len(first) and codes.any() and len(only := np.unique(codes[codes != 0])) == 1:
        first = np.flatnonzero(codes == only[0])[:1]
    if len(first) > MAX_ID:
        raise UserError(f"a mask has at most {MAX_ID} objects; {path} has {len(first)} colours; give every object one "
                        "colour on black")
    colours = np.vstack([np.zeros((1, picture.shape[2]), np.int32), picture.reshape(-1, picture.shape[2])[first]])
    table = np.full(codes.max() + 1, STRAY)
    table[0] = 0
    table[codes.flat[first]] = np.arange(1, len(first) + 1)
    labels = table[codes]
    if (labels == STRAY).any():
        _settle_edges(path, picture, labels, colours)
    values = {label: tuple(colour) for label, colour in enumerate(colours.tolist()) if label}
    return _Objects(labels.astype(np.uint8), values)


def _codes(picture: np.ndarray) -> np.ndarray:
    """Colours [...,C] to a number each, int32 [...]: black is 0, and no two have the same."""
    codes = picture[..., 0].astype(np.int32)
    for channel in range(1, picture.shape[-1]):
        codes = codes << 8 | picture[..., channel]
    return codes


def _block_starts(codes: np.ndarray) -> np.ndarray:
    """Flat index of the first 3x3 block of each colour that fills any, in reading order; codes [h,w]."""
    across = codes[:, 1:] == codes[:, :-1]
    across = across[:, 1:] & across[:, :-1]  # three in a row
    down = codes[1:, :-2] == codes[:-1, :-2]
    solid = across[:-2] & across[1:-1] & across[2:] & down[:-1] & down[1:]
    solid[:, 1:] &= ~solid[:, :-1]  # one of each run: what is left to sort is little
    flat = np.flatnonzero(np.pad(solid, ((0, codes.shape[0] - solid.shape[0]), (0, codes.shape[1] - solid.shape[1]))))
    _, position = np.unique(codes.flat[flat], return_index=True)
    return flat[np.sort(position)]


def _settle_edges(path: Path, picture: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> None:
    """Give every stray pixel of `labels` [h,w] the object it is anti-aliasing of, in place; `UserError` for others.

    Args:
        path: the file, for the messages.
        picture: its colours [h,w,C].
        labels: uint16 [h,w], `STRAY` where a colour is no object's.
        colours: those of label 0, 1, ..., int [n,C].
    """
    stray = labels == STRAY
    y, x = np.nonzero(stray)  # S pixels
    window = np.ones((2 * EDGE_REACH + 1, 2 * EDGE_REACH + 1), np.uint8)
    lowest = cv2.erode(labels, window)[y, x]
    highest = cv2.dilate(np.where(stray, np.uint16(0), labels), window)[y, x]
    n_runs, runs = cv2.connectedComponents(stray.astype(np.uint8), connectivity=8)
    run = runs[y, x]
    run_lowest, run_highest = np.full(n_runs, STRAY), np.zeros(n_runs, np.uint16)
    np.minimum.at(run_lowest, run, lowest)
    np.maximum.at(run_highest, run, highest)
    # Strays that touch fewer than two labels (lowest is STRAY where they touch none) mix nothing.
    phantom = (run_lowest >= run_highest)[run] | (len(y) > MOST_STRAYS * labels.size)
    if not phantom.any():
        pixels, near = picture[y, x].astype(np.int32), _labels_near(labels, y, x, len(colours))
        label, between = _nearest_colour(pixels, near, colours)
        far = np.flatnonzero(~between)  # a thin tip fades out farther from its object than the window reaches
        near = _any_in_group(near, run)[far]
        label[far], between[far] = _nearest_colour(pixels[far], near, colours)
        labels[y, x], phantom = label, ~between
    if phantom.any():
        raise UserError("a colour is an object's where it fills a block of 3x3 pixels, or anti-aliasing where it lies "
                        f"between two such; {path} has others: {_described(picture, y[phantom], x[phantom])}; draw "
                        "with a hard edge, or save a palette PNG, whose values are taken as they are")
    logger.info("mask %s: %d pixels of anti-aliased edges took the nearest object's colour", path, len(y))


def _labels_near(labels: np.ndarray, y: np.ndarray, x: np.ndarray, n: int) -> np.ndarray:
    """Which of n labels lie within `EDGE_REACH` of each of S pixels: bool [S,n]."""
    padded = np.pad(labels, EDGE_REACH, constant_values=STRAY)
    near = np.zeros((len(y), n), bool)
    for dy in range(2 * EDGE_REACH + 1):
        for dx in range(2 * EDGE_REACH + 1):
            label = padded[y + dy, x + dx]
            pixel = np.flatnonzero(label != STRAY)
            near[pixel, label[pixel]] = True
    return near


def _any_in_group(flags: np.ndarray, group: np.ndarray) -> np.ndarray:
    """bool [S,n] to bool [S,n]: whether the flag is set in any row of the same group, int [S]."""
    groups = np.zeros((group.max() + 1, flags.shape[1]), bool)
    row, column = np.nonzero(flags)
    groups[group[row], column] = True
    return groups[group]


def _nearest_colour(pixels: np.ndarray, near: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose for each pixel [S,C] the nearest of the colours [n,C] that `near`, bool [S,n], allows it.

    Returns:
        The index of the colour, uint16 [S] (the lowest where two are as near), and whether the pixel lies between the
        allowed colours in every channel, bool [S].
    """
    best, label = np.full(len(pixels), np.inf), np.full(len(pixels), STRAY)
    low, high = np.full(pixels.shape, np.inf), np.full(pixels.shape, -np.inf)
    for k, colour in enumerate(colours):
        rows = np.flatnonzero(near[:, k])
        low[rows], high[rows] = np.minimum(low[rows], colour), np.maximum(high[rows], colour)
        distance = np.square(pixels[rows] - colour, dtype=np.float64).sum(axis=1)
        closer = distance < best[rows]
        best[rows[closer]], label[rows[closer]] = distance[closer], k
    margin = OVERSHOOT * (high - low)
    return label, ((pixels >= low - margin) & (pixels <= high + margin)).all(axis=1)


def _described(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> str:
    """The colours of the pixels at y, x in words, most frequent first: colour, number of pixels, place of one."""
    _, first, counts = np.unique(_codes(picture[y, x]), return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    shown = [f"{_name(picture[y[i], x[i]].tolist())} on {n} pixel{'s' * bool(n > 1)}, one at x {x[i]} y {y[i]}"
             for i, n in zip(first[order[:NAMED]], counts[order[:NAMED]])]
    return "; ".join(shown) + _more(len(order))


def _name(colour: Sequence[int]) -> str:
    """A colour as a user knows it: the value of a grey picture, (R, G, B) of another."""
    return f"({', '.join(map(str, colour))})" if len(colour) > 1 else f"value {colour[0]}"


def _few(values: Iterable[int | Colour]) -> str:
    """The first few of some values in words."""
    names = [str(value) for value in values]
    return ", ".join(names[:NAMED]) + _more(len(names))


def _more(n: int) -> str:
    return f" and {n - NAMED} more" * (n > NAMED)
