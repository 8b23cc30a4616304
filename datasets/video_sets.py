"""Data sets in their published layout, and folder pairs, as the sequences that a list would name.

    DAVIS          ROOT/ImageSets/<year>/<set>.txt   ROOT/JPEGImages/480p/<sequence>   ROOT/Annotations/480p/<sequence>
    YouTube-VOS    ROOT/meta.json                    ROOT/JPEGImages/<sequence>        ROOT/Annotations/<sequence>
    VIP            ROOT/lists/val_videos.txt         ROOT/Images/<sequence>            ROOT/Annotations/Category_ids/...
    folder pair    -                                 FRAMES/<sequence>                 MASKS/<sequence>
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from datasets.filelists import (
    MASK_SUFFIXES,
    EvaluationFrame,
    EvaluationSequence,
    existing_folder,
    files_by_stem,
    natural,
    read_names,
    visible_folders,
)
from utils.errors import UserError
from utils.names import NAME_RULE, is_name
from utils.values import parse_json, read_text

Read = TypeVar("Read")

logger = logging.getLogger(__name__)

DAVIS_IMAGES, DAVIS_MASKS = "JPEGImages/480p", "Annotations/480p"
VIP_MASKS = "Annotations/Category_ids"


def davis_names(root: str | Path, set_name: str, year: str = "2017") -> list[str]:
    """The sequences of a set of DAVIS: `val`, `train`, `test-dev` of `year`, or with it, `2016-val`."""
    if not is_name(set_name):
        raise UserError(f"a set has {NAME_RULE}; got {set_name!r:.80}; name val, train, test-dev or 2016-val")
    first, _, rest = set_name.partition("-")
    listing = Path(root, "ImageSets", *((first, f"{rest}.txt") if first.isdecimal() else (year, f"{set_name}.txt")))
    if not os.path.isfile(listing):
        found = sorted(str(path.relative_to(root)) for path in Path(root).glob("ImageSets/*/*.txt"))
        raise UserError(f"the sequences of the set {set_name} are read from {listing}, which does not exist (found: "
                        f"{', '.join(found) or 'no list at all'}); write one sequence name a line there, or give "
                        "folders, which need no list")
    return read_names(listing)


def read_davis(root: str | Path, set_name: str, sequences: Sequence[str] = ()) -> list[EvaluationSequence]:
    """The sequences of a set, or those of them that are named, from their first frame on, which has a mask."""
    names = chosen(davis_names(root, set_name), sequences, f"set {set_name} of {root}")
    return _sequences(names, Path(root, DAVIS_IMAGES), Path(root, DAVIS_MASKS), from_first_frame=True)


def read_youtube_vos(root: str | Path, sequences: Sequence[str] = ()) -> list[EvaluationSequence]:
    """The videos of meta.json, or those of them that are named, each from the frame of its first object on."""
    videos = youtube_vos_objects(Path(root, "meta.json"))
    names = chosen(list(videos), sequences, f"{root}/meta.json")
    firsts = {name: [frames[0] for frames in videos[name].values()] for name in names}
    return _sequences(names, Path(root, "JPEGImages"), Path(root, "Annotations"), firsts=firsts)


def vip_names(root: str | Path) -> list[str]:
    """The videos of VIP's validation set; its list may have folders before their names."""
    listing = Path(root, "lists", "val_videos.txt")
    try:
        names = [line.strip().rstrip("/").rpartition("/")[2] for line in read_text(listing).splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"VIP's folder (VIP_Fine) has the list lists/val_videos.txt; {listing} cannot be read "
                        f"({error}); give that folder") from None
    wrong = [name for name in names if name and not is_name(name)]
    if wrong or not any(names):
        raise UserError(f"{listing} has one video a line, {NAME_RULE}; it has {wrong[0] if wrong else 'none'!r:.80}; "
                        "download it anew")
    return list(dict.fromkeys(filter(None, names)))


def read_vip(root: str | Path, sequences: Sequence[str] = ()) -> list[EvaluationSequence]:
    """The videos of VIP's validation set, or those of them that are named: parts of the first frame's mask alone."""
    names = chosen(vip_names(root), sequences, f"{root}/lists/val_videos.txt")
    found = _sequences(names, Path(root, "Images"), Path(root, VIP_MASKS), from_first_frame=True)
    return [EvaluationSequence(sequence.name, [frame if i == 0 else frame._replace(mask=None)
                                               for i, frame in enumerate(sequence.frames)]) for sequence in found]


def read_folder_pair(frames: str | Path, masks: str | Path, sequences: Sequence[str] = ()) -> list[EvaluationSequence]:
    """Each folder of pictures in `frames`, or `frames` itself, from the first one of which `masks` has a mask on."""
    frames = existing_folder(frames, "--frames", "one folder of pictures a sequence")
    masks = existing_folder(masks, "--masks", "one folder of masks a sequence")
    names = [name for name in visible_folders(frames) if files_by_stem(frames / name)]
    if not names:
        single = Path(os.path.abspath(frames)).name
        return _sequences(chosen([single], sequences, str(frames)), frames, masks, single=True)
    return _sequences(chosen(names, sequences, str(frames)), frames, masks)


def youtube_vos_objects(path: Path) -> dict[str, dict[int, list[str]]]:
    """Every video of YouTube-VOS's meta.json: its objects and their frames in order; `UserError` for another file."""
    try:
        videos = {name: {int(number): sorted(map(str, item["frames"]), key=natural)
                         for number, item in video["objects"].items()}
                  for name, video in parse_json(read_text(path))["videos"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not YouTube-VOS's list of videos, objects and frames ({error!r:.200}); download it "
                        "anew") from None
    for name, objects in videos.items():
        wrong = [word for word in (name, *(frame for frames in objects.values() for frame in frames))
                 if not is_name(word)]
        if wrong or not objects or not all(objects.values()):
            raise UserError(f"{path}: a video has {NAME_RULE}, objects, and frames of the same kind; {name!r:.80} has "
                            f"{wrong[0] if wrong else 'none'!r:.80}; download it anew")
    return dict(sorted(videos.items(), key=lambda item: natural(item[0])))


def chosen(names: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    """The names that `--sequences` takes of all, in their order; all where it takes none."""
    strange = [name for name in wanted if name not in names]
    if strange:
        raise UserError(f"--sequences names sequences of {where}, which has no {', '.join(strange)}; it has "
                        f"{', '.join(names[:20])}{' ...' * (len(names) > 20)}")
    return [name for name in names if name in wanted or not wanted]


def _sequences(names: Sequence[str], images: Path, masks: Path, *, from_first_frame: bool = False, single: bool = False,
               firsts: Mapping[str, Sequence[str]] | None = None) -> list[EvaluationSequence]:
    """Find the files of the sequences; one `UserError` lists all that lack some, and names those that are whole.

    Args:
        names: of the folders below `images` and `masks`, which with `single` hold the files themselves.
        from_first_frame: whether the first frame needs a mask; otherwise a sequence begins with the first that has one.
        firsts: for every sequence the frames in which an object begins, which need a mask.
    """
    def read(name: str) -> EvaluationSequence:
        places = [folder if single else folder / name for folder in (images, masks)]
        frames, given = files_by_stem(places[0]), files_by_stem(places[1], MASK_SUFFIXES)
        due = [*(firsts or {}).get(name, ()), *list(frames)[:from_first_frame]]
        lacking = _lacking(frames, given, due, places)
        if lacking:
            raise UserError("; ".join(lacking))
        begin = next(i for i, stem in enumerate(frames) if stem in given)
        if begin and not due:
            logger.warning("%s: the %d frames before %s, the first with a mask, are left out", name, begin,
                           list(frames)[begin])
        return EvaluationSequence(name, [EvaluationFrame(path, given.get(stem, places[1] / f"{stem}.png"), True)
                                         for stem, path in list(frames.items())[begin:]])

    return read_all(names, read)


def read_all(names: Iterable[str], read: Callable[[str], Read]) -> list[Read]:
    """Read each sequence; one `UserError` lists all that lack something, and names those that are whole."""
    whole, problems = {}, []
    for name in names:
        try:
            whole[name] = read(name)
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        part = f", or take those that are whole: --sequences {' '.join(whole)}" * bool(whole)
        raise UserError(f"{len(problems)} of {len(problems) + len(whole)} sequences are not whole; complete them{part}"
                        "\n  " + "\n  ".join(problems))
    return list(whole.values())


def _lacking(frames: Collection[str], given: Collection[str], due: Sequence[str], places: Sequence[Path]) -> list[str]:
    """What a sequence lacks of its pictures and masks, given by their stems, and of the masks that are due."""
    if not frames or not given:
        return [f"no {kind} in {place}" for kind, place, there in zip(("frames", "masks"), places, (frames, given))
                if not there]
    stray = [stem for stem in given if stem not in frames]
    return [f"{len(stray)} masks without a frame, such as {stem}" for stem in stray[:1]] + [
        f"no mask of {stem}" for stem in dict.fromkeys(due) if stem not in given]
