"""Pictures of results for people: objects drawn over a frame, contact sheets, heat maps. All are uint8 RGB [H,W,3]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.files import replacing
from utils.masks import DAVIS_PALETTE, object_ids

# Okabe and Ito's colours for every kind of colour vision, without black: orange, sky blue, bluish green, yellow, blue,
# vermilion, reddish purple (jfly.uni-koeln.de/color).
OKABE_ITO = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
                      (204, 121, 167)], np.uint8)
CONTOUR_SHARE = 1 / 480  # of the picture's height: the contour's width
CONTOUR_GAIN = 1.8  # the blur that softens a line of one pixel leaves about half of it
LABEL_SHARE = 1 / 22  # of the picture's height: the height of a label
FONT, FONT_CAPITALS = cv2.FONT_HERSHEY_SIMPLEX, 21  # height of capitals at scale 1 [pixels]
MARGIN = 6  # between the pictures of a sheet [pixels]


def _cycled(colors: np.ndarray) -> np.ndarray:
    """uint8 [n,3] to [256,3]: black, the colours, and the same again and again, each round lighter or darker."""
    k = np.arange(255)
    # Steps of the golden ratio spread any number of rounds evenly, and put successive ones far apart; round 0 is at 0.
    lightness = ((k // len(colors) * (math.sqrt(5) - 1) / 2 + 0.5) % 1 - 0.5)[:, None] * 1.2  # -0.6 to 0.6 of the way
    target = np.where(lightness > 0, 255.0, 0.0)  # to white or black
    cycled = colors[k % len(colors)] * (1 - abs(lightness)) + target * abs(lightness)
    return np.vstack([np.zeros((1, 3)), cycled]).round().astype(np.uint8)


PALETTES = {"davis": DAVIS_PALETTE, "colorblind": _cycled(OKABE_ITO)}  # RGB [256,3] by id


def overlay(frame: np.ndarray, mask: np.ndarray, *, palette: str = "davis", labels: bool = False,
            opacity: float = 0.5) -> np.ndarray:
    """Lay the objects' colours, a soft white contour and on demand their ids over a frame.

    Args:
        frame: uint8 RGB [H,W,3].
        mask: object ids uint8 [H,W], 0 is background.
        palette: a key of `PALETTES`.
        labels: whether each object's id is written at its middle.
        opacity: of the fill, 0 shows the frame alone and 1 the colour alone.

    Returns:
        The picture, uint8 RGB [H,W,3]: a copy of the frame where the mask is empty.
    """
    mask = np.ascontiguousarray(mask)
    picture = np.array(frame, order="C")
    # Fresh memory costs more here than the arithmetic does: `triple` and `work`, [H,W,3] each, are used repeatedly.
    triple = cv2.merge([mask] * 3)
    work = cv2.LUT(triple, PALETTES[palette][None])
    cv2.addWeighted(picture, 1 - opacity, work, opacity, 0, dst=work)
    cv2.copyTo(work, mask, picture)
    cv2.merge([_contour(mask)] * 3, dst=triple)
    cv2.multiply(cv2.bitwise_not(picture, dst=work), triple, dst=work, scale=1 / 255)
    cv2.add(picture, work, dst=picture)  # towards white by the contour's strength
    if labels:
        for k, (x, y) in label_points(mask).items():
            _write(picture, str(k), (x, y), len(picture) * LABEL_SHARE)
    return picture


def write_jpeg(path: str | Path, picture: np.ndarray, quality: int = 95, *, sync: bool = True) -> None:
    """Write uint8 RGB [H,W,3] as JPEG; the file is whole or not there (`replacing`)."""
    with replacing(path, sync=sync) as temporary:
        data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        temporary.write_bytes(data.tobytes())


def label_points(mask: np.ndarray) -> dict[int, tuple[int, int]]:
    """Where each object's id is best written, (x, y) [pixels]: deepest inside the largest of its connected parts.

    Depth is the distance to other ids and to the picture's edge; border pixels do not count in a part's size. From a
    height of 480 pixels on only every 2nd, 3rd, ... row and column is looked at.
    """
    step = max(1, len(mask) // 240)
    padded = np.pad(mask[::step, ::step], 1)  # the picture's edge is a border, too
    border = cv2.morphologyEx(padded, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))  # 0 where all nine ids are one
    inside = ((padded > 0) & (border == 0)).astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Two objects that touch are two parts: the border between them is inside neither.
    n_parts, parts, boxes, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
    owner = np.zeros(n_parts, np.uint8)
    owner[parts] = padded * inside
    points = {}
    for k in object_ids(mask):
        own = np.flatnonzero(owner == k)
        if len(own):
            part = own[boxes[own, cv2.CC_STAT_AREA].argmax()]
            left, top, width, height, _ = boxes[part]
            box = slice(top, top + height), slice(left, left + width)
            y, x = np.unravel_index(np.where(parts[box] == part, depth[box], 0).argmax(), (height, width))
            points[k] = (step * int(left + x - 1), step * int(top + y - 1))
        else:  # too thin to have an inside: the pixel that is nearest to the middle of all
            pixels = np.argwhere(mask == k)
            y, x = pixels[np.square(pixels - pixels.mean(axis=0)).sum(axis=1).argmin()]
            points[k] = (int(x), int(y))
    return points


def write_stamp(picture: np.ndarray, text: str) -> None:
    """Write a line of text into the lower left corner of a picture, in place."""
    _write(picture, text, (0, len(picture)), len(picture) * LABEL_SHARE)


def contact_sheet(pictures: Sequence[tuple[str, np.ndarray]], *, columns: int = 4, width: int = 320) -> np.ndarray:
    """Pictures with their captions in a grid on white, in reading order.

    Args:
        pictures: caption (ASCII; a longer one than fits is written smaller) and picture, uint8 RGB [h,w,3], sizes may
            differ.
        columns: pictures in a row; fewer where there are fewer pictures.
        width: to which every picture is scaled [pixels].
    """
    strip = max(16, width // 16)  # height of a caption
    cells = []
    for caption, picture in pictures:
        height = max(1, round(picture.shape[0] * width / picture.shape[1]))
        how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_LINEAR
        cell = np.full((strip + height, width, 3), 255, np.uint8)
        cell[strip:] = cv2.resize(picture, (width, height), interpolation=how)
        _write(cell, caption, (width // 2, strip // 2), strip * 0.5, color=(0, 0, 0), outline=(255, 255, 255))
        cells.append(cell)
    columns = min(columns, len(cells))
    rows = [cells[i:i + columns] for i in range(0, len(cells), columns)]
    heights = [max(len(cell) for cell in row) for row in rows]
    sheet = np.full((sum(heights) + MARGIN * (len(rows) + 1), columns * (width + MARGIN) + MARGIN, 3), 255, np.uint8)
    top = MARGIN
    for row, height in zip(rows, heights):
        for column, cell in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            sheet[top:top + len(cell), left:left + width] = cell
        top += height + MARGIN
    return sheet


def heat_map(values: np.ndarray, shape: tuple[int, int], frame: np.ndarray | None = None, *,
             opacity: float = 0.6) -> np.ndarray:
    """Float [h,w] in [0,1] (beyond is cut, NaN is 0) to colours [H,W,3] of `shape` (height, width), bilinear.

    Dark violet is 0, green 0.5, yellow 1 (viridis). Over a `frame`, uint8 RGB [H,W,3], which shows through in grey,
    the colours have `opacity`.
    """
    values = np.clip(np.nan_to_num(values.astype(np.float32)), 0, 1)
    values = cv2.resize(values, shape[::-1], interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap((255 * values).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    if frame is None:
        return np.ascontiguousarray(colors)
    grey = cv2.cvtColor(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(np.ascontiguousarray(colors), opacity, grey, 1 - opacity, 0)


def _contour(mask: np.ndarray) -> np.ndarray:
    """Strength of a soft line along the borders of all objects at once, uint8 [H,W], 255 is the middle of the line.

    The line runs outside, and on the lower id where two objects meet: one inside would hide thin objects.
    """
    width = max(1, round(len(mask) * CONTOUR_SHARE))
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    line = cv2.compare(cv2.dilate(mask, window), mask, cv2.CMP_NE)
    return cv2.convertScaleAbs(cv2.GaussianBlur(line, (3, 3), 0), alpha=CONTOUR_GAIN)


def _write(picture: np.ndarray, text: str, middle: tuple[int, int], height: float, *,
           color: tuple[int, int, int] = (255, 255, 255), outline: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Write a line of text of `height` [pixels] in place, its middle at (x, y) or as near as it fits the picture."""
    H, W = picture.shape[:2]
    text = text.encode("ascii", "replace").decode()  # the font has no more
    scale = max(height, 7) / FONT_CAPITALS
    (length, _), _ = cv2.getTextSize(text, FONT, scale, 1)
    scale *= min(1, (W - 4) / max(1, length))
    line = max(1, round(scale * 2))
    (length, tall), _ = cv2.getTextSize(text, FONT, scale, line)
    x = int(np.clip(middle[0] - length // 2, 2, max(2, W - 2 - length)))
    y = int(np.clip(middle[1] + tall // 2, tall + 2, max(tall + 2, H - 2)))
    cv2.putText(picture, text, (x, y), FONT, scale, outline, line + 2 * max(1, round(2 * scale)), cv2.LINE_AA)
    cv2.putText(picture, text, (x, y), FONT, scale, color, line, cv2.LINE_AA)
