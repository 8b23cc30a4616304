"""The files of a run: where they lie, which sequence is whose work, and what of it may be replaced."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from models.neighbours import METHODS
from utils.config import TestSettings, resolved
from utils.errors import UserError
from utils.feature_spec import RANDOM, folder_name
from utils.files import claimed, sync_files, write_text
from utils.masks import read_mask
from utils.run_record import RECORD, read_record

# What can be written beside the masks: a JPEG a frame with the objects laid over, the same as a video, a sheet of some
# frames, a table of each object's confidence, and a JPEG a frame that shows it.
PRODUCTS = ("overlays", "video", "sheet", "confidence", "maps")


class SequenceFiles:
    """The files of one sequence.

    Args:
        masks: folder of `<frame>.png` and of `run.json`, which says what made them.
        overlays: folder of `<frame>.jpg`.
        rest: folder of `video`, `sheet`, `table`, maps and `passes`.
        frames: names of the frames whose results are written.
        products: those of `PRODUCTS` that are.
        source: what the masks depend on besides the method; what stands in it under "masks" may change where a run goes
            on.

    Attributes:
        video: the overlays.
        sheet: some of them.
        table: the confidence of every object in every frame.
        passes: folder of what an interrupted run goes on with; it is gone when the run is finished.
    """

    def __init__(self, masks: Path, overlays: Path, rest: Path, frames: Sequence[str], products: Sequence[str],
                 source: dict[str, Any]):
        self.masks, self.overlays, self.rest = masks, overlays, rest
        self.frames, self.products, self.source = frames, products, source
        self.video, self.sheet, self.table, self.passes = (rest / name for name in (
            "overlay.mp4", "contact_sheet.jpg", "confidence.csv", f".{masks.name}.passes"))

    def mask(self, frame: str) -> Path:
        """The mask of a frame."""
        return self.masks / f"{frame}.png"

    def overlay(self, frame: str) -> Path:
        """The overlay of a frame."""
        return self.overlays / f"{frame}.jpg"

    def map(self, frame: str) -> Path:
        """The confidence map of a frame."""
        return self.rest / "confidence" / f"{frame}.jpg"

    def begin(self, method: dict[str, Any]) -> None:
        """Record what makes the files that follow."""
        self._record(method, finished=False)

    def finish(self, method: dict[str, Any]) -> None:
        """Record that all files are there, once they are on the disk."""
        sync_files(self.masks)
        self._record(method, finished=True)
        shutil.rmtree(self.passes, ignore_errors=True)
        with suppress(OSError):
            os.removedirs(self.rest)  # where nothing else was to be written there

    def recorded(self) -> dict[str, Any] | None:
        """What `begin` or `finish` wrote last; None where this program has made nothing there."""
        record = read_record(self.masks)
        return record if {"method", "source", "finished", "frames"} <= record.keys() else None

    def present(self, frames: Iterable[str]) -> list[Path]:
        """The files that there are of `frames`, and of the sequence as a whole, whatever the products."""
        files = [self.video, self.sheet, self.table,
                 *(file(name) for name in frames for file in (self.mask, self.overlay, self.map))]
        return [file for file in files if os.path.lexists(file)]

    def is_finished(self, method: dict[str, Any]) -> bool:
        """Whether a run of this method recorded its end, every mask can be read and no product is gone."""
        before = self.recorded()
        if not before or not before["finished"] or (before["method"], before["source"]) != (method, self.source):
            return False
        files: dict[str, Iterable[Path]] = {
            "video": [self.video], "sheet": [self.sheet], "confidence": [self.table],
            "overlays": map(self.overlay, self.frames), "maps": map(self.map, self.frames)}
        try:
            for frame in self.frames:
                read_mask(self.mask(frame))
            return all(file.stat().st_size for product in self.products for file in files[product])
        except (UserError, OSError):
            return False

    def _record(self, method: dict[str, Any], *, finished: bool) -> None:
        record = {"finished": finished, "method": method, "source": self.source, "frames": list(self.frames)}
        write_text(self.masks / RECORD, json.dumps(record) + "\n")


class ResultFolder:
    """What `--mask-output-dir` names: `<root>/<key>_vos` has the masks of all sequences, `<root>/<key>_vis` pictures.

    `key` is TEST.KEY.
    """

    def __init__(self, root: str | Path, key: str):
        self.masks, self.pictures = (Path(root) / f"{folder_name(key)}_{kind}" for kind in ("vos", "vis"))

    def sequence(self, name: str, frames: Sequence[str], products: Sequence[str], source: dict[str, Any], *,
                 alone: bool = False) -> SequenceFiles:
        """The files of one sequence; of one that is `alone` in its folder some lie a level higher."""
        pictures = self.pictures / name
        rest = self.pictures if alone else pictures
        return SequenceFiles(self.masks / name, pictures, rest, frames, products, source)

    @contextmanager
    def claim(self, sequences: Sequence[SequenceFiles], record: dict[str, Any], *, inputs: Sequence[Path] = (),
              keep: bool = False, overwrite: bool = False) -> Iterator[list[SequenceFiles]]:
        """Make room for the results of `sequences`, put `record` into `<key>_vos/run.json`, hold the folder meanwhile.

        Nothing is lost unasked: results that are there already are a `UserError` unless `keep` (they are replaced one
        by one) or `overwrite` (they are removed first). In no case files are touched that no run has made, or that are
        among `inputs`, files and folders that this run reads, or, but for `overwrite`, that another
        `record["method"]` made.

        Yields:
            those of `sequences` that `keep` does not find finished.
        """
        with claimed(self.masks, also=[self.pictures]):
            method = record["method"]
            if not overwrite and (self.masks / RECORD).exists():
                _refuse_other_method(self.masks / RECORD, method)
            todo = [files for files in sequences if not (keep and files.is_finished(method))]
            old = [file for files in todo
                   for file in _replaceable(files, method, inputs, keep=keep, overwrite=overwrite)]
            if overwrite:  # a --continue after this run must not take an old file for a new one
                for file in old:
                    file.unlink()
                for files in todo:
                    shutil.rmtree(files.passes, ignore_errors=True)
            write_text(self.masks / RECORD, json.dumps(record, indent=2) + "\n")
            yield todo


@contextmanager
def claim_tables(folder: Path, names: Sequence[str], record: dict[str, Any], *, keep: bool = False,
                 overwrite: bool = False) -> Iterator[list[str]]:
    """Make room for `<folder>/<name>.csv`, put `record` into `<folder>/run.json`, hold the folder meanwhile.

    Nothing is lost unasked, as in `ResultFolder.claim`, and the tables of a folder come from one `record["method"]`.

    Yields:
        those of `names` whose table is not there, which with `keep` means that it is finished.
    """
    with claimed(folder):
        there = {file.stem for file in folder.glob("*.csv")}
        old = [name for name in names if name in there]
        if old and not (folder / RECORD).exists():
            raise UserError(f"only results of this program are replaced, and no {RECORD} in {folder} says that "
                            f"{old[0]}.csv is one; move it away or choose another --mask-output-dir")
        if old and not keep and not overwrite:
            raise UserError(f"results are not overwritten unasked, and {folder / old[0]}.csv exists; give --continue "
                            "to make what is missing, --overwrite to replace it, or another --mask-output-dir")
        if there - set(old if overwrite else ()):
            _refuse_other_method(folder / RECORD, record["method"])
        for name in old if overwrite else ():
            (folder / f"{name}.csv").unlink()
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
        yield [name for name in names if name not in there or overwrite]


def describe_method(settings: TestSettings, model: str | Path | None, *, precision: str = "fp32",
                    search: str = METHODS[0], files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the masks of a run depend on but for the video and the masks given.

    `model` is the ColorNet's file; `files` has that of each other network in the features, or "random".
    """
    digest = lambda file: file if file == RANDOM else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return {**resolved(settings), "precision": precision, "propagation": search,
            **({"model_sha256": digest(model)} if model else {}),
            **({"feature_weights": {name: digest(file) for name, file in files.items()}} if files else {})}


def _replaceable(files: SequenceFiles, method: dict[str, Any], inputs: Sequence[Path], *, keep: bool,
                 overwrite: bool) -> list[Path]:
    """What is there of a sequence, after a `UserError` for everything that forbids to replace it."""
    before = files.recorded()
    old = files.present({**dict.fromkeys(files.frames), **dict.fromkeys(before["frames"] if before else ())})
    if not old:
        return old
    if keep or overwrite:
        _refuse_inputs(old, inputs)
    if before is None:
        raise UserError(f"only results of this program are replaced, and no {RECORD} in {files.masks} says that "
                        f"{old[0]} is one; move it away or choose another --mask-output-dir")
    if not keep and not overwrite:
        raise UserError(f"results are not overwritten unasked, and {old[0]} exists; give --continue to go on with what "
                        "is not finished, --overwrite to replace it, or another --mask-output-dir")
    if keep:
        _refuse_other_method(files.masks / RECORD, method)
        same = [{key: value for key, value in source.items() if key != "masks"}
                for source in (before["source"], files.source)]
        if same[0] != same[1] or list(before["frames"]) != list(files.frames):
            raise UserError(f"--continue goes on with the same video, and {files.masks} was made of {same[0]}, not of "
                            f"{same[1]}; give --overwrite or another --mask-output-dir")
        if before["finished"] and before["source"] != files.source:
            raise UserError(f"{files.masks} is finished with other masks given; give --overwrite or another "
                            "--mask-output-dir")
    return old


def _refuse_inputs(old: Sequence[Path], inputs: Sequence[Path]) -> None:
    """`UserError` where a file that is to be replaced is one of `inputs`, or lies in one."""
    read = {identity for path in inputs if (identity := _identity(path))}
    for file in old:
        if {_identity(file), _identity(file.parent)} & read:
            raise UserError(f"a run does not replace what it reads, and {file} is both; copy it to another folder and "
                            "give the copy, or choose another --mask-output-dir")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _refuse_other_method(path: Path, method: dict[str, Any]) -> None:
    before = read_record(path.parent).get("method")
    if not isinstance(before, dict):
        raise UserError(f"{path} does not say how the masks beside it were made; give --overwrite or another "
                        "--mask-output-dir")
    changed = [f"{key} {before.get(key)} -> {method.get(key)}" for key in {**before, **method}
               if before.get(key) != method.get(key)]
    if changed:
        raise UserError(f"masks of one folder come from one method, and {path} was made with another "
                        f"({'; '.join(changed)}); give --overwrite or another --mask-output-dir")
