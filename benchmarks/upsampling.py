"""Time and memory from the label map to the classes of a frame's pixels: bilateral against bilinear upsampling.

    python benchmarks/upsampling.py [--picture FILE] [--size 854x480] [--map 108x60] [--device cpu] [--rounds 9]

Labels are drawn: smooth blobs, whose boundaries cross a share of the windows that the table shows ("mixed"), and noise,
where every window is mixed, so that no method can be slower. Each round runs every method once, in turn, in one
process; medians of --rounds rounds. Memory is the peak of two frames above picture and labels, each method in a process
of its own. Without --picture a frame is drawn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.common import alone, peak_memory, width_and_height
from benchmarks.propagation import timed
from datasets.synthetic import make_clip
from models.label_maps import upsampled_argmax
from models.upsampling import BilateralUpsampling, undecided
from utils.device import resolve_device
from utils.errors import UserError, run_script

METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bilinear": lambda labels, picture: upsampled_argmax(labels, picture.shape[:2]),
    "bilateral": BilateralUpsampling().argmax,
}
CASES = {"3 classes": (3, False), "21 classes": (21, False), "3 classes, noise": (3, True)}  # how many, whether noise


def make_labels(case: str, shape: tuple[int, int]) -> Tensor:
    """Soft labels [M,h,w] of a case."""
    classes, noise = CASES[case]
    coarse = shape if noise else (5, 7)
    drawn = torch.randn(1, classes, *coarse, generator=torch.Generator().manual_seed(0))
    return (8 * F.interpolate(drawn, size=shape, mode="bilinear")[0]).softmax(0)


def make_picture(args: argparse.Namespace) -> np.ndarray:
    """The frame, uint8 RGB [H,W,3]."""
    if not args.picture:
        return make_clip(np.random.default_rng(0), frames=1, size=args.size, objects=3).frames[0]
    picture = cv2.imread(args.picture)
    if picture is None:
        raise UserError(f"--picture is an image file; {args.picture} cannot be read; check its path")
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), args.size, interpolation=cv2.INTER_AREA)


def extra_memory(method: str, case: str, picture: torch.Tensor, args: argparse.Namespace) -> float:
    """MB at the peak of two frames above picture and labels; runs in a new process."""
    device = resolve_device(args.device)
    torch.set_num_threads(args.threads)
    picture, labels = picture.to(device), make_labels(case, args.map[::-1]).to(device)
    METHODS[method](labels[:, :8, :8].contiguous(), picture[:64, :64].contiguous())  # what a library keeps is its own
    before = peak_memory(device)
    for _ in range(2):
        METHODS[method](labels, picture)
    return peak_memory(device) - before


@torch.inference_mode()
def main() -> None:
    """Run the methods in turn, print a table in Markdown."""
    args = parse_arguments()
    device = resolve_device(args.device)
    torch.set_num_threads(args.threads)
    picture = torch.from_numpy(make_picture(args)).to(device)
    print(f"{args.size[0]}x{args.size[1]}, map {args.map[0]}x{args.map[1]}, {args.threads} threads, {device}\n")
    print("| labels | mixed | method | ms a frame | ratio | processor ms | ratio | memory MB |")
    print("|---" * 8 + "|")
    for case in CASES:
        labels = make_labels(case, args.map[::-1]).to(device)
        mixed = undecided(labels, BilateralUpsampling().window).float().mean()
        seconds: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
        for i in range(args.rounds + 1):
            for method, run in METHODS.items():
                *times, _ = timed(lambda run=run, labels=labels: run(labels, picture), device)
                if i:  # the first round only warms up
                    seconds[method].append(tuple(times))
        rows = {method: [1e3 * statistics.median(column) for column in zip(*times)]
                for method, times in seconds.items()}
        for method, (wall, processor) in rows.items():
            memory = alone(extra_memory, method, case, picture.cpu(), args)
            print(f"| {case} | {100 * mixed:.0f} % | {method} | {wall:.1f} | {wall / rows['bilinear'][0]:.1f} "
                  f"| {processor:.1f} | {processor / rows['bilinear'][1]:.1f} | {memory:.0f} |")


def parse_arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", help="image file; a drawn frame without")
    parser.add_argument("--size", type=width_and_height, default=(854, 480), metavar="WxH", help="of the picture")
    parser.add_argument("--map", type=width_and_height, default=(108, 60), metavar="WxH", help="of the label map")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if min(*args.size, *args.map) < 8:
        parser.error("--size and --map must be at least 8 on either side, for example 854x480 and 108x60")
    return args


if __name__ == "__main__":
    run_script(main)
