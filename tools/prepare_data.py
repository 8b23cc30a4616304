"""Decode video files to frames that can be trained on, and index the data root.

    python tools/prepare_data.py clip.mp4 folder_of_videos ... --root data --short-side 480

Each video becomes ROOT/JPEGImages/<name>/00000.jpg ..., with its rate in video.json; a folder appears when it is whole,
and a video whose folder exists is left alone, so that an interrupted run is simply repeated. Without videos the root
is only indexed.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path

import cv2
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from datasets.filelists import scan_videos
from datasets.index import index_videos, keep_index, log_index
from utils.config import load_train_config
from utils.console import start_console
from utils.errors import UserError, run_script

VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}

logger = logging.getLogger("prepare_data")


def main() -> None:
    """Arguments, one folder a video, the index; an error at the end names the videos that could not be decoded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="video files, or folders that hold some in any depth")
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data root (DATASET.ROOT)")
    parser.add_argument("--short-side", type=int, default=480, help="of the frames in pixels; smaller ones stay")
    parser.add_argument("--quality", type=int, default=92, help="of the JPEGs, 1 to 100")
    args = parser.parse_args()
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
    length = load_train_config().video_len
    index = index_videos(scan_videos(args.root), length)
    log_index(index, length)
    keep_index(index, args.root)
    if broken:
        raise UserError(f"{len(broken)} videos could not be decoded: {', '.join(broken)}; convert or replace them")


def find_videos(paths: list[Path]) -> dict[str, Path]:
    """Name every video file: by its stem, within a folder by its path there. `UserError` where two get one name."""
    videos = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name a video file or a folder of them")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
        if not files:
            raise UserError(f"{path} holds no video files ({' '.join(sorted(VIDEO_SUFFIXES))}); name another folder")
        for file in files:
            name = file.stem if path.is_file() else str(file.relative_to(path).with_suffix(""))
            if videos.setdefault(name, file) != file:
                raise UserError(f"{videos[name]} and {file} would both become {name}; rename one of them")
    return videos


def decode_video(video: Path, folder: Path, short_side: int, quality: int) -> bool:
    """Decode to `folder`, whole or not at all; False, with a warning, where the file has no frames to give."""
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left
        partial.mkdir(parents=True)
        count, fps = write_frames(cv2.VideoCapture(str(video)), partial, short_side, quality)
        if not count:
            logger.warning("%s has no frames that can be decoded", video)
            return False
        (partial / "video.json").write_text(json.dumps({"source": video.name, "fps": fps, "frames": count}) + "\n")
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error.strerror}); free some space or give another --root") \
            from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: %d frames at %s frames a second", folder, count, f"{fps:.3g}" if fps else "an unknown number of")
    return True


def write_frames(capture: cv2.VideoCapture, folder: Path, short_side: int, quality: int) -> tuple[int, float | None]:
    """Write all frames of a video as JPEGs, reduced to the short side; how many, and frames a second if it is known."""
    count, fps = 0, capture.get(cv2.CAP_PROP_FPS) or None
    expected = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    with tqdm(total=expected or None, desc=folder.name.strip("."), unit="frame", leave=False) as bar:
        while True:
            read, frame = capture.read()
            if not read:
                break
            height, width = frame.shape[:2]
            scale = min(1.0, short_side / min(height, width))
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
            (folder / f"{count:05d}.jpg").write_bytes(data.tobytes())
            count += 1
            bar.update()
    if 0 < count < 0.9 * expected:
        logger.warning("%s: %d of %d frames could be decoded; the file may be cut short", folder.name, count, expected)
    return count, fps


if __name__ == "__main__":
    run_script(main)
