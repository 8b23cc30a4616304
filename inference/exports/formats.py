"""Which formats there are, what each takes, and the function that writes it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from inference.exports.annotations import Labels, write_coco, write_cvat, write_labelme, write_yolo, write_youtube_vis
from inference.exports.measures import write_csv, write_label_stack
from inference.exports.movies import read_fill, write_background, write_cutout
from inference.exports.results import ResultSequence
from utils.errors import UserError

Writer = Callable[[Sequence[ResultSequence], Path], None]


class Format(NamedTuple):
    """What an export takes and makes."""

    suffixes: tuple[str, ...]  # of its file; "" is a folder
    options: tuple[str, ...] = ()  # of `Options` and of the command, that mean something here
    single: bool = False  # one sequence a file
    pictures: bool = False  # needs the video's frames


class Options(NamedTuple):
    """How an export is made; each format has its own of them."""

    names: Labels  # of each object id
    objects: Sequence[int]  # that a picture shows
    polygons: bool = False  # outlines instead of exact masks
    feather: float = 0  # of a border [pixels]
    fill: str = "#00ff00"  # of a background: a colour, or "blur"


FORMATS = {
    "coco": Format((".json",), ("names", "polygons", "frames")),
    "youtube-vis": Format((".json",), ("names", "polygons", "frames")),
    "labelme": Format(("",), ("names", "polygons", "frames")),
    "yolo-seg": Format(("",), ("names", "frames")),
    "cvat": Format((".xml",), ("names", "frames"), single=True),
    "csv": Format((".csv",), ("names",)),
    "tiff": Format((".tif", ".tiff"), single=True),
    "cutout": Format((".webm", ".mov", ""), ("objects", "feather"), single=True, pictures=True),
    "background": Format((".mp4",), ("objects", "feather", "fill"), single=True, pictures=True),
}
ANNOTATIONS = {"coco": write_coco, "youtube-vis": write_youtube_vis, "labelme": write_labelme, "yolo-seg": write_yolo,
               "cvat": write_cvat}
RUN_LENGTHS = ("coco", "youtube-vis")  # their masks are encoded by an optional library


def writer(name: str, options: Options) -> Writer:
    """The function that writes format `name`; `UserError` for options that it cannot work with."""
    if name in RUN_LENGTHS and not options.polygons and not importlib.util.find_spec("pycocotools"):
        raise UserError(f"masks of {name} are encoded by pycocotools, which is not installed; "
                        "pip install -r requirements-export.txt, or ask for polygons (--polygons)")
    if name in ANNOTATIONS:
        return functools.partial(ANNOTATIONS[name], labels=options.names, outlines=options.polygons)
    if name == "csv":
        return functools.partial(write_csv, labels=options.names)
    if name == "tiff":
        return write_label_stack
    if name == "cutout":
        return functools.partial(write_cutout, objects=options.objects, feather=options.feather)
    return functools.partial(write_background, objects=options.objects, feather=options.feather,
                             fill=read_fill(options.fill))
