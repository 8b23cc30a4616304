"""Decode video files to frames that can be trained on, and index the data root.

    python tools/prepare_data.py clip.mp4 folder_of_videos ... --root data --short-side 480
    python tools/prepare_data.py --check data      # which published data sets are there, what they lack, what to do

Each video becomes ROOT/JPEGImages/<name>/00000.jpg ..., with its rate in video.json; a folder appears when it is whole,
and a video whose folder exists is left alone, so that an interrupted run is simply repeated. Of a folder every file is
tried that is not hidden, and what is no video is named. Without videos the root is only indexed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from datasets.filelists import scan_videos
from datasets.inventory import index_videos, inventory, keep_index
from datasets.video import result_name
from datasets.video_file import VideoFile, holds_video
from utils.config import load_train_config
from utils.console import start_console
from utils.errors import UserError, run_script
from utils.files import new_folder, write_text
from utils.overlay import write_jpeg

# Files of these names have to be videos; others in a folder are passed over where they are none.
VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts", ".vob",
                  ".flv", ".asf", ".mxf", ".3gp", ".ogv"}
NAMED_AT_MOST = 20  # files that are passed over

logger = logging.getLogger("prepare_data")


def main(argv: Sequence[str] | None = None) -> None:
    """Arguments, one folder a video, the index; an error at the end names the videos that could not be decoded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="video files, or folders that hold some in any depth")
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data root (DATASET.ROOT)")
    parser.add_argument("--short-side", type=int, default=480, help="of the frames in pixels; smaller ones stay")
    parser.add_argument("--quality", type=int, default=92, help="of the JPEGs, 1 to 100")
    parser.add_argument("--check", type=Path, metavar="ROOT", help="say of each published data set what is there")
    args = parser.parse_args(argv)
    if args.check:
        return print("\n".join(f"{name:20} {state:8} {detail}" for name, state, detail in inventory(args.check)))
    if args.short_side < 1 or not 1 <= args.quality <= 100:
        raise UserError(f"--short-side is at least 1 and --quality from 1 to 100; they are {args.short_side} and "
                        f"{args.quality}")
    start_console()
    broken = []
    with logging_redirect_tqdm():
        for name, video in tqdm(find_videos(args.videos).items(), unit="video", disable=not args.videos):
            folder = args.root / "JPEGImages" / name
            if folder.exists():
                logger.info("%s exists and is left alone", folder)
            elif not decode_video(video, folder, args.short_side, args.quality):
                broken.append(str(video))
    keep_index(index_videos(scan_videos(args.root), load_train_config().video_len), args.root)
    if broken:
        raise UserError(f"{len(broken)} videos could not be decoded: {', '.join(broken)}; convert or replace them")


def find_videos(paths: list[Path]) -> dict[str, Path]:
    """Name every video file: by its stem, within a folder by its path there. `UserError` where two get one name."""
    videos: dict[str, Path] = {}
    passed_over: list[str] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name a video file or a folder of them")
        folder = path if path.is_dir() else path.parent
        files = sorted(file for file in path.rglob("*") if not file.is_dir() and not any(
            part.startswith(".") for part in file.relative_to(path).parts)) if path.is_dir() else [path]
        taken = [file for file in files if file == path or file.suffix.lower() in VIDEO_SUFFIXES or holds_video(file)]
        passed_over += map(str, sorted({*files} - {*taken}))
        if not taken:
            raise UserError(f"{path} holds no video files; name another folder")
        for file in taken:
            name = str(file.relative_to(folder).with_name(result_name(file)))
            if videos.setdefault(name, file) != file:
                raise UserError(f"{videos[name]} and {file} would both become {name}; rename one of them")
    if passed_over:
        more = f" and {len(passed_over) - NAMED_AT_MOST} more" if len(passed_over) > NAMED_AT_MOST else ""
        logger.warning("passed over, since they are no videos: %s%s", ", ".join(passed_over[:NAMED_AT_MOST]), more)
    return videos


def decode_video(video: Path, folder: Path, short_side: int, quality: int) -> bool:
    """Decode to `folder`, whole or not at all; False, with a warning, where the file cannot be read as a video."""
    try:
        opened = VideoFile(video)
    except UserError as error:
        logger.warning("%s", error)
        return False
    width, height = opened.size
    scale = min(1.0, short_side / min(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    frames = tqdm(opened.frames(), folder.name, len(opened), unit="frame", leave=False)
    with new_folder(folder) as partial:
        for name, frame in zip(opened.names, frames):
            reduced = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            write_jpeg(partial / f"{name}.jpg", reduced, quality, sync=False)
        record = {"source": video.name, "fps": float(opened.rate), "frames": len(opened)}
        write_text(partial / "video.json", json.dumps(record) + "\n")
    logger.info("%s: %d frames at %.3g frames a second", folder, len(opened), opened.rate)
    return True


if __name__ == "__main__":
    run_script(main)
