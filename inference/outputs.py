"""What becomes of a video's results: masks, overlays, a video, a contact sheet, confidence; written by threads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from datasets.video import OwnVideo
from inference.confidence import Confidence, LostWatch, Row, confidence_map, confidences, write_table
from inference.pipeline import FrameResult
from inference.refinement import Refinement
from inference.results import SequenceFiles
from inference.writer import WRITING_DEPTH, WRITING_THREADS, BackgroundWriter, VideoWriter
from utils.files import replacing
from utils.masks import write_mask
from utils.overlay import contact_sheet, heat_map, overlay, write_jpeg, write_stamp

OVERLAY_QUALITY = 90  # JPEG
SHEET_FRAMES = 12  # in the contact sheet

logger = logging.getLogger(__name__)


class Look(NamedTuple):
    """Of overlays."""

    palette: str = "davis"
    ids: bool = True  # objects' ids in the video and the sheet
    stamp: bool = False  # frame number and time in the video and the sheet


class Outputs:
    """Writes the files of a sequence. A context manager: files are whole when it is left, and so is what a run that
    ended early has done; after an error the video, the sheet and the table are left out.

    Args:
        files: where they lie and which.
        video: whose results they are.
        look: of the overlays.
        refinement: of the masks.
    """

    def __init__(self, files: SequenceFiles, video: OwnVideo, *, look: Look | None = None,
                 refinement: Refinement | None = None):
        self.files, self._video, self._products = files, video, set(files.products)
        self._look, self._refinement = look or Look(), refinement or Refinement()
        self._rows: list[Row] = []
        self._sheet: list[tuple[str, np.ndarray]] = []
        places = np.linspace(0, max(len(files.frames) - 1, 0), SHEET_FRAMES).round().astype(int)
        self._in_sheet = {files.frames[place] for place in places if files.frames}
        self._watch = LostWatch()
        self._lost: dict[int, list[int]] = {}  # the frames in which an object is lost

    def __enter__(self) -> Outputs:
        self._stack = ExitStack()
        if "video" in self._products:
            file = self._stack.enter_context(replacing(self.files.video))
            self._movie = VideoWriter(file, self._video.size, self._video.rate,
                                      pixel_aspect=self._video.pixel_aspect, sound=self._video.path)
            self._stack.callback(self._movie.close)
        enter = lambda threads: self._stack.enter_context(BackgroundWriter(threads=threads, depth=WRITING_DEPTH))
        self._writer, self._in_order = enter(WRITING_THREADS), enter(1)
        return self

    def write(self, result: FrameResult) -> None:
        """Hand a frame over for writing; frames come in order."""
        name = self._video.names[result.number]
        found = confidences(result.prediction) if "confidence" in self._products or self._refinement.drop_lost else []
        lost = self._watch(found)
        mask = self._refinement(result.mask, result.prediction, lost)
        # The mask comes last: a frame that has one has everything.
        self._writer.submit(self._write_frame, name, result, mask)
        if {"video", "sheet"} & self._products:
            self._in_order.submit(self._show, name, result, mask)
        if "confidence" in self._products:
            self._note(result.number, found, lost)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is not None:
            return
        if self._sheet:
            write_jpeg(self.files.sheet, contact_sheet(self._sheet))
        if self._rows:
            write_table(self.files.table, self._rows)
        for one, frames in sorted(self._lost.items()):
            logger.warning("object %d is lost in %d frames, the first is frame %d; %s has them", one, len(frames),
                           frames[0], self.files.table)

    def _write_frame(self, name: str, result: FrameResult, mask: np.ndarray) -> None:
        if "overlays" in self._products:
            picture = overlay(result.frame, mask, palette=self._look.palette)
            write_jpeg(self.files.overlay(name), picture, OVERLAY_QUALITY, sync=False)
        if "maps" in self._products:
            confidence = confidence_map(result.prediction).cpu().numpy()
            picture = heat_map(confidence, result.frame.shape[:2], result.frame)
            write_jpeg(self.files.map(name), picture, sync=False)
        write_mask(self.files.mask(name), mask, sync=False)

    def _show(self, name: str, result: FrameResult, mask: np.ndarray) -> None:
        if "video" not in self._products and name not in self._in_sheet:
            return
        picture = overlay(result.frame, mask, palette=self._look.palette, labels=self._look.ids)
        if self._look.stamp:
            write_stamp(picture, f"{result.number}  {float(self._video.time(result.number)):.2f} s")
        if "video" in self._products:
            self._movie.write(picture, self._video.time(result.number))
        if "sheet" in self._products and name in self._in_sheet:
            self._sheet.append((f"frame {result.number}", picture))

    def _note(self, number: int, found: Sequence[Confidence], lost: set[int]) -> None:
        for one in found:
            self._rows.append(Row(number, self._video.names[number], *one, one.object in lost))
        for k in sorted(lost):
            if k not in self._lost:
                logger.info("object %d is lost in frame %d", k, number)
            self._lost.setdefault(k, []).append(number)
