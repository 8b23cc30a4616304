"""Which files make up which videos: the two kinds of list in `filelists/`, and the scan that replaces a missing one."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError
from utils.names import NAME_RULE, is_name
from utils.values import read_text

REPOSITORY = Path(__file__).resolve().parent.parent
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
MASK_SUFFIXES = {".png"}
NOT_TRAINING_FRAMES = {"Annotations", "COCO", "davis2017"}  # masks, stills and the evaluation set


class Video(NamedTuple):
    """A training video: its folder relative to the data root, and its frames in order of time."""

    name: str
    frames: list[Path]


class EvaluationFrame(NamedTuple):
    """One line of an evaluation list; a `mask` that is None or does not exist: no new object in this frame."""

    image: Path
    mask: Path | None
    save: bool


class EvaluationSequence(NamedTuple):
    """All frames of one folder in the order of the list; the first one's mask exists."""

    name: str
    frames: list[EvaluationFrame]


def locate_list(name: str | Path, root: str | Path) -> Path | None:
    """Look for a list under `root`, then in the repository, with or without `.txt`; None where there is none."""
    return next((path for path in _places(name, root) if os.path.isfile(path)), None)


def find_list(name: str | Path, root: str | Path) -> Path:
    """Like `locate_list`, but a list that is nowhere is a `UserError` that names the places."""
    path = locate_list(name, root)
    if path is None:
        raise UserError(f"file list {name} is in none of {', '.join(map(str, _places(name, root)))}; "
                        "create it there (filelists/README.md has the format) or name another list")
    return path


def _places(name: str | Path, root: str | Path) -> list[Path]:
    places = [folder / f"{name}{suffix}" for folder in (Path(root), REPOSITORY) for suffix in ("", ".txt")]
    return list(dict.fromkeys(places))


def read_training_list(path: str | Path, root: str | Path) -> list[Video]:
    """Read a list of one frame path a line; the parent folder is the video. `UserError` names list and line."""
    root, exists = _absolute(root), existence()
    videos: dict[Path, list[Path]] = {}
    for where, line in _lines(path):
        frame = _inside(root, line, where)
        if not exists(frame):
            raise UserError(f"{where}: frame {frame} does not exist; correct the list, or remove it to have the "
                            "data root scanned")
        videos.setdefault(frame.parent, []).append(frame)
    return [Video(os.path.relpath(folder, root), frames) for folder, frames in videos.items()]


def read_evaluation_list(path: str | Path, root: str | Path) -> list[EvaluationSequence]:
    """Read a list of `<save flag> <frame> <mask>` lines; the frame's parent folder is its sequence.

    `UserError`, naming list and line, for a malformed line, a frame that does not exist or is listed twice, a path
    that leaves `root`, two folders of one name, an empty list, and a sequence whose first frame has no mask.
    """
    root, exists = _absolute(root), existence()
    sequences: dict[str, list[EvaluationFrame]] = {}
    folders: dict[str, Path] = {}
    seen = set()
    for where, line in _lines(path):
        columns = [column.strip() for column in line.split("\t")] if "\t" in line else line.split()
        if len(columns) != 3 or columns[0] not in ("0", "1"):
            raise UserError(f"{where}: a line is '<save flag 0 or 1> <frame> <mask>', three words, or where names have "
                            f"blanks three columns with tabs between them; got {line!r}")
        image, mask = (_inside(root, column, where) for column in columns[1:])
        name = image.parent.name
        if not exists(image):
            raise UserError(f"{where}: frame {image} does not exist; correct the list or the data root {root}")
        if (name, image.stem) in seen or folders.setdefault(name, image.parent) != image.parent:
            raise UserError(f"{where}: {image} would be written as {name}/{image.stem}.png, as an earlier line is; "
                            "list every frame once and give every sequence a folder name of its own")
        if name not in sequences and not exists(mask):
            raise UserError(f"{where}: the first frame of sequence {name} needs a mask, and {mask} does not exist; "
                            "put it there or correct the list")
        seen.add((name, image.stem))
        sequences.setdefault(name, []).append(EvaluationFrame(image, mask, columns[0] == "1"))
    return [EvaluationSequence(name, frames) for name, frames in sequences.items()]


def scan_videos(root: str | Path, stills: str | None = None) -> list[Video]:
    """Find every folder of frames under ROOT/JPEGImages, or under ROOT where that does not exist, in any depth.

    Folders named Annotations, COCO or davis2017, hidden ones and, where it is given, the one of `stills` are passed
    over; frames are in natural order.
    """
    root = _absolute(root)
    top = root / "JPEGImages" if (root / "JPEGImages").is_dir() else root
    without = {os.path.realpath(root / stills)} if stills else set()
    return [Video(os.path.relpath(folder, root), frames)
            for folder, frames in _folders_of_frames(top, without, NOT_TRAINING_FRAMES)]


def list_stills(root: str | Path, folder: str) -> list[Video]:
    """Each picture of `folder`, below the root or absolute, in any depth, as a video of one frame.

    `UserError` where there is none.
    """
    root = _absolute(root)
    stills = [Video(os.path.relpath(frame, root), [frame])
              for _, frames in _folders_of_frames(root / folder, set(), set()) for frame in frames]
    if not stills:
        raise UserError(f"training from stills needs pictures in {root / folder}, and there are none; put photographs "
                        "(MS COCO train2017) there or set DATASET.ROOT or DATASET.STILLS")
    return stills


def _folders_of_frames(top: Path, visited: set[str], passed_over: Container[str]) -> Iterator[tuple[str, list[Path]]]:
    """Each folder with frames at or below `top`, but for the real paths `visited`, hidden folders and those names."""
    for folder, below, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link back up would never end, and a folder linked twice is still one video
            below.clear()
            continue
        visited.add(real)
        below[:] = sorted((name for name in below if name not in passed_over and name[0] != "."), key=natural)
        frames = sorted((name for name in files if _is_visible(name, FRAME_SUFFIXES)), key=natural)
        if frames:
            yield folder, [Path(folder, name) for name in frames]


def _is_visible(name: str, suffixes: Container[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def files_by_stem(folder: str | Path, suffixes: Container[str] = FRAME_SUFFIXES,
                  exclude: Iterable[Path] = ()) -> dict[str, Path]:
    """The visible files of a folder with one of `suffixes`, in natural order, under their names without it.

    Empty where there is no such folder; `UserError` for two files of one stem. Those of `exclude` are passed over.
    """
    files: dict[str, Path] = {}
    others = {os.path.realpath(file) for file in exclude}
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else [], key=natural):
        if _is_visible(name, suffixes) and not (others and os.path.realpath(Path(folder, name)) in others):
            stem = os.path.splitext(name)[0]
            file = files.setdefault(stem, Path(folder, name))
            if file.name != name:
                raise UserError(f"a frame has one file; {folder} has {file.name} and {name}, two pictures named "
                                f"{stem}; rename or remove one of them")
    return files


def existing_folder(path: str | Path, flag: str, content: str) -> Path:
    """The folder that an option names; `UserError`, which says what it holds, where there is none."""
    if not os.path.isdir(path):
        raise UserError(f"{flag} is a folder that holds {content}; {path} does not exist; check the path")
    return Path(path)


def visible_folders(folder: str | Path) -> list[str]:
    """Names of the folders in `folder` that are not hidden, in natural order."""
    return sorted((name for name in os.listdir(folder) if name[0] != "." and os.path.isdir(os.path.join(folder, name))),
                  key=natural)


def read_names(path: str | Path) -> list[str]:
    """The names of a list of sequences, one a line; `UserError` for one that could leave its folder."""
    names = []
    for where, line in _lines(path):
        if not is_name(line):
            raise UserError(f"{where}: a sequence has {NAME_RULE}; got {line!r:.80}; correct the list")
        names.append(line)
    return list(dict.fromkeys(names))


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key by which `frame2` comes before `frame10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)], name


def _absolute(root: str | Path) -> Path:
    root = Path(os.path.abspath(root))
    if not os.path.isdir(root):
        raise UserError(f"the data root {root} does not exist; create it or set DATASET.ROOT")
    return root


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (`<list>, line <number>`, line) for every line that is neither blank nor a # comment; at least one."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"file list {path} cannot be read ({error}); it is a text file in UTF-8") from error
    numbered = [(f"{path}, line {i}", line.strip()) for i, line in enumerate(lines, start=1)]
    numbered = [(where, line) for where, line in numbered if line and not line.startswith("#")]
    if not numbered:
        raise UserError(f"file list {path} is empty; it needs at least one line (format: filelists/README.md)")
    for where, line in numbered:
        if "\0" in line:
            raise UserError(f"{where}: a name has no NUL character; got {line!r:.80}; correct the list")
        yield where, line


def _inside(root: Path, entry: str, where: str) -> Path:
    """`entry` as path under `root`, judged by its words: `..` must not leave the root, links below it may."""
    path = Path(os.path.normpath(root / entry))
    if not path.is_relative_to(root) or path == root:
        raise UserError(f"{where}: {entry} leaves the data root {root}; paths are relative to it and stay inside")
    return path


def existence() -> Callable[[Path], bool]:
    """A file test that lists each folder once: 94588 single questions are slow on a network disk."""
    @functools.cache
    def names(folder: Path) -> set[str]:
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()

    return lambda path: path.name in names(path.parent)
