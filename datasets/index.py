"""What a data root holds, logged and kept as `video_index.json` beside it: counts, sizes, too short, broken."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.filelists import Video
from utils.errors import UserError
from utils.files import write_text
from utils.pictures import PictureError, read_size

logger = logging.getLogger(__name__)


def index_videos(videos: Sequence[Video], length: int) -> dict[str, Any]:
    """Count and log videos and frames; name those of under `length` frames and those whose first cannot be opened."""
    items: list[dict[str, Any]] = [
        {"name": video.name, "frames": len(video.frames), "size": _size(video.frames[0])} for video in videos]
    index: dict[str, Any] = {
        "videos": len(items),
        "frames": sum(item["frames"] for item in items),
        "sizes": dict(Counter("{}x{}".format(*item["size"]) for item in items if item["size"]).most_common()),
        "too_short": [item["name"] for item in items if item["frames"] < length],
        "broken": [item["name"] for item in items if item["size"] is None],
        "items": items,
    }
    sizes = ", ".join(f"{count} of {size}" for size, count in list(index["sizes"].items())[:3])
    logger.info("%d videos, %d frames; most frequent sizes: %s", index["videos"], index["frames"], sizes or "none")
    for key, why in (("too_short", f"skipped, shorter than {length} frames"), ("broken", "with a broken first frame")):
        if index[key]:
            logger.warning("%d videos %s: %s%s", len(index[key]), why, ", ".join(index[key][:5]),
                           ", ..." if len(index[key]) > 5 else "")
    return index


def keep_index(index: dict[str, Any], root: str | Path) -> None:
    """Write ROOT/video_index.json; a root that cannot be written to is no error, the log has the counts."""
    path = Path(root) / "video_index.json"
    try:
        write_text(path, json.dumps(index, indent=1) + "\n")
    except UserError as error:
        logger.info("the index of videos is not kept: %s", error)
    else:
        logger.info("the index of videos is in %s", path)


def _size(frame: Path) -> tuple[int, int] | None:
    """(width, height) from the file's header [pixels]."""
    try:
        return read_size(frame)
    except PictureError:
        return None
