"""Time of each stage of inference, frames a second and peak memory, on drawn video 854x480.

    python benchmarks/inference.py [--model MODEL] [--infer_wh 864 480] [--infer_R 25] [--device cpu]
    python benchmarks/inference.py --length 2000 --infer_wh 216 120 --infer_R 12     # memory over a long video

The first table has one row a method of propagation, each in processes of its own that take turns, the median of
--rounds; frames are timed after the context of 20 recent frames is full. The baseline is the same pipeline with the
plain search of `baselines/propagation.py`. The second form prints the memory of one run as the video goes on. Without
--model the network is S with random weights. "processor" is the processor time of all threads: where other programs run
at the same time its ratio means more than the clock's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.baselines.propagation import propagate_plainly
from benchmarks.common import alone, network, peak_memory
from datasets.evaluation_video import ListedVideo
from datasets.filelists import EvaluationFrame, EvaluationSequence
from inference.outputs import Outputs
from inference.pipeline import Job, Pass, merged
from inference.results import ResultFolder
from models.colornet import Branches
from models.label_propagation import context_gaps
from models.neighbours import Carried, NeighbourPropagation
from models.propagation import VideoPropagator, encoder_batch
from utils.config import load_settings
from utils.device import resolve_device
from utils.errors import run_script
from utils.masks import write_mask
from utils.timing import StageClock

STAGES = ("decode", "encode", "propagate", "write")
DRAWN = 60  # different frames; a longer video goes through them to and fro


class PlainPropagation(NeighbourPropagation):
    """The baseline: the plain search once the context is full; filling it with the plain search only takes longer."""

    def __init__(self, filling: int, **options):
        super().__init__(**options)
        self.filling = filling

    def prepare(self, features):
        """Keep the features as the plain search takes them, too."""
        prepared = super().prepare(features)
        prepared.plain = features
        return prepared

    def __call__(self, query, references, recent):
        """Labels by one of the two; the plain search gives no similarity."""
        self.filling -= 1
        if self.filling >= 0:
            return super().__call__(query, references, recent)
        context = [*references, *recent]
        labels = propagate_plainly(query.plain, torch.stack([memory.features.plain for memory in context]),
                                   torch.stack([memory.labels for memory in context]), knn=self.knn,
                                   radius=self.radius, temperature=self.temperature)
        return Carried(labels, labels.new_zeros(labels.shape[1:]))


def draw_video(folder: Path, count: int) -> EvaluationSequence:
    """Two textured objects that move and turn over a moving texture; of a long video, links to the first frames."""
    rng = np.random.default_rng(0)
    ground, *objects = (cv2.resize(rng.integers(0, 256, (side // 12, side // 12, 3), dtype=np.uint8), (side, side),
                                   interpolation=cv2.INTER_CUBIC) for side in (1200, 200, 140))
    frames = []
    for t in range(count):
        place = t % (2 * DRAWN - 2)
        drawn = min(place, 2 * DRAWN - 2 - place)
        image = folder / f"{t:05d}.jpg"
        if t < DRAWN:
            picture, mask = ground[100:580, 2 * t:2 * t + 854].copy(), np.zeros((480, 854), np.uint8)
            for k, texture in enumerate(objects, start=1):
                side = len(texture)
                turn = cv2.getRotationMatrix2D((side / 2, side / 2), 2.0 * t * (-1) ** k, 1)
                turn[:, 2] += (100 + 5 * t * k, 330 - 110 * k + 2 * t)
                inside = cv2.warpAffine(np.ones((side, side), np.uint8), turn, (854, 480)) > 0
                picture[inside] = cv2.warpAffine(texture, turn, (854, 480))[inside]
                mask[inside] = k
            cv2.imwrite(str(image), picture)
            if t == 0:
                write_mask(folder / "first.png", mask)
        else:
            os.symlink(folder / f"{drawn:05d}.jpg", image)
        frames.append(EvaluationFrame(image, folder / ("first.png" if t == 0 else "none.png"), True))
    return EvaluationSequence("drawn", frames)


def make_propagator(args: argparse.Namespace, method: str) -> VideoPropagator:
    """The propagator by the default settings and the options; `method` is "plain", "exact" or "fast"."""
    test = load_settings(flags={"TEST.INFER_WH": ("--infer_wh", args.infer_wh),
                                "TEST.RADIUS": ("--infer_R", args.infer_R)}).TEST
    device = resolve_device(args.device)
    model = network(args.model, args.model_size, device)
    options = {"knn": test.KNN, "radius": test.RADIUS, "temperature": test.TEMP, "max_memory": None}
    neighbours = PlainPropagation(test.CXT_SIZE, **options) if method == "plain" else \
        NeighbourPropagation(method=method, **options)
    return VideoPropagator(Branches(model, test.KEY), size=test.INFER_WH, neighbours=neighbours,
                           gaps=context_gaps(test.CXT_SIZE, False))


def run_parts(sequence: EvaluationSequence, args: argparse.Namespace, method: str, ends: list[int]) -> list[dict]:
    """Infer a sequence in one go; for each part up to a frame of `ends`: ms a frame by stage, peak memory so far."""
    device, report, start = resolve_device(args.device), [], 0
    propagator, clock, video = make_propagator(args, method), StageClock(device), ListedVideo(sequence)
    model_memory, job = peak_memory(device), Job(video, video.masks, correct=False)
    with tempfile.TemporaryDirectory() as out:
        files = ResultFolder(out, "merge").sequence("drawn", video.names, ["overlays"], {})
        forward = Pass(job, folder=files.passes, batch_size=encoder_batch(device, args.infer_wh, 0))
        busy = time.process_time()
        with Outputs(files, video) as outputs, tqdm(total=len(video), desc=method) as bar:
            for end, result in enumerate(merged(job, forward, None, propagator, clock), start=1):
                with clock.stage("propagate"):
                    result.mask  # noqa: B018 (made here, so that it counts here)
                with clock.stage("write"):
                    outputs.write(result)
                bar.update()
                if end in ends:
                    count = end - start
                    report.append({stage: 1000 * clock.seconds[stage] / count for stage in STAGES}
                                  | {"processor": 1000 * (time.process_time() - busy) / count, "frames": end,
                                     "peak": peak_memory(device), "model": model_memory})
                    clock.seconds.clear()
                    start, busy = end, time.process_time()
    return report


def main() -> None:
    """Draw the video, run, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model file; random weights without")
    parser.add_argument("--model_size", default="S", help="of the network with random weights")
    parser.add_argument("--infer_wh", nargs=2, type=int, help="default: TEST.INFER_WH")
    parser.add_argument("--infer_R", type=float, help="default: TEST.RADIUS")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", default=["plain", "exact", "fast"], help="rows; plain is the baseline")
    parser.add_argument("--frames", type=int, help="timed frames, after 21 that fill the context; default: 5 on a CPU, "
                        "160 on a GPU, which encodes several at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, help="print memory over a video of so many frames instead")
    args = parser.parse_args()
    args.infer_wh = args.infer_wh or load_settings().TEST.INFER_WH
    args.frames = args.frames or (5 if args.device == "cpu" else 160)
    with tempfile.TemporaryDirectory() as folder:
        if args.length:
            sequence = draw_video(Path(folder), args.length)
            ends = sorted({min(end, args.length) for end in (50, 100, 200, 500, 1000, 2000, args.length)})
            print("| frames so far | peak MB | ms a frame |\n|---|---|---|")
            for part in alone(run_parts, sequence, args, "exact", ends):
                print(f"| {part['frames']} | {part['peak']:.0f} | {sum(part[stage] for stage in STAGES):.1f} |")
            return
        sequence = draw_video(Path(folder), 21 + args.frames)
        ends = [21, 21 + args.frames]
        runs = [{method: alone(run_parts, sequence, args, method, ends)[-1] for method in args.methods}
                for _ in range(args.rounds)]
    rows = {method: {key: statistics.median(run[method][key] for run in runs) for key in runs[0][method]}
            for method in args.methods}
    print(f"| propagation | {' | '.join(f'{stage} ms' for stage in STAGES)} | frames/s | ratio | processor ms | ratio "
          "| peak MB (model) |")
    print("|---" * (len(STAGES) + 6) + "|")
    base = next(iter(rows.values()))
    elapsed = lambda row: sum(row[stage] for stage in STAGES)
    for method, row in rows.items():
        print(f"| {method} | {' | '.join(f'{row[stage]:.1f}' for stage in STAGES)} | {1000 / elapsed(row):.2f} "
              f"| {elapsed(base) / elapsed(row):.2f} | {row['processor']:.0f} "
              f"| {base['processor'] / row['processor']:.2f} | {row['peak']:.0f} ({row['model']:.0f}) |")


if __name__ == "__main__":
    run_script(main)
