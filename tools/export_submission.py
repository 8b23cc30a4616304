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
import os
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from datasets.filelists import MASK_SUFFIXES, existing_folder, files_by_stem, natural, visible_folders
from datasets.video_sets import DAVIS_IMAGES, DAVIS_MASKS, davis_names, youtube_vos_objects
from evaluation.davis_evaluation import mistake_lines, shorten
from utils.errors import UserError, run_script
from utils.files import refuse_existing, replacing
from utils.masks import DAVIS_PALETTE, object_ids, read_mask
from utils.pictures import read_picture


class Layout(NamedTuple):
    """Where a data set has its files and what its server's archives look like."""

    data: str  # default of --data
    images: str
    masks: str
    prefix: str  # of the names in the archive


LAYOUTS = {
    "davis-test-dev": Layout("data/davis2017", DAVIS_IMAGES, DAVIS_MASKS, ""),
    "youtube-vos": Layout("data/valid", "JPEGImages", "Annotations", "Annotations/"),
}


def due_frames(dataset: str, data: Path) -> dict[str, list[str]]:
    """The frames of every sequence that the server expects, in order."""
    layout = LAYOUTS[dataset]
    images, masks = data / layout.images, data / layout.masks
    for path in (images, masks):
        if not os.path.isdir(path):
            raise UserError(f"--data is the folder of {dataset}, which tells the frames that are due; {path} does not "
                            "exist; give the folder with --data")
    if dataset == "youtube-vos" and (data / "meta.json").exists():
        return {name: sorted({frame for frames in objects.values() for frame in frames}, key=natural)
                for name, objects in youtube_vos_objects(data / "meta.json").items()}
    due = {}
    for sequence in davis_names(data, "test-dev") if dataset == "davis-test-dev" else visible_folders(masks):
        first = next(iter(files_by_stem(masks / sequence, MASK_SUFFIXES)), "")
        due[sequence] = [stem for stem in files_by_stem(images / sequence) if natural(stem) >= natural(first)]
    return due


def check_sequence(masks: Path, folder: Path, frames: list[str]) -> list[str]:
    """One line for everything that the server would reject in a sequence."""
    given = [read_mask(path) for path in files_by_stem(masks, MASK_SUFFIXES).values()]
    results = files_by_stem(folder, MASK_SUFFIXES)
    if not given or not frames:
        return [f"the data set has {len(given)} masks and {len(frames)} frames of it; complete it"]
    if not folder.is_dir():
        return ["the whole sequence is missing"]
    size, known = given[0].shape, sorted({k for mask in given for k in object_ids(mask)})
    mistakes: dict[str, dict[str, str]] = defaultdict(dict)  # kind of mistake -> frame -> detail
    for frame in frames:
        for kind, detail in mask_mistakes(results.get(frame), size, known):
            mistakes[kind][frame] = detail
    return mistake_lines(mistakes)


def mask_mistakes(path: Path | None, size: tuple[int, ...], known: list[int]) -> Iterator[tuple[str, str]]:
    """What the server would reject in a mask: kinds of mistakes, with details that may be empty."""
    if path is None:
        yield "missing", ""
        return
    try:
        mask = read_mask(path)
    except UserError as error:
        yield "no readable index mask", str(error)
        return
    if mask.shape != size:
        yield f"not of the size {size[1]}x{size[0]}", f"{mask.shape[1]}x{mask.shape[0]}"
    unknown = sorted(set(object_ids(mask)) - set(known))
    if unknown:
        yield f"ids other than {shorten(known)}", shorten(unknown)
    elif not has_davis_palette(path, known):
        yield "not a palette PNG in DAVIS colours", ""


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
            files = files_by_stem(results / sequence, MASK_SUFFIXES)
            for frame in frames:
                name = zipfile.ZipInfo(f"{prefix}{sequence}/{frame}.png")  # dated 1980, not now
                name.external_attr = 0o644 << 16
                archive.writestr(name, files[frame].read_bytes())


def main(argv: Sequence[str] | None = None) -> None:
    """Check everything, then pack it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(LAYOUTS), required=True)
    parser.add_argument("--results", type=Path, required=True, help="folder with one folder of masks a sequence")
    parser.add_argument("--out", type=Path, required=True, help="the archive to write, .zip")
    parser.add_argument("--data", type=Path, help="folder of the data set; default: " +
                        ", ".join(f"{layout.data} ({name})" for name, layout in LAYOUTS.items()))
    parser.add_argument("--overwrite", action="store_true", help="replace an archive that exists")
    args = parser.parse_args(argv)
    layout = LAYOUTS[args.dataset]
    data = args.data or Path(layout.data)
    if args.out.suffix != ".zip":
        raise UserError(f"--out is an archive whose name ends in .zip; got {args.out}")
    refuse_existing(args.out, args.overwrite)
    existing_folder(args.results, "--results", "one folder of masks a sequence")
    due = due_frames(args.dataset, data)
    problems = [f"{args.results / sequence}: {line}" for sequence, frames in tqdm(due.items(), "checking", disable=None)
                for line in check_sequence(data / layout.masks / sequence, args.results / sequence, frames)]
    if problems:
        raise UserError("the server would reject the archive, so none was written; put the following right\n  " +
                        "\n  ".join(problems))
    write_archive(args.out, layout.prefix, args.results, due)
    print(f"{args.out}: {len(due)} sequences, {sum(map(len, due.values()))} masks, ready to be uploaded")


if __name__ == "__main__":
    run_script(main)
