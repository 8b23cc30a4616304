"""What of the published data sets is below a data root, what is missing, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets.filelists import EvaluationSequence, find_list, read_evaluation_list, visible_folders
from datasets.video_sets import read_davis, read_youtube_vos
from utils.errors import UserError

DAVIS_ADDRESS = "https://davischallenge.org/davis2017/code.html"
YOUTUBE_VOS_ADDRESS = "https://youtube-vos.org/dataset/vos"
COCO_ADDRESS = "https://cocodataset.org/#download"


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
