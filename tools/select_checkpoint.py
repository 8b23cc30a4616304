"""Rank the checkpoints of a run without labels, by how well they rebuild the colours of frames further on.

    python tools/select_checkpoint.py snapshots/ID --frames DIR [--gaps 15 30] [--pairs 4] [--size 432 240]

From every folder of frames below DIR a few pairs of frames 15 and 30 apart are taken. Each checkpoint rebuilds the Lab
colours of the later frame from those of the earlier one, as its colour loss does; the mean absolute error, in percent
of the channels' range, is what the table is sorted by. Whoever has labels uses --validate in training instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.filelists import Video, scan_videos
from datasets.lab import color_target
from losses.color import rebuild_colors, rebuilt_pixels
from models import load_model
from models.colornet import ColorNet
from utils.checkpoint import read_checkpoint
from utils.device import resolve_device
from utils.errors import UserError, run_script
from utils.images import imagenet_normalise
from utils.pictures import read_frame

NOT_MODELS = ("last.pth", "previous.pth", "fresh.pth")  # the newest epoch again, with what resuming needs


def main(argv: Sequence[str] | None = None) -> None:
    """Find checkpoints and pairs, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshots", type=Path, help="a run's snapshot folder")
    parser.add_argument("--frames", type=Path, required=True, help="folders of frames, one a video, in any depth")
    parser.add_argument("--gaps", type=int, nargs="+", default=[15, 30], help="frames between the two of a pair")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of each gap from a video, evenly spread")
    parser.add_argument("--size", type=int, nargs=2, default=[432, 240], metavar=("W", "H"), help="[pixels]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    args = parser.parse_args(argv)
    if any(side <= 0 or side % 8 for side in args.size):
        raise UserError(f"--size is a width and a height [pixels], multiples of 8; it is {args.size[0]} {args.size[1]}")
    checkpoints = sorted(path for path in args.snapshots.glob("*.pth") if path.name not in NOT_MODELS)
    if not checkpoints:
        raise UserError(f"{args.snapshots} holds no epoch_NNN.pth or final.pth; give the snapshot folder of a run")
    videos = scan_videos(args.frames) if args.frames.is_dir() else []
    pairs = {gap: list(draw_pairs(videos, gap, args.pairs)) for gap in args.gaps}
    for gap, drawn in pairs.items():
        if not drawn:
            raise UserError(f"--gaps {gap} needs a video of more than {gap} frames, and {args.frames} has none; give "
                            "longer videos or a smaller gap")
    rows = []
    for path in tqdm(checkpoints, unit="checkpoint", disable=None):
        model = load_model(path, resolve_device(args.device))
        temperature = read_checkpoint(path)["train_config"]["TEMP"]
        errors = [np.mean([pair_error(model, pair, args.size, temperature) for pair in drawn])
                  for drawn in pairs.values()]
        rows.append((path.name, errors))
    print_table(rows, args.gaps)


def draw_pairs(videos: Sequence[Video], gap: int, count: int) -> Iterator[tuple[Path, Path]]:
    """Up to `count` pairs of files `gap` frames apart from each video, their starts evenly spread."""
    for video in videos:
        room = len(video.frames) - gap
        if room > 0:
            for start in np.unique(np.linspace(0, room - 1, count).round().astype(int)):
                yield video.frames[start], video.frames[start + gap]


@torch.inference_mode()
def pair_error(model: ColorNet, pair: tuple[Path, Path], size: tuple[int, int], temperature: float) -> float:
    """Mean absolute error [percent] of the Lab colours of the second frame, rebuilt from the first at `size` (W, H)."""
    device = next(model.parameters()).device
    frames = np.stack([cv2.resize(read_frame(path), tuple(size), interpolation=cv2.INTER_AREA) for path in pair])
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).to(device)
    target = color_target(frames, "LAB", clip=False).to(device)  # [2,3,H,W]
    features = model(imagenet_normalise(images), local=True, dense=False).q_color  # [2,C,h,w]
    rebuilt: Tensor = rebuild_colors(features[None], target[None], temperature=temperature, negatives=False)
    return 100 * float((rebuilt_pixels(rebuilt[0, 0], features, target) - target[1]).abs().mean())


def print_table(rows: Sequence[tuple[str, Sequence[np.floating]]], gaps: Sequence[int]) -> None:
    """The checkpoints, best first."""
    width = max(len(name) for name, _ in rows)
    print(f"{'checkpoint':{width}}" + "".join(f"{f'{gap} frames':>12}" for gap in gaps) + f"{'mean':>10}   (error, %)")
    for name, errors in sorted(rows, key=lambda row: np.mean(row[1])):
        print(f"{name:{width}}" + "".join(f"{error:12.3f}" for error in errors) + f"{np.mean(errors):10.3f}")


if __name__ == "__main__":
    run_script(main)
