"""Pictures of a frame's objects, as painting and annotation programs write them, to objects.

What a value means is told by the kind of the file. A palette PNG whose value 0 is black holds ids; any other palette
is a picture of its colours. A picture that is partly transparent shows its objects by its alpha. A grey picture holds
ids, or one object in white; a colour picture one object a colour on black. What may mean two things is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np

from datasets.mask_edges import block_starts, codes_of, color_name, few, separate
from datasets.mask_painting import painted_objects
from datasets.mask_tones import CONTRAST, two_tones
from datasets.object_ids import MAX_ID, Objects, key_of
from utils.errors import UserError
from utils.masks import DAVIS_PALETTE, object_ids
from utils.pictures import Picture, read_picture

logger = logging.getLogger(__name__)

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "F"}
COLOR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX"}
VOID = 255  # in PASCAL VOC the border of an object, which belongs to nothing
VOID_COLOR = tuple(DAVIS_PALETTE[VOID].tolist())
OPAQUE = 128  # least alpha of a pixel that is shown
PART = 12  # mean difference to its frame of a cut-out, which may come from a lossy copy [of 255]
FLAT = 0.95  # of the shown pixels: as many have a flat colour where colours are painted objects, and not a photograph
NEARLY_BLACK = 32  # highest channel of a background that is not quite black
BORDER = 3 / 4  # of the picture's outermost pixels: what covers as much, and the corners, looks like background
SOFT = 8  # distinct values between flat ones that make a picture soft
AS_PALETTE = "save a palette PNG whose value 0 is black and background"


def read_picture_objects(path: Path, frame: Callable[[], np.ndarray] | None = None) -> Objects:
    """The objects of a picture file; `UserError` for what nobody can say the meaning of.

    `frame` gives the frame's picture, uint8 RGB [H,W,3], of which a file may be a copy, painted on or cut out.
    """
    file = read_picture(path)
    if file.pictures > 1:
        raise UserError(f"a mask is one picture; {path} has {file.pictures}; save the one that is meant as PNG")
    if file.image.mode not in GREY_MODES | COLOR_MODES:
        raise UserError(f"a mask is a palette, grey, RGB or RGBA picture; {path} is {file}; save it as PNG")
    if _holds_ids(file):
        return _palette_objects(path, np.array(file.image), file.image.getpalette() or [])
    pixels, shown = _pixels(path, file)
    if shown is None and frame and not file.lossy and (painted := painted_objects(path, _rgb(pixels), frame())):
        return painted
    if shown is None:
        return tone_objects(path, pixels, lossy=file.lossy)
    if not shown.any():
        raise UserError(f"a mask has at least one object; {path} is all transparent; draw the object into it")
    flat = None if frame and _is_part(_rgb(pixels), shown, frame()) else _flat_colors(pixels, shown)
    if flat is None:
        logger.warning("mask %s is a cut-out: what is not transparent is the object", path)
        return Objects(shown.astype(np.uint8), {1: None})
    if len(flat) == 1:
        return Objects(shown.astype(np.uint8), {1: key_of(flat[0])})
    return tone_objects(path, np.where(shown[..., None], pixels, 0), lossy=file.lossy)


def _holds_ids(file: Picture) -> bool:
    """Whether the values of a palette PNG are ids: black, or what is transparent, comes first, and it shows no greys.

    Programs that reduce colours write palettes in any order; a palette of all greys is a grey picture.
    """
    if file.image.mode != "P" or file.format != "PNG":
        return False
    palette = np.array(file.image.getpalette(), np.uint8).reshape(-1, 3)
    values = [k for k in object_ids(np.array(file.image)) if k < len(palette)]
    if (palette[values] == np.array(values, np.uint8).reshape(-1, 1)).all():
        return False
    return not palette[0].any()


def _palette_objects(path: Path, values: np.ndarray, palette: list[int]) -> Objects:
    """Values [h,w] as they are, but for VOC's border; `UserError` where most look like anti-aliasing."""
    ids = object_ids(values)
    colors = np.array(palette, np.uint8).reshape(-1, 3)
    davis = max(ids, default=0) < len(colors) and np.array_equal(colors[ids], DAVIS_PALETTE[ids])
    if davis and VOID in ids and VOID - 1 not in ids and len(ids) > 1:
        logger.warning("mask %s has the value 255 in the colour of VOC's borders: it is background", path)
        return Objects(np.where(values == VOID, np.uint8(0), values), {k: k for k in ids if k != VOID})
    n_solid = len(block_starts(values))
    if not davis and len(ids) - n_solid > max(n_solid, 2):
        raise UserError(f"a palette mask holds ids; {path} has {len(ids)} values, of which {len(ids) - n_solid} "
                        "fill no block of 3x3 pixels, as edges do that were anti-aliased; draw with a hard edge")
    return Objects(values, {k: k for k in ids})


def _pixels(path: Path, file: Picture) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture's pixels [h,w,C], C 1 for grey and 3 for colours, and which are shown, bool [h,w]; None for all."""
    image, shown = file.image, None
    if image.mode in GREY_MODES - {"L", "LA"}:
        return whole_values(path, np.array(image))[..., None], None
    if image.has_transparency_data:
        pixels = np.array(image.convert("RGBA"))
        pixels, alpha = pixels[..., :3], pixels[..., 3]
        shown = alpha >= OPAQUE if alpha.min() < OPAQUE else None
    else:
        pixels = np.array(image.convert("RGB"))
    grey = image.mode in GREY_MODES or ((pixels == pixels[..., :1]).all() and not _in_davis(pixels[..., 0]))
    return pixels[..., :1] if grey else pixels, shown


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels [h,w,C] as uint8 [h,w,3]."""
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)


def _is_part(pixels: np.ndarray, shown: np.ndarray, frame: np.ndarray) -> bool:
    """Whether what a picture [h,w,3] shows is the frame's."""
    return pixels.shape == frame.shape and np.abs(pixels[shown].astype(int) - frame[shown]).mean() < PART


def _in_davis(greys: np.ndarray) -> bool:
    """Whether greys [h,w] are all of the DAVIS palette, as in a colour copy of a result."""
    palette = {color[0] for color in DAVIS_PALETTE.tolist() if len(set(color)) == 1}
    return set(object_ids(np.ascontiguousarray(greys))) <= palette


def whole_values(path: Path, values: np.ndarray) -> np.ndarray:
    """Grey values of any type to uint16; floats are whole, or brightness in [0,1], which becomes [0,255]."""
    if values.dtype == bool:
        return values * np.uint16(MAX_ID)
    if values.dtype.kind == "f":
        if np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1 and (values % 1).any():
            values = (values * MAX_ID).round()
        if not np.isfinite(values).all() or (values % 1).any():
            raise UserError(f"a mask of floats holds whole ids, or brightness in [0,1]; {path} has {values.min():.4g} "
                            f"to {values.max():.4g}; save it as 8-bit PNG, or as array of masks > threshold")
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UserError(f"the values of a grey mask are 0 to {MAX_ID}, or 0 and 65535; {path} has {values.min()} to "
                        f"{values.max()}; save it as 8-bit PNG")
    return values.astype(np.uint16)


def _flat_colors(pixels: np.ndarray, shown: np.ndarray) -> list[tuple[int, ...]] | None:
    """The flat colours that nearly all shown pixels have; None where they show a photograph."""
    codes = np.where(shown, codes_of(pixels) + 1, 0)
    flat = codes.flat[block_starts(codes)].tolist() or np.unique(codes[shown])[:2].tolist()
    if np.isin(codes[shown], flat).mean() < FLAT or len(flat) > MAX_ID:
        return None
    return [tuple(pixels[codes == code][0].tolist()) for code in flat]


def tone_objects(path: Path, picture: np.ndarray, *, lossy: bool) -> Objects:
    """The objects of a picture without transparency, [h,w,1] (up to 65535) or [h,w,3] (up to 255)."""
    refusal: UserError | None = None
    if not lossy:
        given, picture = picture, _black_background(path, picture)
        try:
            found = separate(path, picture)
            _refuse_unclear(path, picture, *found)
        except UserError as error:
            refusal = error
        else:
            alone = picture is not given and picture.shape[2] == 1 and len(found.colors) == 2
            return Objects(found.labels, {1: None}) if alone else _flat_objects(path, found.labels, found.colors)
    white = 255 if picture.max() < 256 else 0xFFFF
    tones = two_tones(picture, white, lossy=lossy) if lossy or _may_be_two_tones(picture) else None
    if tones is None:
        raise refusal or UserError(f"a lossy file keeps a mask of two tones only, one of them dark; {path} has others; "
                                   "export it again from where it was drawn, as PNG")
    dark, bright = (color_name(tone) for tone in tones[1:])
    if len(set(tones.dark_tone)) > 1 and max(tones.dark_tone) > 3 * NEARLY_BLACK:
        raise UserError(f"the background of a mask is black; {path} has {bright} on {dark}; paint the background black")
    _refuse_inverse(path, tones.bright, f"a bright one ({bright})")
    logger.warning("mask %s has two tones, %s and %s: it is cut half way, and the brighter one is the object", path,
                   dark, bright)
    grey = max(tones.bright_tone) - min(tones.bright_tone) < NEARLY_BLACK
    return Objects(tones.bright.astype(np.uint8), {1: None if grey or lossy else tones.bright_tone})


def _black_background(path: Path, picture: np.ndarray) -> np.ndarray:
    """Make a background black that is nearly so: the most frequent colour, where the others are bright."""
    codes = codes_of(picture)
    if not codes.all():
        return picture
    values, counts = np.unique(codes, return_counts=True)
    if len(values) == 1:
        return picture
    background = codes == values[counts.argmax()]
    level, others = picture[background].max(), picture[~background].max(axis=1).min()
    if level > NEARLY_BLACK or others < level + CONTRAST:
        return picture
    logger.warning("mask %s has no black, and %s is its darkest and most frequent: it is background", path,
                   color_name(picture[background][0].tolist()))
    return np.where(background[..., None], 0, picture).astype(picture.dtype)


def _refuse_unclear(path: Path, picture: np.ndarray, labels: np.ndarray, colors: list, strays: int) -> None:
    """`UserError` where a picture is not flat colours with thin edges on black, although each pixel could be told."""
    nearest = min((math.dist(*two) for two in combinations(colors, 2)), default=math.inf)
    if strays > np.count_nonzero(labels) or (strays and nearest * 8 < picture.max()):
        raise UserError(f"edges of a mask are thinner than its objects, and its colours are far apart; {path} has "
                        f"{strays} pixels of edges; draw with a harder edge")
    ids = picture.shape[2] == 1 and picture.max() <= NEARLY_BLACK  # written by a program
    if labels.all() and not ids:
        raise UserError(f"the background of a mask is black; {path} has {few(map(color_name, colors[1:]))} and nothing "
                        f"black; paint the background black, or {AS_PALETTE}")


def _may_be_two_tones(picture: np.ndarray) -> bool:
    """Whether a picture has two values, or so many that they are shades."""
    count = len(np.unique(codes_of(picture)))
    return count == 2 or count > SOFT


def _flat_objects(path: Path, labels: np.ndarray, colors: list[tuple[int, ...]]) -> Objects:
    """Objects of flat colours, the first of which is black; `UserError` for values that are no ids."""
    if len(colors[0]) == 3:
        if VOID_COLOR in colors and len(colors) > 2 and tuple(DAVIS_PALETTE[VOID - 1].tolist()) not in colors:
            return _without_border(path, labels, colors)
        for label in range(1, len(colors)):
            _refuse_inverse(path, labels == label, f"the colour {colors[label]}")
        return Objects(labels, {k: colors[k] if k > 1 or len(colors) > 2 else key_of(colors[k])
                                for k in range(1, len(colors))})
    values = [value for value, in colors[1:]]
    for label, value in enumerate(values, 1):
        if value >= CONTRAST:
            _refuse_inverse(path, labels == label, f"the value {value}")
    return id_objects(path, labels, dict(enumerate(values, 1)))


def id_objects(path: Path, labels: np.ndarray, ids: dict[int, int]) -> Objects:
    """Labels [h,w] of a grey picture or an array by the values that they stand for; `UserError` for what are no ids."""
    values = list(ids.values())
    if values in ([MAX_ID], [0xFFFF]):
        return Objects((labels > 0).astype(np.uint8), {1: None})
    if max(values, default=0) > MAX_ID:
        raise UserError(f"object ids are 1 to {MAX_ID}, and the values of a grey mask are ids; {path} has "
                        f"{few(values)}; save it as 8-bit PNG")
    if VOID in values and len(values) > 1 and all(value == VOID or value < CONTRAST for value in values):
        raise UserError(f"the value 255 beside ids may be an object, or what belongs to nothing, as in PASCAL VOC; "
                        f"{path} has {few(sorted(values))}; make it 0, or give the object another id")
    return Objects(labels.astype(np.uint8), {**ids})


def _without_border(path: Path, labels: np.ndarray, colors: list[tuple[int, ...]]) -> Objects:
    """Objects without what has the colour of VOC's borders."""
    logger.warning("mask %s has the colour of VOC's borders, %s: it is background", path, VOID_COLOR)
    void = colors.index(VOID_COLOR)
    return Objects(np.where(labels == void, np.uint8(0), labels),
                   {label: color for label, color in enumerate(colors) if label not in (0, void)})


def _refuse_inverse(path: Path, region: np.ndarray, what: str) -> None:
    """`UserError` where a colour's pixels, bool [h,w], look like the background around an object in black."""
    border = np.concatenate([region[0], region[-1], region[:, 0], region[:, -1]])
    if region[[0, 0, -1, -1], [0, -1, 0, -1]].all() and border.mean() >= BORDER and not region.all():
        raise UserError(f"the background of a mask is black; in {path} {what} covers the border, as if the object were "
                        f"what is black; invert the picture, or, where it is right, {AS_PALETTE}")
