"""Points of videos: given, found, and BADJA's joints. (x, y) [pixels]; (0, 0) is the top left pixel's middle."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.video import OwnVideo
from utils.errors import UserError
from utils.files import write_csv
from utils.values import parse_json, read_text

# Of the 37 positions in BADJA's files those that its joint catalogue counts as annotated: legs, neck, tail, head.
BADJA_JOINTS = (8, 9, 10, 12, 13, 14, 15, 18, 19, 20, 22, 23, 24, 25, 28, 31, 32, 33, 35, 36)


class Point(NamedTuple):
    """A point that is given in one frame."""

    name: str
    frame: int
    x: float
    y: float


class PointRow(NamedTuple):
    """What was found of one point in one frame."""

    frame: int
    time: float  # in seconds after the first frame
    point: str
    x: float  # NaN where nothing of the point is left
    y: float
    similarity: float  # of the cells that it was found from, in [-1,1]; 1 where it was given
    visible: bool


class BadjaFrame(NamedTuple):
    """An annotated frame of BADJA."""

    image: Path  # as the file has it, from the data set's folder
    mask: Path  # of the animals, likewise
    joints: dict[str, tuple[float, float]]  # visible ones of `BADJA_JOINTS`: (x, y) in the original picture


def read_points(path: str | Path, video: OwnVideo) -> list[Point]:
    """Points of a video: CSV with the columns point, x, y and, where not all are of frame 0, frame; or BADJA's JSON.

    Of BADJA the joints that are visible in the first annotated frame are taken. `UserError` names what is wrong.
    """
    path = Path(path)
    points = _first_joints(path, video) if path.suffix.lower() == ".json" else _read_csv(path)
    if not points:
        raise UserError(f"{path} has no point; give at least one")
    names, (width, height) = set(), video.size
    for point in points:
        if point.name in names:
            raise UserError(f"each point has a name of its own, and {path} has {point.name!r} twice; rename one")
        names.add(point.name)
        if not 0 <= point.frame < len(video):
            raise UserError(f"frames count from 0, and {video.path} has {len(video)}; in {path} point {point.name!r} "
                            f"is of frame {point.frame}; correct it")
        if not (0 <= point.x <= width - 1 and 0 <= point.y <= height - 1):
            raise UserError(f"points lie inside the frames, here {width}x{height} pixels; in {path} point "
                            f"{point.name!r} is at ({point.x:g}, {point.y:g}); correct it")
    return points


def read_badja(path: str | Path) -> list[BadjaFrame]:
    """One of BADJA's `joint_annotations/<sequence>.json`; joints stand there as (row, column)."""
    try:
        frames = []
        for entry in parse_json(read_text(path)):
            joints = {str(i): (float(entry["joints"][i][1]), float(entry["joints"][i][0])) for i in BADJA_JOINTS
                      if entry["visibility"][i]}
            frames.append(BadjaFrame(Path(entry["image_path"]), Path(entry["segmentation_path"]), joints))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"BADJA's annotations are a JSON list with image_path, segmentation_path, joints and "
                        f"visibility of each frame; {path} is not ({error!r}); take the published file") from error
    if not frames:
        raise UserError(f"{path} annotates no frame; take the published file")
    return sorted(frames, key=lambda frame: frame.image.stem)


def write_rows(path: Path, rows: Iterable[PointRow]) -> None:
    """Write a table of what was found, as CSV."""
    write_csv(path, PointRow._fields, (
        [row.frame, f"{row.time:.6f}", row.point,
         *("" if math.isnan(value) else f"{value:.3f}" for value in (row.x, row.y, row.similarity)), int(row.visible)]
        for row in rows))


def read_tracks(path: Path) -> dict[tuple[int, str], tuple[float, float]]:
    """Where a table of `write_rows` has each point, by frame and name: (x, y) [pixels], NaN where it is lost.

    A point below 0 is lost, too, as CRW's release writes it. `UserError` for another file and for a point that a frame
    has twice.
    """
    tracks = {}
    for row in _table(path, ("frame", "point", "x", "y")):
        x, y = (_number(row[key] or "nan", path) for key in "xy")
        place = _whole(row["frame"], path), row["point"].strip()
        if place in tracks:
            raise UserError(f"a frame has each point once; {path} has {place[1]!r} of frame {place[0]} twice; remove "
                            "one of its lines")
        tracks[place] = (x, y) if x >= 0 and y >= 0 else (math.nan, math.nan)
    return tracks


def _read_csv(path: Path) -> list[Point]:
    return [Point(row["point"].strip(), _whole(row.get("frame") or "0", path), _number(row["x"], path),
                  _number(row["y"], path)) for row in _table(path, ("point", "x", "y"))]


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has these columns, all of them filled with text."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"points are a CSV file in UTF-8; {path} cannot be read ({error}); correct it") from error
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"the first line of a CSV of points names the columns {', '.join(columns)}; {path} lacks "
                        f"{', '.join(missing)}; add it")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values() or not row["point"].strip():
            raise UserError(f"each line of a CSV of points has a name and as many values as the first line; line "
                            f"{number} after it in {path} has not; correct it")
    return rows


def _whole(text: str, path: Path) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"frames count 0, 1, 2 ...; {path} has {text!r}; correct it")
    return int(text)


def _number(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"x and y are numbers of pixels; {path} has {text!r}; correct it") from error


def _first_joints(path: Path, video: OwnVideo) -> list[Point]:
    first = read_badja(path)[0]
    if first.image.stem not in video.names:
        raise UserError(f"{path} annotates frame {first.image.stem}, and {video.path} has none of this name; give the "
                        f"folder {first.image.parent} of the data set")
    return [Point(name, video.names.index(first.image.stem), x, y) for name, (x, y) in first.joints.items()]
