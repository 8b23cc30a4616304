"""What exports are made of: the masks, names, times, frames and confidence of each sequence, and options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.filelists import MASK_SUFFIXES, files_by_stem, visible_folders
from datasets.own_video import open_video
from datasets.video import OwnVideo
from inference.confidence import Row, read_table
from utils.errors import UserError
from utils.masks import object_ids, read_mask
from utils.run_record import read_record


class Options(NamedTuple):
    """How an export is made; each format has its own of them."""

    names: Mapping[int, str]  # label of each object id
    objects: Sequence[int]  # that a picture shows
    polygons: bool = False  # outlines instead of exact masks
    feather: float = 0  # of a border: standard deviation of its blur [pixels]
    fill: str = "#00ff00"  # of a background: a colour, or "blur"


class ResultSequence:
    """One sequence of results, read and checked once; masks and frames are read again as they are asked for.

    Args:
        name: of the sequence.
        files: its masks in natural order, `<frame>.png`.
        video: where the frames come from; None where it is not known.
        confidence: by (frame name, object id); empty where the run wrote none.

    Raises:
        UserError: a mask cannot be read or has another size, or a name is not one of the video's frames.
    """

    def __init__(self, name: str, files: list[Path], video: OwnVideo | None,
                 confidence: dict[tuple[str, int], Row]):
        self.name, self.video, self.confidence, self._files = name, video, confidence, files
        self.frames = [file.stem for file in files]
        reference, names = (files[0], self.frames) if video is None else (video.path, video.names)
        known = {name: number for number, name in enumerate(names)}
        stray = [frame for frame in self.frames if frame not in known]
        if stray:
            raise UserError(f"masks are named after the frames of their video, and {reference} has no frame "
                            f"{stray[0]}; name the right one with --video")
        self.numbers = [known[frame] for frame in self.frames]  # in the video: masks may be those of a part of it
        size: tuple[int, ...] = read_mask(files[0]).shape[::-1] if video is None else video.size
        ids: set[int] = set()
        for file in files:
            mask = read_mask(file)
            if mask.shape[::-1] != size:
                raise UserError(f"the masks of a sequence have one size, that of its video; {reference} is {size[0]}x"
                                f"{size[1]} and {file} {mask.shape[1]}x{mask.shape[0]}; export results of one run, or "
                                "name the right video with --video")
            ids.update(object_ids(mask))
        self.ids, (self.width, self.height) = sorted(ids), size

    def masks(self) -> Iterator[np.ndarray]:
        """The index masks in order, uint8 [H,W] each."""
        return map(read_mask, self._files)

    def pictures(self) -> Iterator[np.ndarray]:
        """The frames that have masks, uint8 RGB [H,W,3] each, of a sequence whose video is known."""
        assert self.video is not None
        wanted = set(self.numbers)
        for number, frame in enumerate(self.video.frames(0, self.numbers[-1] + 1)):
            if number in wanted:
                yield frame


def read_results(folder: Path, video: str | None, sequences: list[str] | None) -> list[ResultSequence]:
    """The sequences of a run's folder, of its `<key>_vos`, or of a folder of masks.

    Args:
        folder: what `infer_vos_dul.py` wrote.
        video: the frames' file or folder, for a single sequence; by default what `run.json` names, where it exists.
        sequences: names of those to take; None: all.

    Raises:
        UserError: no masks, several features' masks, or names that are not there.
    """
    masks = _mask_folder(folder)
    found = {name: files for name in visible_folders(masks) if (files := files_by_stem(masks / name, MASK_SUFFIXES))}
    if not found and (files := files_by_stem(masks, MASK_SUFFIXES)):
        found = {masks.name: files}
    if not found:
        raise UserError(f"results are masks, <frame>.png, in a folder for each sequence; {folder} has none; give the "
                        "folder that infer_vos_dul.py wrote")
    stray = [name for name in sequences or () if name not in found]
    if stray:
        raise UserError(f"--sequence names sequences of {masks}, and {', '.join(stray)} is none of "
                        f"{', '.join(found)}")
    taken = {name: files for name, files in found.items() if sequences is None or name in sequences}
    if video is not None and len(taken) > 1:
        raise UserError(f"--video is the video of one sequence, and {masks} has {len(taken)}; add --sequence NAME")
    recorded = read_record(masks).get("video")
    if video is None and len(taken) == 1 and isinstance(recorded, str) and Path(recorded).exists():
        video = recorded
    opened = None if video is None else open_video(video)
    return [ResultSequence(name, list(files.values()), opened, _read_confidence(masks, name))
            for name, files in taken.items()]


def _mask_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"RESULTS is a folder that infer_vos_dul.py wrote; {folder} is none")
    features = sorted(path for path in folder.glob("*_vos") if path.is_dir())
    if len(features) > 1:
        raise UserError(f"one feature's masks are exported, and {folder} has {', '.join(p.name for p in features)}; "
                        f"give one of them, such as {features[0]}")
    return features[0] if features else folder


def _read_confidence(masks: Path, name: str) -> dict[tuple[str, int], Row]:
    """`confidence.csv` of the sequence, beside the overlays; empty where there is none."""
    pictures = masks.with_name(masks.name.removesuffix("_vos") + "_vis")
    file = next((path for path in (pictures / name / "confidence.csv", pictures / "confidence.csv")
                 if path.is_file()), None)
    if file is None:
        return {}
    return {(row.name, row.object): row for row in read_table(file)}
