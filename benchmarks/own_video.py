"""Cost of objects, and memory over a long video file, with `infer_vos_dul.py --video` from end to end.

    python benchmarks/own_video.py [--model MODEL] [--objects 1 5 20]                   # ms a frame
    python benchmarks/own_video.py --length 1500 --size 1280x720 --input_size 240      # memory, both directions

The video is drawn and written as H.264 first. Rows of the first table take turns, each run in a process of its own;
frames count after the context of 20 recent frames is full; the baseline is one object. The second form runs one video,
masks given at both ends with --backward, and prints the peak of the process as it goes on. Without --model the network
is S with random weights.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.common import alone, network, peak_memory, width_and_height
from inference.outputs import Outputs
from inference.own_video import read_job
from inference.pipeline import Job, Pass, merged
from inference.results import ResultFolder
from inference.writer import VideoWriter
from models.propagation import build_propagator, encoder_batch
from utils.config import load_settings
from utils.device import resolve_device
from utils.errors import run_script
from utils.masks import write_mask

CONTEXT = 21


def main() -> None:
    """Draw, run, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model file; random weights without")
    parser.add_argument("--model_size", default="S", help="of the network with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=width_and_height, default=(854, 480), metavar="WxH")
    parser.add_argument("--input_size", type=int, default=load_settings().TEST.INPUT_SIZE)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--frames", type=int, help="timed frames; default: 5 on a CPU, 160 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, help="frames of a long video: print memory instead")
    args = parser.parse_args()
    args.frames = args.frames or (5 if args.device == "cpu" else 160)
    with tempfile.TemporaryDirectory() as folder:
        if args.length:
            clip = draw_video(Path(folder), args.length, args.size, 2)
            print("| frames done | peak MB |\n|---|---|")
            for done, peak in alone(memory_over_time, clip, args):
                print(f"| {done} | {peak:.0f} |")
            return
        clips = {count: draw_video(Path(folder) / str(count), CONTEXT + args.frames, args.size, count)
                 for count in args.objects}
        runs = [{count: alone(milliseconds, clip, args) for count, clip in clips.items()} for _ in range(args.rounds)]
    first = min(args.objects)
    print(f"| objects | ms a frame | times {first} object{'s' * (first > 1)} | growth an object |\n|---|---|---|---|")
    for count in args.objects:
        ratio = statistics.median(run[count] / run[first] for run in runs)
        growth = f"{(ratio - 1) / (count - first):.1%}" if count > first else ""
        print(f"| {count} | {statistics.median(run[count] for run in runs):.0f} | {ratio:.2f} | {growth} |")


def draw_video(folder: Path, length: int, size: tuple[int, int], objects: int) -> Path:
    """`clip.mp4` of textured tiles that drift over a drifting texture; the tiles' masks `<frame>.png` at both ends."""
    folder.mkdir(exist_ok=True)
    (width, height), rng = size, np.random.default_rng(0)
    side = int(height / 6)
    texture = lambda h, w: cv2.resize(rng.integers(0, 256, (h // 12, w // 12, 3), dtype=np.uint8), (w, h),
                                      interpolation=cv2.INTER_CUBIC)
    ground, tiles = texture(height, width + 100), [texture(side, side) for _ in range(objects)]
    writer = VideoWriter(folder / "clip.mp4", size, Fraction(25))
    for t in range(length):
        sway = round(50 + 49 * np.sin(t / 20))
        frame, mask = ground[:, sway:sway + width].copy(), np.zeros((height, width), np.uint8)
        for k, tile in enumerate(tiles, start=1):
            x = int((k - 1) % 5 * width / 5 + sway / 2)
            y = int((k - 1) // 5 * height / 4 + sway / 5)
            frame[y:y + side, x:x + side] = tile[:height - y, :width - x]
            mask[y:y + side, x:x + side] = k
        writer.write(frame, Fraction(t, 25))
        if t in (0, length - 1):
            write_mask(folder / f"{t}.png", mask)
    writer.close()
    return folder / "clip.mp4"


def run(job: Job, args: argparse.Namespace) -> list[tuple[float, float]]:
    """The whole command's work on a job; when each frame had come [s], and the peak memory then [MB]."""
    device, settings = resolve_device(args.device), load_settings(overrides=[
        "TEST.INFER_WH", "[0,0]", "TEST.INPUT_SIZE", str(args.input_size)])
    model = network(args.model, args.model_size, device)
    new_propagator = functools.partial(build_propagator, model, settings.TEST)
    files = ResultFolder(job.video.path.parent / "out", "merge").sequence(
        "clip", job.video.names, ["video", "sheet", "confidence"], {}, alone=True)
    batch_size = encoder_batch(device, settings.TEST.INFER_WH, settings.TEST.INPUT_SIZE)
    passes = {backward: Pass(job, backward=backward, folder=files.passes, batch_size=batch_size)
              for backward in {False, job.backward}}
    if job.backward:
        for _ in passes[True].carry(new_propagator()):
            pass
    seen = []
    with Outputs(files, job.video) as outputs:
        for result in merged(job, passes[False], passes.get(True), new_propagator()):
            outputs.write(result)
            seen.append((time.perf_counter(), peak_memory(device)))
    return seen


def milliseconds(clip: Path, args: argparse.Namespace) -> float:
    """Of a frame once the context is full."""
    times = [seen[0] for seen in run(read_job(str(clip), [str(clip.parent / "0.png")], backward=False, rate=None),
                                     args)]
    return 1000 * (times[-1] - times[CONTEXT - 1]) / (len(times) - CONTEXT)


def memory_over_time(clip: Path, args: argparse.Namespace) -> list[tuple[int, float]]:
    """(frames done, peak MB of the process so far); the backward pass comes before the first."""
    masks = [f"{t}={clip.parent / f'{t}.png'}" for t in (0, args.length - 1)]
    peaks = [seen[1] for seen in run(read_job(str(clip), masks, backward=True, rate=None), args)]
    ends = sorted({end for end in (1, 50, 100, 200, 500, 1000, 2000, args.length) if end <= args.length})
    return [(end, peaks[end - 1]) for end in ends]


if __name__ == "__main__":
    run_script(main)
