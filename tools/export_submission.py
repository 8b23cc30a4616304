"""Pack masks into the archive that an evaluation server takes, and refuse what it would reject.

    python tools/export_submission.py --dataset davis-test-dev --results output/merge_vos --out davis.zip
    python tools/export_submission.py --dataset youtube-vos --results output/merge_vos --out ytvos.zip --data valid

The data set tells which frames are due, their sizes and the objects:
    davis-test-dev  DATA/ImageSets/2017/test-dev.txt, DATA/JPEGImages/480p, DATA/Annotations/480p
    youtube-vos     DATA/JPEGImages, DATA/Annotations (the masks of the objects' first frames) and, where it is there,
                    DATA/meta.json, which names the frames; without it all from the first mask on are due
Frames beyond those are left out of the archive.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from evaluation.davis_evaluation import Mistakes, shorten
from utils.errors import UserError, run_script
from utils.files import replacing
from utils.masks import DAVIS_PALETTE, object_ids, read_mask
from utils.pictures import read_picture


class Layout(NamedTuple):
    """Where a data set has its files and what its server's archives look like."""

    data: str  # default of --data
    images: str
    masks: str
    prefix: str  # of the names in the archive


LAYOUTS = {
    "davis-test-dev": Layout("data/davis2017", "JPEGImages/480p", "Annotations/480p", ""),
    "youtube-vos": Layout("data/valid", "JPEGImages", "Annotations", "Annotations/"),
}


def due_frames(dataset: str, data: Path) -> dict[str, list[str]]:
    """The frames of every sequence that the server expects."""
    layout = LAYOUTS[dataset]
    images, masks = data / layout.images, data / layout.masks
    listing = data / "ImageSets/2017/test-dev.txt"
    for path in (images, masks, *([listing] if dataset == "davis-test-dev" else [])):
        if not path.exists():
            raise UserError(f"--data is the folder of {dataset}, which tells the frames that are due; {path} does not "
                            "exist; give the folder with --data")
    if dataset == "youtube-vos" and (data / "meta.json").exists():
        return _frames_of_meta(data / "meta.json")
    sequences = listing.read_text().split() if dataset == "davis-test-dev" else sorted(p.name for p in masks.iterdir())
    due = {}
    for sequence in sequences:
        first = min((path.stem for path in (masks / sequence).glob("*.png")), default="")
        due[sequence] = sorted(p.stem for p in (images / sequence).glob("*.jpg") if p.stem >= first)
    return due


def _frames_of_meta(path: Path) -> dict[str, list[str]]:
    """The frames of all objects of every video that YouTube-VOS's meta.json lists."""
    try:
        videos = json.loads(path.read_text())["videos"]
        return {name: sorted({frame for item in video["objects"].values() for frame in item["frames"]})
                for name, video in sorted(videos.items())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not YouTube-VOS's list of videos, objects and frames ({error!r}); download it "
                        "anew, or move it away to take the frames from the pictures") from None


def check_sequence(masks: Path, results: Path, frames: list[str]) -> list[str]:
    """One line for everything that the server would reject in a sequence."""
    given = [read_mask(path) for path in sorted(masks.glob("*.png"))]
    if not given or not frames:
        return [f"the data set has {len(given)} masks and {len(frames)} frames of it; complete it"]
    if not results.is_dir():
        return ["the whole sequence is missing"]
    size, known = given[0].shape, sorted({k for mask in given for k in object_ids(mask)})
    mistakes = Mistakes()
    for frame in frames:
        path = results / f"{frame}.png"
        if not path.exists():
            mistakes.note("missing", frame)
            continue
        try:
            mask = read_mask(path)
        except UserError as error:
            mistakes.note("no readable index mask", frame, str(error))
            continue
        if mask.shape != size:
            mistakes.note(f"not of the size {size[1]}x{size[0]}", frame, f"{mask.shape[1]}x{mask.shape[0]}")
        unknown = sorted(set(object_ids(mask)) - set(known))
        if unknown:
            mistakes.note(f"ids other than {shorten(known)}", frame, shorten(unknown))
        elif not has_davis_palette(path, known):
            mistakes.note("not a palette PNG in DAVIS colours", frame)
    return mistakes.lines()


def has_davis_palette(path: Path, ids: list[int]) -> bool:
    """Whether a PNG has a palette that gives background and `ids` the colours of DAVIS."""
    image = read_picture(path).image
    palette = np.array((image.getpalette() or []) if image.mode == "P" else [], np.uint8).reshape(-1, 3)
    shown = [0, *ids]
    return len(palette) > max(shown) and np.array_equal(palette[shown], DAVIS_PALETTE[shown])


def write_archive(out: Path, prefix: str, results: Path, due: dict[str, list[str]]) -> None:
    """Store the masks that are due; the same masks give the same bytes."""
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for sequence, frames in due.items():
            for frame in frames:
                name = zipfile.ZipInfo(f"{prefix}{sequence}/{frame}.png")  # dated 1980, not now
                name.external_attr = 0o644 << 16
                archive.writestr(name, (results / sequence / f"{frame}.png").read_bytes())


def main() -> None:
    """Check everything, then pack it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(LAYOUTS), required=True)
    parser.add_argument("--results", type=Path, required=True, help="folder with one folder of masks a sequence")
    parser.add_argument("--out", type=Path, required=True, help="the archive to write, .zip")
    parser.add_argument("--data", type=Path, help="folder of the data set; default: " +
                        ", ".join(f"{layout.data} ({name})" for name, layout in LAYOUTS.items()))
    parser.add_argument("--overwrite", action="store_true", help="replace an archive that exists")
    args = parser.parse_args()
    layout = LAYOUTS[args.dataset]
    data = args.data or Path(layout.data)
    if args.out.suffix != ".zip":
        raise UserError(f"--out is an archive whose name ends in .zip; got {args.out}")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} exists; choose another name or give --overwrite")
    if not args.results.is_dir():
        raise UserError(f"--results is a folder with one folder of masks a sequence; {args.results} does not exist")
    due = due_frames(args.dataset, data)
    problems = [f"{args.results / sequence}: {line}" for sequence, frames in tqdm(due.items(), "checking")
                for line in check_sequence(data / layout.masks / sequence, args.results / sequence, frames)]
    if problems:
        raise UserError("the server would reject the archive, so none was written; put the following right\n  " +
                        "\n  ".join(problems))
    write_archive(args.out, layout.prefix, args.results, due)
    print(f"{args.out}: {len(due)} sequences, {sum(map(len, due.values()))} masks, ready to be uploaded")


if __name__ == "__main__":
    run_script(main)
