"""Which formats there are, what each takes, and the function that writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from inference.exports.annotations import write_coco, write_cvat, write_labelme, write_yolo, write_youtube_vis
from inference.exports.measures import write_label_stack, write_measures
from inference.exports.movies import read_fill, write_background, write_cutout
from inference.exports.results import Options, ResultSequence
from utils.errors import require_packages


class Format(NamedTuple):
    """What an export takes and makes."""

    write: Callable[[Sequence[ResultSequence], Path, Options], None]
    suffixes: tuple[str, ...]  # of its file; "" is a folder
    options: tuple[str, ...] = ()  # of `Options` and of the command, that mean something here
    single: bool = False  # one sequence a file
    pictures: bool = False  # needs the video's frames


FORMATS = {
    "coco": Format(write_coco, (".json",), ("names", "polygons", "frames")),
    "youtube-vis": Format(write_youtube_vis, (".json",), ("names", "polygons", "frames")),
    "labelme": Format(write_labelme, ("",), ("names", "polygons", "frames")),
    "yolo-seg": Format(write_yolo, ("",), ("names", "frames")),
    "cvat": Format(write_cvat, (".xml",), ("names", "frames"), single=True),
    "csv": Format(write_measures, (".csv",), ("names",)),
    "tiff": Format(write_label_stack, (".tif", ".tiff"), single=True),
    "cutout": Format(write_cutout, (".webm", ".mov", ""), ("objects", "feather"), single=True, pictures=True),
    "background": Format(write_background, (".mp4",), ("objects", "feather", "fill"), single=True, pictures=True),
}


def writer(name: str, options: Options) -> Callable[[Sequence[ResultSequence], Path], None]:
    """The function that writes format `name`; `UserError` for options that it cannot work with."""
    if name in ("coco", "youtube-vis") and not options.polygons:
        require_packages(f"{name} with exact masks", "pycocotools",
                         requirements="requirements-export.txt, or ask for polygons (--polygons)")
    read_fill(options.fill)
    return lambda sequences, out: FORMATS[name].write(sequences, out, options)
