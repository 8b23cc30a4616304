"""Time of the evaluation against the alternatives, on drawn masks of DAVIS-2017's size and number of objects.

    python benchmarks/evaluation.py [--baseline_python VENV/bin/python] [--sequences 30] [--runs 3]

Contenders, each a process of its own from start to written tables:
  ours      evaluation_method.py with --workers processes
  plain     the definition step by step on whole frames, one process: the official package's way, but leaner, since
            that one also holds the masks of all objects of a sequence in float64
  official  davis2017-evaluation, one process (it has no other way)
  vos       vos-benchmark with --workers processes
The last two are no dependencies: they run where --baseline_python names an interpreter that has them. On a machine
that does other work too, the processor's seconds say more than the clock's.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from evaluation.davis_evaluation import davis_ground_truth
from utils.config import REPOSITORY
from utils.errors import run_script
from utils.masks import write_mask

OFFICIAL = """
import sys, numpy as np
for name in ("bool", "float", "int"):
    if not hasattr(np, name): setattr(np, name, getattr(__builtins__, name))
from davis2017.evaluation import DAVISEvaluation
evaluation = DAVISEvaluation(davis_root=sys.argv[1], task="semi-supervised", gt_set="val", codalab=True)
result = evaluation.evaluate(sys.argv[2])
print("J&F", (np.mean(result["J"]["M"]) + np.mean(result["F"]["M"])) / 2)
"""
VOS = """
import sys
from vos_benchmark.benchmark import benchmark
jf, *_ = benchmark([sys.argv[1] + "/Annotations/480p"], [sys.argv[2]], num_processes=int(sys.argv[3]), verbose=False)
print("J&F", jf[0] / 100)
"""


def draw_sequence(folder: Path, results: Path, frames: int, rng: np.random.Generator) -> None:
    """One to three wobbling blobs that move; the result of a frame is the truth of three frames before."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    blobs = [(rng.uniform((150, 100), (700, 380)), rng.uniform(-3, 3, 2), rng.uniform(40, 120),
              rng.uniform(0, 0.15, 4), rng.uniform(0, 6, 4)) for _ in range(rng.integers(1, 4))]
    masks = []
    for t in range(frames):
        mask = np.zeros((480, 854), np.uint8)
        for k, (centre, speed, size, swing, phase) in enumerate(blobs, start=1):
            waves = (s * np.sin(n * angle + p + t / 9) for n, (s, p) in enumerate(zip(swing, phase), start=2))
            radius = size * (1 + sum(waves))
            outline = centre + speed * t + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            cv2.fillPoly(mask, [outline.astype(np.int32)], k)
        masks.append(mask)
        write_mask(folder / f"{t:05d}.png", mask)
        write_mask(results / f"{t:05d}.png", masks[max(0, t - 3)])


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    """Where a pixel differs from its right, lower or lower right neighbour, if it has one."""
    grown = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ grown[:-1, 1:]) | (mask ^ grown[1:, :-1]) | (mask ^ grown[1:, 1:])


def plain_scores(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """J and F of two bool masks [H,W]."""
    union = (truth | prediction).sum()
    J = (truth & prediction).sum() / union if union else 1.0
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    y, x = np.mgrid[-radius:radius + 1, -radius:radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    a, b = plain_boundary(truth), plain_boundary(prediction)
    if not a.any() or not b.any():
        return J, float(a.any() == b.any())
    near_a, near_b = cv2.dilate(a.astype(np.uint8), disk), cv2.dilate(b.astype(np.uint8), disk)
    precision, recall = (b * near_a).sum() / b.sum(), (a * near_b).sum() / a.sum()
    return J, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain(davis: Path, results: Path) -> float:
    """J&F of a results folder, all frames and objects of a sequence at a time in float64."""
    truth = davis_ground_truth(davis, "val", "semi-supervised")
    means = []
    for sequence in tqdm(truth.sequences):
        frames = sorted((truth.masks / sequence).glob("*.png"))
        stacks = [np.stack([np.array(Image.open(path), np.float64) for path in paths])
                  for paths in (frames, [results / sequence / path.name for path in frames])]
        ids = np.arange(1, int(stacks[0][0].max()) + 1, dtype=np.float64)[:, None, None, None]
        true, predicted = (stack[None, 1:-1] == ids for stack in stacks)  # bool [N,T,H,W]
        means += [np.mean([plain_scores(*pair) for pair in zip(*masks)], axis=0) for masks in zip(true, predicted)]
    return float(np.mean(means))


def contenders(args: argparse.Namespace, davis: Path, results: Path) -> dict[str, list[str]]:
    """The commands; the baselines that are not installed are named on the screen."""
    workers = str(args.workers)
    commands = {
        "ours": [sys.executable, str(REPOSITORY / "evaluation_method.py"), "--davis_path", str(davis),
                 "--results_path", str(results), "--workers", workers],
        "plain": [sys.executable, __file__, "--plain", str(davis), str(results)],
    }
    for name, module, code in (("official", "davis2017.evaluation", OFFICIAL), ("vos", "vos_benchmark.benchmark", VOS)):
        python = args.baseline_python or sys.executable
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
            print(f"not compared: {name} ({python} has no module {module}; see --baseline_python)")
        else:
            commands[name] = [python, "-c", code, str(davis), str(results), workers]
    return commands


def score_of(name: str, output: str, results: Path) -> float:
    """The J&F that a contender found, to show that all did the same work."""
    if name == "ours":
        header, values = (results / "global_results-val.csv").read_text().split()
        return float(values.split(",")[header.split(",").index("J&F-Mean")])
    return float(output.split("J&F")[-1])


def main() -> None:
    """Draw the masks, time all contenders in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline_python", metavar="PYTHON", help="interpreter that has the other packages")
    parser.add_argument("--sequences", type=int, default=30)
    parser.add_argument("--frames", type=int, default=67, help="frames of a sequence; DAVIS-2017 val has 67 on average")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="how often each is timed; the median counts")
    parser.add_argument("--plain", nargs=2, metavar=("DAVIS", "RESULTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        print("J&F", plain(*map(Path, args.plain)))
        return
    with tempfile.TemporaryDirectory() as folder:
        davis, results = Path(folder, "DAVIS"), Path(folder, "results")
        names = [f"sequence-{i:02d}" for i in range(args.sequences)]
        for i, name in enumerate(tqdm(names, desc="drawing")):
            draw_sequence(davis / "Annotations/480p" / name, results / name, args.frames, np.random.default_rng(i))
        (davis / "ImageSets/2017").mkdir(parents=True)
        (davis / "ImageSets/2017/val.txt").write_text("\n".join(names))
        commands = contenders(args, davis, results)
        seconds, scores = {name: [] for name in commands}, {}  # wall clock and processor, of every run
        for _ in range(args.runs):
            for name, command in commands.items():
                before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True)
                wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
                processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                seconds[name].append((wall, processor))
                if done.returncode:
                    sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
                scores[name] = score_of(name, done.stdout, results)
    medians = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in seconds.items()}
    print(f"{args.sequences * args.frames} frames, {args.workers} processes, medians of {args.runs} runs in turn; the "
          "ratios are of each row to ours")
    print("| contender | seconds | ratio | processor seconds | ratio | J&F |\n|---|---|---|---|---|---|")
    for name, values in medians.items():
        cells = [f"{value:.1f} | {value / own:.1f}" for value, own in zip(values, medians["ours"])]
        print(f"| {name} | {' | '.join(cells)} | {scores[name]:.3f} |")


if __name__ == "__main__":
    run_script(main)
