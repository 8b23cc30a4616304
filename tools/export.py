"""Take results to annotation tools, tables and editing programs.

    python tools/export.py output/clip --format coco --out clip.json [--names 1=dog 2=ball] [--frames pictures]
    python tools/export.py output/clip --format csv --out clip.csv
    python tools/export.py output/clip --format cutout --out dog.webm --objects 1 --feather 2
    python tools/export.py output/clip --format background --out clip.mp4 --fill blur

RESULTS is what infer_vos_dul.py wrote: its folder, its `<key>_vos`, or any folder of index masks. Frames, times and
sound come from the video that the run was made of, or from --video.

    coco, youtube-vis  a JSON file; masks as run lengths, exact to the pixel (needs requirements-export.txt)
    labelme            a folder of JSON files with exact masks
    yolo-seg           a folder with data.yaml and labels; outlines, so that holes are filled
    cvat               an XML file, "CVAT for video 1.1", with exact masks
    csv                a table: frame, time, object, area, centroid, box, perimeter, orientation, confidence, lost
    tiff               a stack of label images for ImageJ
    cutout             the objects alone: .webm (VP9 with alpha), .mov (ProRes 4444), or a folder of PNGs
    background         .mp4 whose background is a colour or blurred
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from inference.exports.annotations import write_frames
from inference.exports.formats import FORMATS, Format, writer
from inference.exports.results import Options, ResultSequence, read_results
from utils.console import start_console
from utils.errors import UserError, run_script
from utils.files import new_folder


def main(argv: Sequence[str] | None = None) -> None:
    """Read the results, refuse what does not fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("results", type=Path, metavar="RESULTS")
    add("--format", required=True, choices=FORMATS)
    add("--out", required=True, type=Path, metavar="PATH", help="file or folder, which does not exist yet")
    add("--video", help="the video of the results (default: what they were made of)")
    add("--sequence", nargs="+", metavar="NAME", help="sequences to take (default: all)")
    add("--names", nargs="+", default=[], metavar="ID=NAME", help="what objects are called (default: object ID)")
    add("--objects", nargs="+", type=int, metavar="ID", help="objects in the picture (default: all)")
    add("--polygons", action="store_true", help="outlines instead of exact masks; holes are filled")
    add("--frames", type=Path, metavar="FOLDER", help="also write the frames there, <sequence>/<frame>.jpg")
    add("--feather", type=float, metavar="PIXELS", help="soften the border by this much (default: not at all)")
    add("--fill", metavar="COLOUR", help="blur, or a colour such as #00ff00 (default: #00ff00)")
    args = parser.parse_args(argv)
    start_console()
    kind = FORMATS[args.format]
    refuse_contradictions(args, kind)
    sequences = read_results(args.results, args.video, args.sequence)
    ids = sorted({k for sequence in sequences for k in sequence.ids})
    refuse_missing(args, kind, sequences, ids)
    options = Options(read_names(args.names, ids), args.objects or ids, args.polygons, args.feather or 0,
                      args.fill or Options._field_defaults["fill"])
    write = writer(args.format, options)
    with ExitStack() as stack:
        if args.frames:
            write_frames(sequences, stack.enter_context(new_folder(args.frames)))
        write(sequences, args.out if args.out.suffix else stack.enter_context(new_folder(args.out)))


def refuse_contradictions(args: argparse.Namespace, kind: Format) -> None:
    """`UserError` for what can be told from the command line alone."""
    options = ("names", "objects", "polygons", "frames", "feather", "fill")
    stray = [f"--{name}" for name in options if getattr(args, name) and name not in kind.options]
    if stray:
        raise UserError(f"{', '.join(stray)} means nothing with --format {args.format}; leave it out")
    if args.out.suffix.lower() not in kind.suffixes:
        wanted = " or ".join(suffix or "a folder's name" for suffix in kind.suffixes)
        raise UserError(f"--out of {args.format} ends in {wanted}; it is {args.out}")
    for path in (args.out, args.frames):
        if path is not None and path.exists():
            raise UserError(f"nothing is overwritten, and {path} exists; remove it or give another path")
    if args.feather is not None and not 0 <= args.feather <= 100:
        raise UserError(f"--feather is a number of pixels from 0 to 100; it is {args.feather}")


def read_names(words: Sequence[str], ids: Sequence[int]) -> dict[int, str]:
    """`ID=NAME` words to the label of each object; `UserError` for another form or an id that no mask has."""
    labels = {k: f"object {k}" for k in ids}
    for word in words:
        match = re.fullmatch(r"(\d+)=(.+)", word)
        if not match or int(match[1]) not in labels:
            raise UserError(f"--names takes ID=NAME, with an id of {', '.join(map(str, ids))}; got {word!r}")
        labels[int(match[1])] = match[2]
    return labels


def refuse_missing(args: argparse.Namespace, kind: Format, sequences: Sequence[ResultSequence],
                   ids: Sequence[int]) -> None:
    """`UserError` for what the format needs and the results do not have."""
    if kind.single and len(sequences) > 1:
        raise UserError(f"--format {args.format} holds one sequence, and there are {len(sequences)}: "
                        f"{', '.join(sequence.name for sequence in sequences)}; choose one with --sequence")
    if not ids:
        raise UserError(f"an export needs objects, and the masks of {args.results} have none; check the results")
    if (kind.pictures or args.frames) and any(sequence.video is None for sequence in sequences):
        raise UserError(f"{'--frames' if args.frames else args.format} needs the frames, and {args.results} does not "
                        "say where its video is; give --video")
    stray = [k for k in args.objects or () if k not in ids]
    if stray:
        raise UserError(f"--objects takes the ids {', '.join(map(str, ids))}; {', '.join(map(str, stray))} is not in "
                        "any mask")


if __name__ == "__main__":
    run_script(main)
