"""What becomes of a video's results: masks, overlays, a video, a contact sheet, confidence; written by threads."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import numpy as np

from datasets.video import OwnVideo
from inference.confidence import LostWatch, Row, confidence_map, confidences, write_table
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


class Outputs:
    """Writes the files of a sequence. A context manager: files are whole when it is left, and so is what a run that
    ended early has done; after an error the video, the sheet and the table are left out.

    Args:
        files: where they lie and which.
        video: whose results they are.
        refinement: of the masks.
        palette: of the overlays, a key of `PALETTES`.
        ids, stamp: whether the video and the sheet show objects' ids, and frame number and time.
    """

    def __init__(self, files: SequenceFiles, video: OwnVideo, *, refinement: Refinement | None = None,
                 palette: str = "davis", ids: bool = True, stamp: bool = False):
        self.files, self._video, self._products = files, video, set(files.products)
        self._refinement, self._palette, self._ids, self._stamp = refinement or Refinement(), palette, ids, stamp
        self._rows: list[Row] = []
        self._sheet: list[tuple[str, np.ndarray]] = []
        places = np.linspace(0, max(len(files.frames) - 1, 0), SHEET_FRAMES).round().astype(int)
        self._in_sheet = {files.frames[place] for place in places if files.frames and "sheet" in self._products}
        self._watch = LostWatch()
        self._reported: set[int] = set()  # objects of which it was said that they are lost

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
        if "video" in self._products or name in self._in_sheet:
            self._in_order.submit(self._show, name, result, mask)
        if "confidence" in self._products:
            self._rows += [Row(result.number, name, *one, one.object in lost) for one in found]
            for k in sorted(lost - self._reported):
                logger.info("object %d is lost in frame %d", k, result.number)
            self._reported |= lost

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is not None:
            return
        if self._sheet:
            write_jpeg(self.files.sheet, contact_sheet(self._sheet))
        if self._rows:
            write_table(self.files.table, self._rows)
        for k in sorted(self._reported):
            frames = [row.frame for row in self._rows if row.object == k and row.lost]
            logger.warning("object %d is lost in %d frames, the first is frame %d; %s has them", k, len(frames),
                           frames[0], self.files.table)

    def _write_frame(self, name: str, result: FrameResult, mask: np.ndarray) -> None:
        if "overlays" in self._products:
            picture = overlay(result.frame, mask, palette=self._palette)
            write_jpeg(self.files.overlay(name), picture, OVERLAY_QUALITY, sync=False)
        if "maps" in self._products:
            confidence = confidence_map(result.prediction).cpu().numpy()
            picture = heat_map(confidence, result.frame.shape[:2], result.frame)
            write_jpeg(self.files.map(name), picture, sync=False)
        write_mask(self.files.mask(name), mask, sync=False)

    def _show(self, name: str, result: FrameResult, mask: np.ndarray) -> None:
        picture = overlay(result.frame, mask, palette=self._palette, labels=self._ids)
        if self._stamp:
            write_stamp(picture, f"{result.number}  {float(self._video.time(result.number)):.2f} s")
        if "video" in self._products:
            self._movie.write(picture, self._video.time(result.number))
        if name in self._in_sheet:
            self._sheet.append((f"frame {result.number}", picture))
