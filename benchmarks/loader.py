"""Time of a training clip against a reference implementation, on one thread, and whether both make the same clips.

    python benchmarks/loader.py [--frames DIR] [--clips 40]
    python benchmarks/loader.py [--frames DIR] --workers 4 14      # clips a second of the whole loader instead

The baseline (baselines/loader.py) is a reference implementation of DESIGN section 5: PIL and torchvision one
operation at a time, the edge map with per-pixel Python loops. Both make the same views with all switches on, T = 5,
from JPEG frames: those
below --frames (folders of frames, such as JPEGImages/480p of DAVIS), or 854x480 ones drawn here. Times are of the
processor, not of the clock, so that other programs disturb them less.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.baselines.loader import plain_sample
from datasets import build_train_dataset
from datasets.filelists import scan_videos
from datasets.geometry import resize
from datasets.loader import collate, init_worker
from datasets.views import finished
from utils.config import load_settings, load_train_config
from utils.errors import run_script
from utils.pictures import read_frame

BATCH = 8  # clips, as TRAIN.BATCH_SIZE is by default
STAGES = ("read_frame", "color_frame", "color_levels", "photometric", "pack_contours", "_liquid", "_guided",
          "crop_frame", "apply_theta", "_channels_first")


def main() -> None:
    """Frames, times in turn, stages, statistics, reduced decoding: one table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, help="folders of frames; default: drawn ones")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", help="print clips a second of so many worker processes")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.frames:
            (root / "JPEGImages").symlink_to(args.frames.resolve())
        else:
            draw_videos(root / "JPEGImages")
        videos = scan_videos(root)
        settings = load_settings(overrides=["DATASET.ROOT", folder])
        dataset = build_train_dataset(settings, load_train_config(), coco=False, seed=0)
        if args.workers:
            print_workers(dataset, args)
            return
        makers = {"plain": lambda i: plain_sample(videos[i % len(videos)].frames),
                  "ours": lambda i: dataset[(1 + i // len(videos), i % len(videos))]}
        print_speed(makers, args.clips)
        print_stages(makers["ours"], args.clips)
        print_statistics(makers, args.clips)
        print_reduced([frame for video in videos for frame in video.frames[::20]])


def draw_videos(folder: Path, videos: int = 6, frames: int = 12) -> None:
    """Textured frames 854x480, JPEG quality 90."""
    rng = np.random.default_rng(0)
    for v in range(videos):
        (folder / f"v{v}").mkdir(parents=True)
        noise = (rng.standard_normal((480 // cell, 1000 // cell, 3)) for cell in (4, 12, 40))
        scene = sum(cv2.resize(part, (1000, 480), interpolation=cv2.INTER_CUBIC) for part in noise)
        scene = np.clip(128 + 40 * scene, 0, 255).astype(np.uint8)
        for t in range(frames):
            frame = scene[:, 10 * t:10 * t + 854]
            cv2.imwrite(str(folder / f"v{v}/{t:05d}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 90])


def print_workers(dataset: Dataset, args: argparse.Namespace) -> None:
    """Clips a second of batches as training takes them, from when all workers have begun."""
    print("| workers | clips/s |\n|---|---|")
    for workers in args.workers:
        begun, timed = 2 * workers, max(args.clips * workers // BATCH, 2 * workers)  # batches
        clips = ((1 + i // len(dataset), i % len(dataset)) for i in range(BATCH * (begun + timed)))
        batches = iter(DataLoader(dataset, batch_sampler=list(zip(*[clips] * BATCH)), num_workers=workers,
                                  collate_fn=collate, worker_init_fn=init_worker))
        for _ in itertools.islice(batches, begun):
            pass
        start = time.perf_counter()
        made = sum(len(batch["clip"]) for batch in batches)
        print(f"| {workers} | {made / (time.perf_counter() - start):.1f} |")


def print_speed(makers: dict[str, Callable], clips: int) -> None:
    """Median time of a clip; the two are timed in turn."""
    times = {name: [] for name in makers}
    for i in range(clips):
        for name, make in makers.items():
            start = time.process_time()
            make(i)
            times[name].append(1e3 * (time.process_time() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{'loader':24s}{'ms a clip':>12s}{'ratio':>10s}")
    for name, median in medians.items():
        print(f"{name:24s}{median:12.1f}{medians['plain'] / median:9.1f}x")


def print_stages(make: Callable, clips: int) -> None:
    """Where our time goes; the profiler itself adds to it."""
    profile = cProfile.Profile()
    profile.enable()
    for i in range(clips):
        make(i)
    profile.disable()
    stats = pstats.Stats(profile).stats
    total = max(entry[3] for entry in stats.values())
    print(f"\n{'stage':24s}{'share':>12s}{'calls a clip':>14s}")
    for (_, _, name), (_, calls, _, cumulative, _) in sorted(stats.items(), key=lambda item: -item[1][3]):
        if name in STAGES:
            print(f"{name:24s}{cumulative / total:12.1%}{calls / clips:14.1f}")


def print_statistics(makers: dict[str, Callable], clips: int) -> None:
    """Means and standard deviations of the views over the clips [grey levels], and of edges and grid."""
    print(f"\n{'mean, std':24s}" + "".join(f"{name:>18s}" for name in makers))
    rows = {}
    for name, make in makers.items():
        for branch, view in (("color", "view_a"), ("color", "view_b"), ("color", "target"), ("color", "edge"),
                             ("color", "grid"), ("dense", "view_1"), ("dense", "view_2")):
            values = torch.stack([shown(make(i)[branch])[view].float() for i in range(clips)])
            scale = 255 if name == "plain" and view.startswith("view") else 1
            rows.setdefault(view, []).append((float(scale * values.mean()), float(scale * values.std())))
    for view, columns in rows.items():
        print(f"{view:24s}" + "".join(f"{mean:10.3f}{std:8.3f}" for mean, std in columns))


def shown(views: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A branch's views with the target and the edge weights that ours are finished to on the device."""
    if "levels" not in views:
        return views
    made = finished({name: value[None] for name, value in views.items()})
    return views | {name: made[name][0] for name in ("target", "edge")}


def print_reduced(paths: list[Path]) -> None:
    """What decoding at half size changes where it is used at its least: short side 640, shown at 256 to 319."""
    differences, full, half = {0.4: [], 0.45: [], 0.5: []}, [], []
    for path in paths:
        start = time.process_time()
        whole = read_frame(path)
        middle = time.process_time()
        reduced = read_frame(path, reduction=2)
        half.append(time.process_time() - middle)
        full.append(middle - start)
        for share, values in differences.items():
            height, width = (round(share * side) for side in whole.shape[:2])
            a, b = (resize(image, width, height).astype(int) for image in (whole, reduced))
            values.append(abs(a - b).mean())
    means = {share: statistics.mean(values) for share, values in differences.items()}
    print(f"\nreduced decoding: mean difference {statistics.mean(means.values()):.2f} grey levels ("
          + ", ".join(f"{mean:.2f} of frames shown at {share} of their size" for share, mean in means.items())
          + f"), {statistics.median(full) / statistics.median(half):.2f}x as fast, {len(paths)} frames")


if __name__ == "__main__":
    run_script(main)
