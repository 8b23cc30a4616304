"""Where the sequences of a run come from: a list, a data set, or a pair of folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.filelists import EvaluationSequence, find_list, read_evaluation_list
from datasets.video_sets import chosen, read_davis, read_folder_pair, read_vip, read_youtube_vos
from utils.errors import UserError

DAVIS_SET = "val"


def add_sources(parser: argparse.ArgumentParser) -> None:
    """The options that name sequences or a video; one of them is needed."""
    one = parser.add_mutually_exclusive_group(required=True).add_argument
    one("--infer-list", help="list of frames and masks, under DATASET.ROOT or in the repository")
    one("--davis_path", metavar="DIR", help="DAVIS: the sequences of --set_name")
    one("--youtube_vos", metavar="DIR", help="YouTube-VOS: the videos of DIR/meta.json, each from its first object on")
    one("--frames", metavar="DIR", help="a folder of pictures for each sequence, and --masks DIR with its first mask")
    one("--vip", metavar="DIR", help="VIP (DIR is VIP_Fine): parts of people, of lists/val_videos.txt")
    one("--jhmdb", metavar="DIR", help="JHMDB: joints of people, the test videos of split 1; CSV to <key>_points")
    one("--badja", metavar="DIR", help="BADJA: joints of animals; CSV to <key>_points")
    one("--video", metavar="PATH", help="a video file, or a folder of pictures")
    parser.add_argument("--set_name", metavar="SET", help="of --davis_path: val, train, test-dev or 2016-val (default: "
                        f"{DAVIS_SET})")
    parser.add_argument("--masks", metavar="DIR", help="of --frames: DIR/<sequence>/<frame>.png")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", default=[], help="take these sequences alone")


def source_flag(args: argparse.Namespace) -> str:
    """The option that says where the sequences are. `UserError` for options that belong to another one."""
    flag, place = next((flag, place) for flag in (
        "--infer-list", "--davis_path", "--youtube_vos", "--frames", "--vip", "--jhmdb", "--badja", "--video")
        if (place := getattr(args, flag.strip("-").replace("-", "_"))) is not None)
    if not place:
        raise UserError(f"{flag} names what is read, and it is empty; give its path")
    for option, value, owner in (("--set_name", args.set_name, "--davis_path"), ("--masks", args.masks, "--frames")):
        if value and flag != owner:
            raise UserError(f"{option} belongs to {owner}, and {flag} is given; leave one of them out")
    if flag == "--frames" and not args.masks:
        raise UserError("--frames needs --masks DIR, with a mask of each sequence's first frame")
    if flag == "--video" and args.sequences:
        raise UserError("--sequences takes some of several sequences, and a --video is one; leave it out")
    return flag


def read_sequences(args: argparse.Namespace, root: str | Path) -> list[EvaluationSequence]:
    """The sequences that the options name; paths of a list are below `root`. `UserError` where any lacks its files."""
    if args.davis_path:
        return read_davis(args.davis_path, args.set_name or DAVIS_SET, args.sequences)
    if args.youtube_vos:
        return read_youtube_vos(args.youtube_vos, args.sequences)
    if args.vip:
        return read_vip(args.vip, args.sequences)
    if args.frames:
        return read_folder_pair(args.frames, args.masks, args.sequences)
    listed = {sequence.name: sequence for sequence in read_evaluation_list(find_list(args.infer_list, root), root)}
    return [listed[name] for name in chosen(list(listed), args.sequences, args.infer_list)]


def source_record(args: argparse.Namespace) -> dict[str, Any]:
    """The options that name the sequences, for `run.json`."""
    names = ("infer_list", "davis_path", "set_name", "youtube_vos", "frames", "masks", "vip", "jhmdb", "badja",
             "sequences")
    return {name: value for name in names if (value := getattr(args, name))}


def split_by_length(sequences: Sequence[EvaluationSequence], processes: int) -> list[list[EvaluationSequence]]:
    """One list of sequences a process: the longest first, each to the process with the fewest frames so far."""
    shares: list[list[EvaluationSequence]] = [[] for _ in range(processes)]
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.frames)):
        min(shares, key=lambda share: sum(len(one.frames) for one in share)).append(sequence)
    return shares
