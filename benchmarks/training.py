"""Time of a training step against a reference implementation, memory, and where our time goes.

    python benchmarks/training.py [--threads 1]                                   # fp32 on the CPU
    python benchmarks/training.py --device cuda --clips 8 --precision bf16 [--compile]

The baseline (baselines/losses.py) is a reference implementation of DESIGN section 6: every pass computes all outputs
of the network,
every pair of frames is rebuilt on its own; float32 by PyTorch's own convolutions in its default memory layout. Both do
forward, backward and AdamW on the same views (size S or M, both heads, T = 5, 256x256), in turn, and the total losses
are printed beside each other. With --precision, ours runs in it and the baseline in float32. One thread is timed
by its processor time, which other programs disturb less. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.baselines.losses import plain_total
from benchmarks.common import alone, peak_memory
from losses import build_objective
from models import build_model
from trainColorNetDUL_benchmark import parse_arguments, prepare_model
from training.schedule import build_optimiser
from utils.config import REPOSITORY, load_settings, load_train_config
from utils.device import PRECISIONS, resolve_device
from utils.errors import run_script

FRAMES, SIDE = 5, 256
METHODS = ("plain", "ours")
SETTLED = 3  # steps of each before the first that is timed: until then a process still asks for memory
OPERATIONS = {"convolutions": ("mkldnn_convolution", "convolution_backward", "cudnn_convolution", "slow_conv2d"),
              "matrix products": ("aten::mm", "bmm", "addmm"), "attention": ("scaled_dot_product",),
              "softmax": ("softmax",), "normalisation": ("batch_norm",),
              "copies": ("copy_", "cat", "index", "clone", "fill_"),
              "rectifiers, sums, pooling": ("threshold", "clamp", "add", "max_pool", "mul")}


def main() -> None:
    """Memory, steps in turn, profile: one table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each")
    parser.add_argument("--size", choices=["S", "M"], default="S", help="of the network")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print_memory(args)
    steps = {name: make_step(name, args) for name in METHODS}
    print_speed(steps, args)
    print_profile(steps["ours"], args)


def make_step(name: str, args: argparse.Namespace) -> Callable[[], float]:
    """A training step that returns its total loss."""
    device = resolve_device(args.device)
    batch = draw_batch(args.clips, device)
    path = REPOSITORY / f"data/configs/train_config_default_{args.size}.json"
    train_config, settings = load_train_config(path), load_settings()
    torch.manual_seed(0)
    model = build_model(train_config, settings)
    if name == "plain":
        model, total, dtype = model.to(device).train(), plain_total, torch.float32
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    else:
        model = prepare_model(model, parse_arguments(["--compile"] if args.compile else []), device, begins=True)
        objective, dtype = build_objective(train_config, settings), PRECISIONS[args.precision]
        total = lambda model, batch, generator: objective(model, batch, generator).total
        optimiser = build_optimiser(model, settings)

    def step() -> float:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = total(model, batch, torch.Generator().manual_seed(1))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return float(loss.detach())  # waits for the GPU

    return step


def draw_batch(clips: int, device: torch.device) -> dict[str, dict[str, torch.Tensor]]:
    """Views as the objective takes them, of noise: speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    frames = lambda: torch.randn(clips, FRAMES, 3, SIDE, SIDE, generator=generator).to(device)
    grid = F.affine_grid(torch.eye(2, 3).expand(clips * FRAMES, 2, 3), (clips * FRAMES, 1, SIDE // 8, SIDE // 8),
                         align_corners=False)
    return {"color": {"view_a": frames(), "view_b": frames(), "target": frames().sigmoid(),
                      "grid": grid.unflatten(0, (clips, FRAMES)).to(device),
                      "edge": torch.ones(clips, FRAMES, 1, SIDE, SIDE, device=device)},
            "dense": {"view_1": frames(), "view_2": frames(), "theta": torch.eye(2, 3, device=device).expand(
                clips, 2, 3)}}


def print_speed(steps: dict[str, Callable[[], float]], args: argparse.Namespace) -> None:
    """Median seconds of a step; the ratio is the median of those of neighbours."""
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter
    losses = {name: step() for name, step in steps.items()}
    for step in [*steps.values()] * (SETTLED - 1):
        step()
    times = {name: [] for name in steps}
    for _ in range(args.steps):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    ratios = [a / b for a, b in zip(times["plain"], times["ours"])]
    print(f"\n{'step':14}{'seconds':>10}{'speed-up':>10}{'first total loss':>18}   ({args.clips} clips, {args.device}, "
          f"{args.threads} threads, ours {args.precision}{', compiled' if args.compile else ''})")
    for name, ratio in (("plain", 1.0), ("ours", statistics.median(ratios))):
        print(f"{name:14}{statistics.median(times[name]):10.3f}{ratio:9.2f}x{losses[name]:18.6f}")


def print_memory(args: argparse.Namespace) -> None:
    """Peak memory of two steps."""
    print(f"{'peak memory':14}{'MB':>10}")
    for name in METHODS:
        print(f"{name:14}{alone(memory_of_two_steps, name, args):10.0f}")


def memory_of_two_steps(name: str, args: argparse.Namespace) -> float:
    """Megabytes that this process, or its GPU, holds at most in two steps, its libraries included."""
    torch.set_num_threads(args.threads)
    step = make_step(name, args)
    step(), step()
    return peak_memory(resolve_device(args.device))


def print_profile(step: Callable[[], float], args: argparse.Namespace) -> None:
    """Shares of the operations' own time in one of our steps."""
    on_gpu = args.device != "cpu"
    kind = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kind.CPU, kind.CUDA] if on_gpu else [kind.CPU]) as profile:
        step()
    # A kernel's time stands at the operation that started it and at the kernel itself: operations alone are counted.
    own = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
           for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CPU}
    total, rest = sum(own.values()), dict(own)
    print(f"\n{'our step':28}{'share':>8}")
    for part, words in OPERATIONS.items():
        mine = [key for key in rest if any(word in key for word in words)]
        print(f"{part:28}{sum(rest.pop(key) for key in mine) / total:8.1%}")
    print(f"{'all else':28}{sum(rest.values()) / total:8.1%}")


if __name__ == "__main__":
    run_script(main)
