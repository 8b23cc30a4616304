"""Time and memory of label propagation against an exhaustive search, on features of real or drawn frames.

    python benchmarks/propagation.py [--frames FOLDER] [--model MODEL] [--size 864x480] [--radius 25] [--device cpu]

The baseline, `baselines/propagation.py`, multiplies 100 queries at a time with all positions of the reference and 20
recent frames, adds the mask of the radius and takes the top 10 of everything. Each round propagates one new frame by
every method in turn, in one process; the time of ours includes preparing that frame. Medians of --rounds rounds.
Memory is what each method takes above the features of the context and the new frame, in a process of its own.
"Fraction of limit" is the time of the products inside the radius alone, in float32 at the rate measured in this run,
over the time taken; it can exceed 1, because the search proves most products unnecessary.
Without --frames a clip is drawn; without --model the network is S with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.baselines.propagation import propagate_plainly, radius_mask
from benchmarks.common import alone, network, peak_memory, width_and_height
from datasets.synthetic import make_clip
from models.colornet import Branches
from models.label_propagation import context_gaps
from models.neighbours import Memory, NeighbourPropagation
from models.propagation import VideoPropagator
from utils.config import load_settings
from utils.device import resolve_device
from utils.errors import UserError, run_script

CONTEXT = 21  # the reference and 20 recent frames
METHODS = ("plain", "exact", "fast")


def make_features(args: argparse.Namespace, count: int) -> Tensor:
    """Features `merge` of `count` frames, [N,C,h,w]."""
    device = resolve_device(args.device)
    if args.frames:
        paths = sorted(path for path in Path(args.frames).iterdir() if path.suffix in (".jpg", ".png"))[:count]
        if len(paths) < count:
            raise UserError(f"--frames needs a folder of at least {count} images; {args.frames} has {len(paths)}; "
                            "give a longer video or fewer --rounds")
        frames = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    else:
        frames = list(make_clip(np.random.default_rng(0), frames=count, size=(854, 480), objects=3).frames)
    model = network(args.model, args.model_size, device)
    encoder = VideoPropagator(Branches(model, "merge"), size=args.size, neighbours=search("exact", args),
                              gaps=context_gaps(1, False))
    return torch.cat([encoder.encode([frame]) for frame in frames])


def search(method: str, args: argparse.Namespace) -> NeighbourPropagation:
    """Our search with the published settings."""
    test = load_settings().TEST
    return NeighbourPropagation(knn=test.KNN, radius=args.radius, temperature=test.TEMP, method=method)


def make_labels(frames: int, h: int, w: int) -> Tensor:
    """Soft labels [N,M,h,w] of four drifting blobs."""
    coarse = torch.randn(1, 4, frames, 5, 7, generator=torch.Generator().manual_seed(0))
    return (8 * F.interpolate(coarse, size=(frames, h, w), mode="trilinear")[0]).softmax(0).transpose(0, 1).contiguous()


class Contender:
    """One method over the frames of a video: frame 0 is the reference, the 20 before a frame are recent."""

    def __init__(self, method: str, args: argparse.Namespace):
        self.method, self.engine, self.memories = method, search(method if method != "plain" else "exact", args), []

    def take(self, features: Tensor, labels: Tensor) -> None:
        """Add a frame to the context."""
        entry = features if self.method == "plain" else self.engine.prepare(features)
        self.memories.append(Memory(entry, labels))

    def propagate(self, features: Tensor) -> Tensor:
        """Soft labels [M,h,w] of the next frame."""
        reference, recent = self.memories[0], self.memories[1 - CONTEXT:]
        engine = self.engine
        if self.method != "plain":
            return engine(engine.prepare(features), [reference], recent).labels
        context = torch.stack([memory.features for memory in [reference, *recent]])
        labels = torch.stack([memory.labels for memory in [reference, *recent]])
        return propagate_plainly(features, context, labels, knn=engine.knn, radius=engine.radius,
                                 temperature=engine.temperature)


def timed(function: Callable[[], Tensor], device: torch.device) -> tuple[float, float, Tensor]:
    """Wall-clock and processor seconds of a call, and its result."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor, result


def product_rate(device: torch.device, C: int, dtype: torch.dtype) -> float:
    """Operations a second of [4096,C] x [C,4096], the best of ten."""
    a, b = (torch.rand(4096, C, device=device).to(dtype) for _ in range(2))
    return 2 * C * 4096**2 / min(timed(lambda: a @ b.t(), device)[0] for _ in range(10))


def memory_above_features(folder: str, method: str, args: argparse.Namespace) -> float:
    """MB at the peak of propagating two frames, above their and the context's features; runs in a new process."""
    device = resolve_device(args.device)
    frame = lambda i: torch.load(f"{folder}/{i}.pt").to(device)
    size, (_, h, w) = frame(0).numel() * 4 / 1e6, frame(0).shape
    labels = make_labels(CONTEXT + 2, h, w).to(device)
    torch.rand(512, 512) @ torch.rand(512, 512)  # what starts with the first product belongs to the library
    before = peak_memory(device)
    contender = Contender(method, args)
    for i in range(CONTEXT):
        contender.take(frame(i), labels[i])
    for i in range(CONTEXT, CONTEXT + 2):
        contender.propagate(frame(i))
    return peak_memory(device) - before - (CONTEXT + 1) * size


@torch.inference_mode()
def main() -> None:
    """Encode, run the methods in turn, print a table in Markdown."""
    args = parse_arguments()
    device = resolve_device(args.device)
    features = make_features(args, CONTEXT + 1 + args.rounds)
    _, C, h, w = features.shape
    labels = make_labels(len(features), h, w).to(device)
    contenders = {method: Contender(method, args) for method in METHODS}
    seconds: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    near = int((radius_mask(h, w, args.radius, device) == 0).sum())
    agreement = {method: [] for method in METHODS}
    for i, (feature, label) in enumerate(zip(features, labels)):
        ids = None
        for method, contender in contenders.items():
            if i > CONTEXT or (i == CONTEXT and method != "plain"):  # the first frame of ours only warms up
                *times, result = timed(lambda frame=feature, by=contender: by.propagate(frame), device)
                full = F.interpolate(result[None], scale_factor=8, mode="bilinear", align_corners=True)[0]
                classes = full.argmax(0)
                if method == "plain":
                    ids = classes
                if ids is not None:
                    seconds[method].append(tuple(times))
                    agreement[method].append((classes == ids).float().mean().item())
            contender.take(feature, label)
    del contenders
    with tempfile.TemporaryDirectory() as folder:
        for i in range(CONTEXT + 2):
            torch.save(features[i].cpu().clone(), f"{folder}/{i}.pt")
        memory = {method: alone(memory_above_features, folder, method, args) for method in METHODS}
    rates = {dtype: product_rate(device, C, dtype) for dtype in (torch.float32, torch.bfloat16)}
    limit = 2 * C * (near * (CONTEXT - 1) + (h * w) ** 2) / rates[torch.float32]
    print(f"{args.size[0]}x{args.size[1]}, map {h}x{w}, C = {C}, radius {args.radius:g}, {torch.get_num_threads()} "
          f"threads; products at {rates[torch.float32] / 1e9:.0f} GFLOP/s in float32, "
          f"{rates[torch.bfloat16] / 1e9:.0f} in bfloat16; products inside the radius alone: {limit:.2f} s\n")
    print("| propagation | s a frame | ratio | processor s | ratio | fraction of limit "
          "| memory MB | ratio | pixels equal |")
    print("|---" * 9 + "|")
    rows = {method: [statistics.median(column) for column in zip(*times)] for method, times in seconds.items()}
    for method, (wall, processor) in rows.items():
        print(f"| {method} | {wall:.3f} | {rows['plain'][0] / wall:.1f} | {processor:.3f} "
              f"| {rows['plain'][1] / processor:.1f} | {limit / wall:.2f} | {memory[method]:.0f} "
              f"| {memory[method] / memory['plain']:.2f} | {100 * min(agreement[method]):.3f} % |")


def parse_arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", help="folder of a video's frames; drawn ones without")
    parser.add_argument("--model", help="model file with a global head; random weights without")
    parser.add_argument("--model_size", default="S", help="of the network with random weights")
    parser.add_argument("--size", type=width_and_height, default=(864, 480), metavar="WxH", help="multiples of 8")
    parser.add_argument("--radius", type=float, default=25, help="[positions]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if any(side % 8 for side in args.size):
        parser.error("--size must be two multiples of 8, for example 864x480")
    return args


if __name__ == "__main__":
    run_script(main)
