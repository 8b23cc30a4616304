"""What the page starts: masks carried in a thread, exports; and what it is told of everything."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from annotation.doubtful import doubtful_frames
from annotation.session import Session
from inference.confidence import LostWatch, Row, confidences, read_table, write_table
from inference.exports.formats import FORMATS, writer
from inference.exports.results import Options, read_results
from inference.pipeline import FrameResult, Job, Pass, merged
from inference.results import SequenceFiles
from models.propagation import VideoPropagator
from utils.errors import UserError
from utils.masks import write_mask

DIRECTIONS = ("forward", "backward", "both")
OFFERED = ("coco", "youtube-vis", "cvat", "csv", "tiff")  # exports of one file
TABLE_EVERY = 5  # seconds between two writings of the table of confidence

logger = logging.getLogger(__name__)


class Work:
    """Carries the masks of a session and tells how far it is; one run at a time.

    Args:
        session, files: whose masks are carried, and where they go.
        load: loads the model and returns what makes new propagators; it is called in a thread.
        command: the words of the command that does the same, for masks given (frame number to file) and whether
            both directions count.
        batch_size: frames encoded at once.
    """

    def __init__(self, session: Session, files: SequenceFiles, load: Callable[[], Callable[[], VideoPropagator]],
                 command: Callable[[dict[int, Path], bool], str], *, batch_size: int):
        self._session, self._files, self._command, self._batch = session, files, command, batch_size
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._news = read_table(files.table) if files.table.is_file() else []  # in the order in which they are known
        self._progress: dict[str, Any] | None = None
        self._thread: threading.Thread | None = None
        self._both, self._error = False, ""
        self._model = "the model is being loaded"
        self._new_propagator: Callable[[], VideoPropagator] | None = None
        self._doubtful = functools.lru_cache(1)(self._find_doubtful)
        self._loading = threading.Thread(target=self._load, args=(load,), daemon=True)
        self._loading.start()

    # --- what the page asks for ---
    def carry(self, direction: object) -> None:
        """Start to carry the masks given "forward", "backward" or "both" ways; `UserError` where that cannot be."""
        masks = self._session.given_masks()
        if direction not in DIRECTIONS:
            raise UserError(f"masks are carried {', '.join(DIRECTIONS)}; not {direction!r:.40}")
        new_propagator = self._new_propagator
        if new_propagator is None:
            raise UserError(self._model)
        if not masks:
            raise UserError("masks are carried from a frame on which something is drawn; draw an object first")
        if direction != "forward" and max(masks) == 0:
            raise UserError("the only drawing is on the first frame, and there is nothing before it; carry it on")
        with self._lock:
            if self._progress is not None:
                raise UserError("masks are being carried; stop that first")
            self._progress, self._error = {"done": 0, "total": 1, "seconds_left": None}, ""
        self._stop.clear()
        self._both = direction != "forward"
        self._thread = threading.Thread(target=self._run, args=(direction, masks, new_propagator), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the run after the frame in progress; what was done stays."""
        self._stop.set()

    def wait(self) -> None:
        """Wait until the model is there, or is known not to be, and no masks are being carried."""
        self._loading.join()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Stop, and wait until everything is on disk."""
        self.stop()
        self.wait()

    def delete_object(self, k: int) -> None:
        """As `Session.delete_object`; `UserError` while masks are being carried."""
        if self._progress is not None:
            raise UserError("objects are not deleted while masks are being carried; stop that first")
        self._session.delete_object(k)

    def export(self, name: object) -> Path:
        """Write the results in a format of `OFFERED` to `exports/` and return the file."""
        if name not in OFFERED:
            raise UserError(f"the page exports {', '.join(OFFERED)}; tools/export.py has more")
        session = self._session
        sequences = read_results(self._files.masks.parent, str(session.video.path), [self._files.masks.name])
        path = session.folder / "exports" / f"{name}{FORMATS[name].suffixes[0]}"
        names = {k: session.objects[k]["name"] if k in session.objects else f"object {k}" for k in sequences[0].ids}
        writer(name, Options(names, sequences[0].ids))(sequences, path)
        return path

    def video(self) -> dict[str, Any]:
        """What does not change."""
        video = self._session.video
        return {"name": video.path.name, "frames": len(video), "width": video.size[0], "height": video.size[1],
                "rate": float(video.rate), "times": [float(video.time(number)) for number in range(len(video))],
                "formats": OFFERED}

    def state(self, since: int, frame: int) -> dict[str, Any]:
        """What does: rows of confidence after the first `since`, the revision of `frame`, objects, progress."""
        session = self._session
        return {"objects": session.objects, "given": sorted(session.given), "results": session.result_ranges(),
                "revision": session.revision(frame), "model": "ready" if self._new_propagator else self._model,
                "carrying": self._progress, "error": self._error, "rows_before": since,
                "doubtful": self._doubtful(len(self._news), frozenset(session.given), frozenset(session.objects)),
                "rows": [(row.frame, row.object, round(row.trust, 4), row.lost) for row in self._news[since:]],
                "command": self._command(session.given_files(), self._both)}

    # --- inner parts ---
    def _find_doubtful(self, rows: int, given: frozenset[int], objects: frozenset[int]) -> list[int]:
        confidence: dict[int, dict[int, float]] = {k: {} for k in objects}
        for row in self._news[:rows]:
            confidence.get(row.object, {})[row.frame] = row.trust  # a later row of a frame replaces an earlier one
        return doubtful_frames(confidence, given)

    def _load(self, load: Callable[[], Callable[[], VideoPropagator]]) -> None:
        try:
            self._new_propagator = load()
        except Exception as error:
            self._model = _words_of(error, "loading the model")

    def _run(self, direction: str, masks: dict[int, np.ndarray], new_propagator: Callable[[], VideoPropagator]) -> None:
        try:
            for result in self._results(direction, masks, new_propagator):
                self._keep(result)
                if self._stop.is_set():
                    break
        except Exception as error:
            self._error = _words_of(error, "carrying masks")
        finally:
            self._write_table()
            self._progress = None

    def _results(self, direction: str, masks: dict[int, np.ndarray],
                 new_propagator: Callable[[], VideoPropagator]) -> Iterator[FrameResult]:
        """The frames whose results change, as they come."""
        job = Job(self._session.video, masks, backward=direction != "forward")
        forward, backward = (Pass(job, backward=back, folder=self._files.passes, batch_size=self._batch)
                             for back in (False, True))
        left = [len(one.order) - one.done for one, wanted in
                ((backward, direction != "forward"), (forward, direction != "backward")) if wanted]
        self._watch, self._table_due = LostWatch(), 0.0
        self._began, self._done, self._total = time.monotonic(), 0, sum(left)
        if direction != "forward":
            for result in backward.carry(new_propagator()):
                self._count()
                # Between two masks this is half of the answer, which is better than none until the other half is there.
                if result.number < job.first or result.number not in self._session.found:
                    yield result
        before, whole = forward.done, backward.done == len(backward.order)
        fresh = merged(job, forward, backward, new_propagator()) if whole else forward.carry(new_propagator())
        for result in islice(fresh, job.first + forward.done if direction == "backward" else None):
            if forward.done > before:  # not one that was known
                before = forward.done
                self._count()
            yield result

    def _count(self) -> None:
        self._done, seconds = self._done + 1, time.monotonic() - self._began
        self._progress = {"done": self._done, "total": self._total,
                          "seconds_left": seconds / self._done * (self._total - self._done)}

    def _keep(self, result: FrameResult) -> None:
        """The result of a frame to disk, and its confidence to the table."""
        name = self._session.video.names[result.number]
        write_mask(self._files.mask(name), result.mask)
        found = confidences(result.prediction)
        lost = self._watch(found)
        self._news += [Row(result.number, name, *one, one.object in lost) for one in found]
        self._session.result_changed(result.number)
        if time.monotonic() > self._table_due:
            self._write_table()
            self._table_due = time.monotonic() + TABLE_EVERY

    def _write_table(self) -> None:
        latest = {(row.frame, row.object): row for row in self._news}
        if latest:
            write_table(self._files.table, [row for _, row in sorted(latest.items())])


def _words_of(error: Exception, doing: str) -> str:
    """What the page says of an error; one that is not the user's is logged, too."""
    if isinstance(error, UserError):
        return str(error)
    logger.error(doing, exc_info=error)
    return f"{doing} failed: {error}"

