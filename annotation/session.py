"""The work on one video: its objects, the masks that a person gave and the results, on disk as soon as they come.

In the output folder, beside what `infer_vos_dul.py --video` writes (`<key>_vos`, `<key>_vis`):
    given/<frame>.png   the masks that a person drew or corrected, index masks for `--mask FRAME=FILE`
    annotation.json     the objects: id, name, color, whether they are shown
"""

from __future__ import annotations

import functools
import json
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from datasets.filelists import files_by_stem
from datasets.video import OwnVideo
from utils.errors import UserError
from utils.files import write_text
from utils.masks import DAVIS_PALETTE, object_ids, read_mask, write_mask

FRAMES_HELD = 48  # encoded frames kept for a page that goes back and forth
FRAME_QUALITY = 92  # JPEG, of the frames on the page
MOST_OBJECTS = 254  # ids 1 to 254; 255 is what other programs call void
LONGEST_NAME = 80


class StaleError(Exception):
    """A change was made to something that has changed since it was read; nothing was done."""


class FrameMask(NamedTuple):
    """The mask that a frame shows."""

    ids: np.ndarray  # uint8 [H,W]
    source: str  # "given", "result" or "none"
    revision: int  # of the frame; every change counts it up


class Session:
    """One person's work on one video; safe to be used by several threads.

    Args:
        video: the frames.
        folder: where everything is kept; what is there from an earlier session goes on.
        results: the folder of the result masks, `<key>_vos/<name>`.

    Attributes:
        given, found: numbers of the frames with a mask given, and with a result.
        objects: by id.
        picture: frame number to JPEG; `KeyError` where there is none.

    Raises:
        UserError: files of an earlier session do not fit the video or cannot be read.
    """

    def __init__(self, video: OwnVideo, folder: Path, results: Path):
        self.video, self.folder, self.results = video, folder, results
        self._lock = threading.RLock()
        self.picture = functools.lru_cache(FRAMES_HELD)(self._encoded)
        self._revisions: dict[int, int] = {}
        self._numbers = {name: number for number, name in enumerate(video.names)}
        self.given = self._masks_in(folder / "given")
        self.found = self._masks_in(results)
        self.objects = self._read_objects()

    # --- frames ---
    def frame(self, number: int) -> np.ndarray:
        """Frame `number`, uint8 RGB [H,W,3]; `KeyError` where there is none."""
        self._refuse_unknown(number)
        return self.video.frame(number)

    # --- masks ---
    def mask(self, number: int) -> FrameMask:
        """What frame `number` shows: the mask given, else the result, else nothing; `KeyError` for no such frame."""
        self._refuse_unknown(number)
        with self._lock:
            for source, file in (("given", self._given_file(number)), ("result", self._result_file(number))):
                if file.is_file():
                    return FrameMask(read_mask(file), source, self.revision(number))
            return FrameMask(np.zeros(self.video.size[::-1], np.uint8), "none", self.revision(number))

    def give(self, number: int, ids: np.ndarray, revision: int) -> int:
        """Keep `ids`, uint8 [H,W], as the mask given of frame `number`; returns the frame's new revision.

        `StaleError` where `revision` is not the frame's; `UserError` for ids that no object has.
        """
        with self._lock:
            self._refuse_stale(number, revision)
            unknown = set(object_ids(ids)) - set(self.objects)
            if unknown:
                raise UserError(f"a mask holds ids of objects; {sorted(unknown)} are none of {sorted(self.objects)}")
            write_mask(self._given_file(number), ids)
            self.given.add(number)
            return self._changed(number)

    def withdraw(self, number: int, revision: int) -> int:
        """Forget the mask given of frame `number`, so that the result shows again; as `give` otherwise."""
        with self._lock:
            self._refuse_stale(number, revision)
            self.given.discard(number)
            self._given_file(number).unlink(missing_ok=True)
            return self._changed(number)

    def given_masks(self) -> dict[int, np.ndarray]:
        """The masks given, frame number to index mask, in order of frames; empty ones say nothing and are left out."""
        with self._lock:
            masks = {number: read_mask(self._given_file(number)) for number in sorted(self.given)}
        return {number: mask for number, mask in masks.items() if mask.any()}

    def given_files(self) -> dict[int, Path]:
        """The files of the masks given, by frame number, in order of frames."""
        with self._lock:
            return {number: self._given_file(number) for number in sorted(self.given)}

    def result_changed(self, number: int) -> None:
        """A result of frame `number` has been written; the frame shows it where no mask is given."""
        with self._lock:
            self.found.add(number)
            if number not in self.given:
                self._changed(number)

    def result_ranges(self) -> list[tuple[int, int]]:
        """Where there are results: ranges of frame numbers, each from its first to before its last one's next."""
        with self._lock:
            numbers = sorted(self.found)
            starts = [number for number in numbers if number - 1 not in self.found]
            stops = [number + 1 for number in numbers if number + 1 not in self.found]
        return list(zip(starts, stops))

    def revision(self, number: int) -> int:
        """How often what frame `number` shows has changed."""
        return self._revisions.get(number, 0)

    # --- objects ---
    def add_object(self) -> int:
        """A new object; returns its id. `UserError` where all are taken."""
        with self._lock:
            k = next((k for k in range(1, MOST_OBJECTS + 1) if k not in self.objects), None)
            if k is None:
                raise UserError(f"a video has at most {MOST_OBJECTS} objects; delete one first")
            self.objects[k] = _new_object(k)
            self._write_objects()
            return k

    def change_object(self, k: int, change: dict[str, Any]) -> None:
        """Set some of `name`, `color` (#rrggbb) and `visible` of object `k`; `UserError` for anything else."""
        kinds = {"name": lambda v: isinstance(v, str) and 0 < len(v.strip()) <= LONGEST_NAME and v.isprintable(),
                 "color": lambda v: isinstance(v, str) and re.fullmatch(r"#[0-9a-f]{6}", v) is not None,
                 "visible": lambda v: isinstance(v, bool)}
        with self._lock:
            wrong = [name for name, value in change.items() if name not in kinds or not kinds[name](value)]
            if k not in self.objects or wrong:
                raise UserError(f"an object has a name of 1 to {LONGEST_NAME} characters, a colour #rrggbb and a "
                                f"switch visible; object {k} cannot take "
                                f"{', '.join(wrong)[:80] or 'anything: it does not exist'}")
            self.objects[k] = {**self.objects[k], **change}
            self._write_objects()

    def delete_object(self, k: int) -> None:
        """Remove object `k` and its pixels from every mask."""
        with self._lock:
            self.objects.pop(k, None)
            for number in sorted(self.given | self.found):
                for file in (self._given_file(number), self._result_file(number)):
                    if file.is_file() and k in object_ids(ids := read_mask(file)):
                        write_mask(file, np.where(ids == k, 0, ids))
                        self._changed(number)
            self._write_objects()

    # --- inner parts ---
    def _encoded(self, number: int) -> bytes:
        quality = [cv2.IMWRITE_JPEG_QUALITY, FRAME_QUALITY]
        return cv2.imencode(".jpg", self.frame(number)[..., ::-1], quality)[1].tobytes()

    def _given_file(self, number: int) -> Path:
        return self.folder / "given" / f"{self.video.names[number]}.png"

    def _result_file(self, number: int) -> Path:
        return self.results / f"{self.video.names[number]}.png"

    def _masks_in(self, folder: Path) -> set[int]:
        """Numbers of the frames that have masks in a folder of an earlier session."""
        numbers = set()
        for file in files_by_stem(folder, {".png"}).values():
            if file.stem not in self._numbers or read_mask(file).shape != self.video.size[::-1]:
                raise UserError(f"masks kept in {folder} are those of one video's frames, and {file.name} does not fit "
                                f"{self.video.path}; give another --output")
            numbers.add(self._numbers[file.stem])
        return numbers

    def _read_objects(self) -> dict[int, dict[str, Any]]:
        """The objects of an earlier session, and those that its masks have."""
        path = self.folder / "annotation.json"
        objects: dict[int, dict[str, Any]] = {}
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))["objects"]
                objects = {int(k): {**_new_object(int(k)), **one} for k, one in kept.items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} does not hold the objects of an annotation ({error!r}); mend it, or give "
                                "another --output") from error
        files = [self._given_file(number) for number in self.given] + [self._result_file(n) for n in self.found]
        for k in sorted({k for file in files for k in object_ids(read_mask(file))} - set(objects)):
            objects[k] = _new_object(k)
        return objects

    def _write_objects(self) -> None:
        write_text(self.folder / "annotation.json", json.dumps({"objects": self.objects}, indent=2) + "\n")

    def _changed(self, number: int) -> int:
        self._revisions[number] = self._revisions.get(number, 0) + 1
        return self._revisions[number]

    def _refuse_stale(self, number: int, revision: int) -> None:
        self._refuse_unknown(number)
        if revision != self._revisions.get(number, 0):
            raise StaleError(f"frame {number} has changed since it was shown")

    def _refuse_unknown(self, number: int) -> None:
        if not 0 <= number < len(self.video):
            raise KeyError(number)


def _new_object(k: int) -> dict[str, Any]:
    return {"name": f"object {k}", "color": "#{:02x}{:02x}{:02x}".format(*DAVIS_PALETTE[k]), "visible": True}
