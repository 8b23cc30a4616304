"""Everything that docs/BENCHMARKS.md asks of a GPU, in at most 25 minutes: one command, one Markdown file.

    python benchmarks/gpu.py --frames VIDEO --out FOLDER [--model MODEL] [--only "Propagation S" "Training step"]

Correctness comes first: the tests marked `gpu`, then a video of two frames. Every part is a process of its own; where
one fails or takes too long the file says so, and the next one runs. Without a card the parts are printed and nothing
runs. VIDEO is a folder of at least 28 frames; without MODEL the networks have random weights.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from utils.config import REPOSITORY
from utils.device import resolve_device
from utils.errors import UserError, run_script
from utils.masks import write_mask

MINUTES = 25  # of all parts together
LONGEST = 240  # seconds of one part
SHOWN = 40  # last lines of a part that failed
FRAMES = 28  # that the propagation benchmark takes with its rounds, at least


class Part(NamedTuple):
    """One thing to run: a heading, and the command's words after the interpreter."""

    title: str
    words: tuple[str, ...]


def parts(args: argparse.Namespace, two_frames: Path) -> list[Part]:
    """In the order in which they run: whether it is right, how fast it is, where the time goes."""
    benchmark = lambda name, *words: (f"benchmarks/{name}.py", "--device", "cuda", *words)
    model = ("--model", args.model) if args.model else ()
    found = [Part("Tests on the GPU", ("-m", "pytest", "-q", "-m", "gpu")),
             Part("Two frames", ("infer_vos_dul.py", "--device", "cuda", "--video", f"{two_frames}/video",
                                 "--mask", f"{two_frames}/first.png", "--mask-output-dir", f"{two_frames}/out"))]
    sizes = ("S", "M")
    found += [Part(f"Propagation {size}, RADIUS {radius}", benchmark(
        "propagation", "--frames", args.frames, "--model_size", size, "--radius", radius,
        *(model if size == "S" else ()))) for size in sizes for radius in ("12", "25")]
    found += [Part(f"Inference {size}, RADIUS 25", benchmark(
        "inference", "--model_size", size, "--infer_R", "25", "--rounds", "1", "--methods", "exact", "fast",
        *(model if size == "S" else ()))) for size in sizes]
    found += [Part("Upsampling", benchmark("upsampling")),
              Part("One's own video", benchmark("own_video", "--objects", "1", "20", "--rounds", "1")),
              Part("GPU memory over a long video", benchmark("own_video", "--length", "300"))]
    found += [Part(f"Training step {size}, {' '.join(words)}", benchmark(
        "training", "--clips", "8", "--size", size, "--precision", *words))
        for size in sizes for words in (("fp32",), ("bf16",), ("fp16",), ("bf16", "--compile"))]
    return [*found, Part("Loader", ("benchmarks/loader.py", "--workers", "4", "14"))]


def prepare_two_frames(frames: Path, folder: Path) -> None:
    """The first two frames of a video, and a mask of its middle."""
    pictures = sorted(path for path in frames.iterdir() if path.suffix in (".jpg", ".png"))
    if len(pictures) < FRAMES:
        raise UserError(f"--frames needs a folder of at least {FRAMES} images; {frames} has {len(pictures)}; give a "
                        "longer video")
    (folder / "video").mkdir()
    for picture in pictures[:2]:
        shutil.copy(picture, folder / "video")
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4:3 * height // 4, width // 4:3 * width // 4] = 1
    write_mask(folder / "first.png", mask)


def machine(device: torch.device) -> str:
    """Card, driver and libraries in words."""
    properties = torch.cuda.get_device_properties(device)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index}"]
    driver = subprocess.run(asked, capture_output=True, text=True).stdout.strip() if shutil.which("nvidia-smi") else ""
    installed = {package.name: package.version for package in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {installed.get(name, 'missing')}" for name in ("torch", "triton"))
    return (f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, compute capability {properties.major}."
            f"{properties.minor}, driver {driver or 'unknown'}, {versions}, {os.cpu_count()} processors, "
            f"{time.strftime('%Y-%m-%d')}")


def run_part(part: Part, seconds: float) -> tuple[bool, str]:
    """Whether a part ended well within its time, and its section in Markdown."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "output"), Path(folder, "errors")
        with files[0].open("w") as output, files[1].open("w") as errors:
            process = subprocess.Popen([sys.executable, *part.words], cwd=REPOSITORY, stdout=output, stderr=errors,
                                       start_new_session=True)
        try:
            status = process.wait(seconds)
            problem = f"failed with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            problem = f"stopped after {seconds:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)  # what it has started goes, too
            process.wait()
        lines = "\n".join(file.read_text(errors="replace") for file in files[:2 if problem else 1]).strip().splitlines()
    command = f"`python {' '.join(part.words)}`, {time.perf_counter() - start:.0f} s"
    if problem or not any(line.startswith("|") for line in lines):
        lines = ["```", *lines[-SHOWN:], "```"]
    return not problem, "\n".join([f"## {part.title}", f"{command}{problem and f': **{problem}**'}", "", *lines, ""])


def main() -> int:
    """All parts in turn; the file grows with each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", required=True, help="folder of a video's frames")
    parser.add_argument("--out", required=True, type=Path, help="folder for gpu.md")
    parser.add_argument("--model", help="model file of size S; random weights without")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TITLE", help="the parts whose titles begin so")
    args = parser.parse_args()
    args.frames, args.model = str(Path(args.frames).resolve()), args.model and str(Path(args.model).resolve())
    with tempfile.TemporaryDirectory() as folder:
        prepare_two_frames(Path(args.frames), Path(folder))
        todo = [part for part in parts(args, Path(folder)) if part.title.startswith(tuple(args.only))]
        if not todo:
            raise UserError(f"--only takes how the title of a part begins; got {', '.join(args.only)}; there are "
                            + ", ".join(part.title for part in parts(args, Path(folder))))
        device = resolve_device()
        if device.type != "cuda":
            print("there is no GPU here; with one this would run, and write", args.out / "gpu.md")
            print(*(f"- {part.title}: python {' '.join(part.words)}" for part in todo), sep="\n")
            return 0
        result, end, failed = args.out / "gpu.md", time.monotonic() + 60 * MINUTES, []
        if result.exists():
            raise UserError(f"{result} exists and is not overwritten; give another --out")
        args.out.mkdir(parents=True, exist_ok=True)
        result.write_text(f"# On a GPU\n{machine(device)}\n\n")
        for part in todo:
            left = end - time.monotonic()
            good, section = run_part(part, min(LONGEST, left)) if left > 1 else (
                False, f"## {part.title}\nnot run: {MINUTES} minutes are over\n")
            failed += [] if good else [part.title]
            with result.open("a") as file:
                file.write(section + "\n")
            print(f"{part.title}: {'done' if good else 'FAILED'}", flush=True)
        with result.open("a") as file:
            file.write(f"{len(todo) - len(failed)} of {len(todo)} parts ended well"
                       f"{': all but ' + ', '.join(failed) if failed else ''}.\n")
    return int(bool(failed))


if __name__ == "__main__":
    run_script(main)
