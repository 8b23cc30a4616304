"""What a data root holds: an index of its training videos, and which of the published data sets are complete."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets.filelists import EvaluationSequence, Video, find_list, read_evaluation_list, visible_folders
from datasets.video_sets import read_davis, read_youtube_vos
from utils.errors import UserError
from utils.files import write_text
from utils.pictures import PictureError, read_size

DAVIS_ADDRESS = "https://davischallenge.org/davis2017/code.html"
YOUTUBE_VOS_ADDRESS = "https://youtube-vos.org/dataset/vos"
COCO_ADDRESS = "https://cocodataset.org/#download"

logger = logging.getLogger(__name__)


def index_videos(videos: Sequence[Video], length: int) -> dict[str, Any]:
    """Count and log videos and frames; name those of under `length` frames and those whose first cannot be opened."""
    items: list[dict[str, Any]] = [
        {"name": video.name, "frames": len(video.frames), "size": _size(video.frames[0])} for video in videos]
    index: dict[str, Any] = {
        "videos": len(items),
        "frames": sum(item["frames"] for item in items),
        "sizes": dict(Counter("{}x{}".format(*item["size"]) for item in items if item["size"]).most_common()),
        "too_short": [item["name"] for item in items if item["frames"] < length],
        "broken": [item["name"] for item in items if item["size"] is None],
        "items": items,
    }
    sizes = ", ".join(f"{count} of {size}" for size, count in list(index["sizes"].items())[:3])
    logger.info("%d videos, %d frames; most frequent sizes: %s", index["videos"], index["frames"], sizes or "none")
    for key, why in (("too_short", f"skipped, shorter than {length} frames"), ("broken", "with a broken first frame")):
        if index[key]:
            logger.warning("%d videos %s: %s%s", len(index[key]), why, ", ".join(index[key][:5]),
                           ", ..." if len(index[key]) > 5 else "")
    return index


def keep_index(index: dict[str, Any], root: str | Path) -> None:
    """Write ROOT/video_index.json; a root that cannot be written to is no error, the log has the counts."""
    path = Path(root) / "video_index.json"
    try:
        write_text(path, json.dumps(index, indent=1) + "\n")
    except UserError as error:
        logger.info("the index of videos is not kept: %s", error)
    else:
        logger.info("the index of videos is in %s", path)


class Found(NamedTuple):
    """One data set: `complete`, `incomplete` or `missing`, and what is there or to be done."""

    name: str
    state: str
    detail: str


def inventory(root: str | Path) -> Iterator[Found]:
    """Look at every published data set below `root`; files are listed, not opened."""
    root = Path(root)
    yield _counted("YouTube-VOS train", root / "JPEGImages", 3471, "videos",
                   lambda folder: len(visible_folders(folder)),
                   f"unpack train.zip ({YOUTUBE_VOS_ADDRESS}), put its JPEGImages here; any folders of frames do")
    for set_name, archive in (("val", "trainval"), ("train", "trainval"), ("test-dev", "test-dev")):
        yield _labelled(f"DAVIS 2017 {set_name}", partial(_davis, root, set_name), root / "davis2017",
                        f"unpack DAVIS-2017-{archive}-480p.zip ({DAVIS_ADDRESS}), rename its folder DAVIS to davis2017")
    yield _labelled("YouTube-VOS valid", lambda: read_youtube_vos(root / "valid"), root / "valid",
                    f"unpack valid.zip ({YOUTUBE_VOS_ADDRESS})")
    yield _counted("COCO train2017", root / "COCO/train2017", 118_287, "pictures", lambda folder: sum(
        path.suffix == ".jpg" for path in folder.iterdir()), f"unpack train2017.zip ({COCO_ADDRESS}) into COCO")


def _counted(name: str, folder: Path, due: int, unit: str, count: Callable[[Path], int], remedy: str) -> Found:
    number = count(folder) if folder.is_dir() else 0
    if number >= due:
        return Found(name, "complete", f"{number} {unit} in {folder}")
    return Found(name, "incomplete" if number else "missing", f"{number} of {due} {unit} in {folder}; {remedy}")


def _davis(root: Path, set_name: str) -> list[EvaluationSequence]:
    """The set, of `val` every frame that the list in filelists/ names."""
    found = read_davis(root / "davis2017", set_name)
    if set_name == "val":
        read_evaluation_list(find_list("filelists/val_davis2017_test", root), root)
    return found


def _labelled(name: str, read: Callable[[], list[EvaluationSequence]], folder: Path, remedy: str) -> Found:
    if not folder.is_dir():
        return Found(name, "missing", f"no {folder}; {remedy}")
    try:
        sequences = read()
    except UserError as error:
        return Found(name, "incomplete", f"{str(error).rstrip()}\n  {remedy}")
    frames = sum(len(sequence.frames) for sequence in sequences)
    return Found(name, "complete", f"{len(sequences)} sequences, {frames} frames in {folder}")


def _size(frame: Path) -> tuple[int, int] | None:
    """(width, height) from the file's header [pixels]."""
    try:
        return read_size(frame)
    except PictureError:
        return None
