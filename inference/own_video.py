"""Masks for one's own video (`infer_vos_dul.py --video`): reader -> encoder -> propagator -> outputs."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets.mask_files import read_mask_files
from datasets.object_ids import ObjectIds
from datasets.own_video import OwnVideo, open_video
from inference.confidence import Confidence, LostWatch, confidence_map, confidences
from inference.two_way import PredictionSpool, blend
from inference.writer import WRITING_DEPTH, WRITING_THREADS, BackgroundWriter, ResultFolder, VideoWriter, write_jpeg
from models.propagation import Prediction, VideoPropagator
from utils.errors import UserError
from utils.files import replacing
from utils.iterators import ahead, batches
from utils.overlay import contact_sheet, heat_map, overlay
from utils.signals import StopRequest
from utils.timing import StageClock

SHEET_FRAMES = 12  # in the contact sheet

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """A video and what is given of it."""

    video: OwnVideo
    masks: dict[int, np.ndarray]  # frame to index mask, uint8 [H,W] of the video's size
    backward: bool

    @property
    def first(self) -> int:
        """The first frame with a mask."""
        return min(self.masks)

    @property
    def last(self) -> int:
        """The last frame with a mask."""
        return max(self.masks)


class Shown(NamedTuple):
    """A finished frame."""

    number: int
    frame: np.ndarray  # uint8 RGB [H,W,3]
    mask: np.ndarray  # uint8 [H,W]
    prediction: Prediction


def read_job(path: str, masks: Sequence[str], *, backward: bool, rate: float | None) -> Job:
    """Open the video and read the masks, `FILE` of frame 0 or `FRAME=FILE`; everything wrong is a `UserError`."""
    files: dict[int, list[Path]] = {}
    for word in masks:
        number, file = re.fullmatch(r"(?:(\d+)=)?(.+)", word, re.DOTALL).groups()
        files.setdefault(int(number or 0), []).append(Path(file))
    video = open_video(path, rate, exclude=[file for given in files.values() for file in given])
    beyond = max(files)
    if beyond >= len(video):
        raise UserError(f"--mask FRAME=FILE counts frames from 0, and {path} has {len(video)}; {beyond}="
                        f"{files[beyond][0]} is beyond its last frame {len(video) - 1}; correct the number")
    if not backward and min(files) > 0:
        raise UserError(f"masks are carried forward from the first frame, and the first mask given is that of frame "
                        f"{min(files)}; give --mask 0=FILE, or --backward to go from there to the start as well")
    if backward and beyond == 0:
        raise UserError("--backward goes from the last mask given to the start, and the only one is that of frame 0; "
                        "give a later one (--mask FRAME=FILE) or leave --backward out")
    width, height = video.size
    ids = ObjectIds()
    return Job(video, {number: read_mask_files(
        files[number], (height, width), ids, name=video.names[number],
        frame=lambda number=number: next(video.frames(number, number + 1))) for number in sorted(files)}, backward)


def save_frame(path: str, number: int, folder: Path, *, overwrite: bool) -> None:
    """Write frame `number` of a video as `folder`/frame_<number>.png, to paint a mask on."""
    video, out = open_video(path), folder / f"frame_{number}.png"
    if not 0 <= number < len(video):
        raise UserError(f"--save-frame N counts frames from 0, and {path} has {len(video)}; {number} is none of them; "
                        f"give 0 to {len(video) - 1}")
    if out.exists() and not overwrite:
        raise UserError(f"nothing is overwritten unasked, and {out} exists; give --overwrite or --mask-output-dir")
    with replacing(out) as temporary:
        Image.fromarray(next(video.frames(number, number + 1))).save(temporary, format="PNG")
    logger.info("frame %d is %s: paint each object in one opaque colour, then give --mask %d=FILE", number, out, number)


class Outputs:
    """The files of a video's run, written by threads: a context manager that leaves them whole.

    `<key>_vos/<name>/<frame>.png`, and in `<key>_vis`: `overlay.mp4`, `contact_sheet.jpg`, `confidence.csv` and, where
    asked for, heat maps `confidence/<frame>.jpg`.

    Args:
        root: the folder that `--mask-output-dir` names.
        key: the feature.
        video: whose results they are.
        palette: of the overlays.
        pictures: whether overlay and contact sheet are written.
        maps: whether heat maps of the confidence are.
    """

    def __init__(self, root: Path, key: str, video: OwnVideo, *, palette: str, pictures: bool, maps: bool):
        self.masks, self.folder = ResultFolder(root, key, overlays=False), root / f"{key}_vis"
        self._video, self._name = video, video.name
        self._palette, self._pictures, self._maps = palette, pictures, maps
        self._rows: list[tuple] = []
        self._sheet: list[tuple[str, np.ndarray]] = []
        self._in_sheet = set(np.linspace(0, len(video) - 1, SHEET_FRAMES).round().astype(int).tolist())
        self._watch, self._lost = LostWatch(), set()

    def claim(self, record: dict[str, Any], *, overwrite: bool) -> None:
        """Make room, as `ResultFolder.claim` does."""
        files = [self.folder / name for name in ("overlay.mp4", "contact_sheet.jpg", "confidence.csv")]
        existing = [file for file in (*files, *(self.folder / "confidence").glob("*.jpg")) if file.exists()]
        if existing and not overwrite:
            raise UserError(f"results are not overwritten unasked, and {existing[0]} exists; give --overwrite to "
                            "replace them, or another --mask-output-dir")
        self.masks.claim({self._name: self._video.names}, record, keep=False, overwrite=overwrite)
        for file in existing:
            file.unlink()

    def __enter__(self) -> Outputs:
        self._stack = ExitStack()
        if self._pictures:
            file = self._stack.enter_context(replacing(self.folder / "overlay.mp4"))
            self._overlay = VideoWriter(file, self._video.size, self._video.rate,
                                        pixel_aspect=self._video.pixel_aspect)
            self._stack.callback(self._overlay.close)
        enter = lambda threads: self._stack.enter_context(BackgroundWriter(threads=threads, depth=WRITING_DEPTH))
        self._writer, self._in_order = enter(WRITING_THREADS), enter(1)
        return self

    def write(self, shown: Shown) -> None:
        """Hand a frame over for writing; frames come in order."""
        name = self._video.names[shown.number]
        self._writer.submit(self.masks.write, self._name, name, shown.frame, shown.mask)
        self._note(shown.number, confidences(shown.prediction))
        if self._pictures:
            self._in_order.submit(self._show, shown)
        if self._maps:
            self._writer.submit(self._write_map, name, confidence_map(shown.prediction).cpu().numpy(), shown.frame)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is not None or not self._rows:
            return
        if self._sheet:
            write_jpeg(self.folder / "contact_sheet.jpg", contact_sheet(self._sheet))
        with (replacing(self.folder / "confidence.csv") as temporary,
              open(temporary, "w", newline="", encoding="utf-8") as file):
            names = ("frame", "name", *Confidence._fields, "lost")
            csv.writer(file, lineterminator="\n").writerows([names, *self._rows])

    def _note(self, number: int, found: Sequence[Confidence]) -> None:
        before, lost = self._lost, self._watch(found)
        self._lost = lost
        for one in found:
            self._rows.append((number, self._video.names[number], one.object, one.cells, f"{one.similarity:.4f}",
                               f"{one.margin:.4f}", int(one.object in lost)))
        for word, changed in (("lost", lost - before), ("found again", before - lost)):
            if changed:
                logger.info("object %s is %s in frame %d", ", ".join(map(str, sorted(changed))), word, number)

    def _show(self, shown: Shown) -> None:
        picture = overlay(shown.frame, shown.mask, palette=self._palette, labels=True)
        self._overlay.write(picture, self._video.time(shown.number))
        if shown.number in self._in_sheet:
            self._sheet.append((f"frame {shown.number}", picture))

    def _write_map(self, name: str, confidence: np.ndarray, frame: np.ndarray) -> None:
        write_jpeg(self.folder / "confidence" / f"{name}.jpg", heat_map(confidence, frame.shape[:2], frame))


def run_job(job: Job, new_propagator: Callable[[], VideoPropagator], outputs: Outputs, *, device: torch.device,
            batch_size: int, clock: StageClock) -> int | None:
    """Carry the masks through the video and write everything; after a signal what was done, and the shell's status."""
    stop, written, frames = StopRequest(), 0, len(job.video)
    with (ExitStack() as stack, logging_redirect_tqdm(),
          tqdm(total=frames + (job.last + 1 if job.backward else 0), unit="frame", disable=None) as bar):
        spool = None
        if job.backward:
            outputs.folder.mkdir(parents=True, exist_ok=True)
            spool = PredictionSpool(outputs.folder)
            bar.set_postfix_str("backward")
            for _ in backward_pass(job, new_propagator(), spool, batch_size, clock):
                bar.update()
                if stop.received:
                    break
        bar.set_postfix_str("forward")
        if not stop.received:
            stack.enter_context(outputs)
            for shown in forward_pass(job, new_propagator(), spool, device, batch_size, clock):
                with clock.stage("write"):
                    outputs.write(shown)
                written += 1
                bar.update()
                if stop.received:
                    break
    if written < frames:
        logger.warning("ended after %d of %d frames; what was done is written", written, frames)
        return 128 + stop.received
    return None


def backward_pass(job: Job, propagator: VideoPropagator, spool: PredictionSpool, batch_size: int,
                  clock: StageClock) -> Iterator[int]:
    """Carry the masks from the last one given to the start; keeps what the forward pass will ask for."""
    frames = zip(range(job.last, -1, -1), job.video.reversed_frames(job.last))
    for number, _, features in encoded(frames, propagator, batch_size, clock):
        with clock.stage("propagate"):
            prediction = propagator.predict(features, job.masks.get(number), correct=True)
            if number not in job.masks:
                spool.put(number, prediction)
        yield number


def forward_pass(job: Job, propagator: VideoPropagator, spool: PredictionSpool | None, device: torch.device,
                 batch_size: int, clock: StageClock) -> Iterator[Shown]:
    """All frames in order; between two masks given both directions count, the nearer one more."""
    for number, frame in enumerate(ahead(job.video.frames(0, job.first), 4)):
        prediction = spool.get(number, device)
        yield Shown(number, frame, propagator.index_mask(prediction, frame), prediction)
    frames = zip(range(job.first, len(job.video)), job.video.frames(job.first))
    for number, frame, features in encoded(frames, propagator, batch_size, clock):
        with clock.stage("propagate"):
            prediction = propagator.predict(features, job.masks.get(number), correct=True)
            if spool and number < job.last and number not in job.masks:
                prediction = blend(prediction, spool.get(number, device), backward_share(number, job.masks))
            mask = propagator.index_mask(prediction, frame)
        yield Shown(number, frame, mask, prediction)


def backward_share(number: int, given: Sequence[int]) -> float:
    """How far `number` is on its way from the frame given before it to the one after it, in [0,1]."""
    before, after = max(g for g in given if g <= number), min(g for g in given if g >= number)
    return float(Fraction(number - before, after - before)) if after > before else 0.0


def encoded(frames: Iterator[tuple[int, np.ndarray]], propagator: VideoPropagator, batch_size: int,
            clock: StageClock) -> Iterator[tuple[int, np.ndarray, torch.Tensor]]:
    """Numbered frames with their features; decoded ahead by a thread, encoded `batch_size` at once."""
    for batch in clock.waiting("decode", batches(ahead(frames, 2 * batch_size + 4), batch_size)):
        with clock.stage("encode"):
            features = propagator.encode([frame for _, frame in batch])
        for (number, frame), feature in zip(batch, features):
            yield number, frame, feature
