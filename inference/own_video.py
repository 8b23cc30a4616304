"""What `infer_vos_dul.py --video` is given, read and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.mask_files import read_mask_files
from datasets.object_ids import ObjectIds
from datasets.own_video import open_video
from inference.pipeline import Job
from inference.two_way import digest
from utils.errors import UserError
from utils.files import replacing

logger = logging.getLogger(__name__)


def own_video_defaults(preset: str | None) -> dict[str, Any]:
    """What a video of one's own takes `instead` of a list's defaults: its own aspect and, but for a `preset`, labels of
    parts of cells and masks that follow the colours of the frames (docs/experiments/subcells.md has what that gains).
    """
    return {"TEST.INFER_WH": [0, 0], **({} if preset else {"TEST.SUBCELLS": 2, "TEST.UPSAMPLE": "bilateral"})}


def read_job(path: str, masks: Sequence[str], *, backward: bool, rate: float | None) -> Job:
    """Open the video and read the masks, `FILE` of frame 0 or `FRAME=FILE`; everything wrong is a `UserError`."""
    files: dict[int, list[Path]] = {}
    for number, file in map(split_mask_word, masks):
        files.setdefault(number, []).append(file)
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
        frame=partial(video.frame, number)) for number in sorted(files)},
        backward=backward)


def split_mask_word(word: str) -> tuple[int, Path]:
    """`FILE` or `FRAME=FILE` to frame, 0 where none is named, and file."""
    number, _, file = word.partition("=")
    return (int(number), Path(file)) if number.isdecimal() and file else (0, Path(word))


def save_frame(path: str, number: int, folder: Path, *, overwrite: bool) -> None:
    """Write frame `number` of a video as `folder`/frame_<number>.png, to paint a mask on."""
    video, out = open_video(path), folder / f"frame_{number}.png"
    if not 0 <= number < len(video):
        raise UserError(f"--save-frame N counts frames from 0, and {path} has {len(video)}; {number} is none of them; "
                        f"give 0 to {len(video) - 1}")
    if out.exists() and not overwrite:
        raise UserError(f"nothing is overwritten unasked, and {out} exists; give --overwrite or --mask-output-dir")
    with replacing(out) as temporary:
        Image.fromarray(video.frame(number)).save(temporary, format="PNG")
    logger.info("frame %d is %s: paint each object in one opaque colour, then give --mask %d=FILE", number, out, number)


def describe_source(job: Job) -> dict[str, Any]:
    """What the masks of one's own video depend on besides the method."""
    return {"video": str(job.video.path.resolve()), "size": list(job.video.size), "backward": job.backward,
            "masks": {str(number): digest(mask) for number, mask in job.masks.items()}}
