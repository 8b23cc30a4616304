"""Does training on the video itself pay? J&F of labelled sequences before and after some steps on their own frames.

    python benchmarks/adaptation.py --model MODEL [--scratch] --list filelists/davis16 --root ROOT
        [--sequences NAME ...] [--steps 40] [--lr 1e-4] [--frames 4] [--size 432x240]

Each sequence starts anew from MODEL (with --scratch from its untrained network) and takes --steps steps of the training
objective without negatives, one clip of the sequence a step; no mask is used. Then the masks are carried as published.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.study import score_options, width_and_height  # noqa: E402
from datasets import build_train_dataset, checked, collate  # noqa: E402
from datasets.filelists import EvaluationSequence, find_list, read_evaluation_list  # noqa: E402
from losses import build_objective  # noqa: E402
from models import build_model, load_model  # noqa: E402
from models.colornet import ColorNet  # noqa: E402
from models.convolution import save_multiplications  # noqa: E402
from trainColorNetDUL_benchmark import prepare, split_clips  # noqa: E402
from utils.checkpoint import read_checkpoint  # noqa: E402
from utils.config import Settings, TrainConfig, load_settings, parse_train_config  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.seed import seed_everything  # noqa: E402


def adapt(model: ColorNet, sequence: EvaluationSequence, config: TrainConfig, settings: Settings, steps: int,
          seed: int) -> ColorNet:
    """A copy of the network after `steps` steps on clips of the sequence's frames."""
    root = sequence.frames[0].image.parent
    settings = dataclasses.replace(settings, DATASET=dataclasses.replace(settings.DATASET, ROOT=str(root)))
    dataset = build_train_dataset(settings, config, coco=False, seed=seed)
    network = save_multiplications(copy.deepcopy(model).train().to(memory_format=torch.channels_last))
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.MODEL.LR, betas=settings.MODEL.BETAS,
                                  eps=settings.MODEL.EPS, weight_decay=settings.MODEL.WEIGHT_DECAY)
    objective = build_objective(config, settings)
    for step in range(steps):
        batch = prepare(split_clips(checked(collate([dataset[step, 0]])), 1)[0], torch.device("cpu"))
        objective(network, batch, torch.Generator().manual_seed(seed + step)).total.backward()
        optimiser.step()
        optimiser.zero_grad()
    return network.eval()


def main() -> None:
    """One line a sequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True)
    add("--scratch", action="store_true", help="begin with the untrained network of the model's configuration")
    add("--list", default="filelists/davis16")
    add("--root", default="data")
    add("--sequences", nargs="+", metavar="NAME")
    add("--steps", type=int, default=40)
    add("--lr", default="1e-4")
    add("--frames", type=int, default=4, help="of a clip")
    add("--size", type=width_and_height, default=(432, 240), metavar="WxH")
    add("--seed", type=int, default=777)
    args = parser.parse_args()

    settings = load_settings(overrides=["MODEL.LR", args.lr])
    config = parse_train_config(read_checkpoint(args.model)["train_config"], args.model)
    config = dataclasses.replace(config, is_neg=False, video_len=args.frames)
    seed_everything(args.seed)
    model = build_model(config, settings).eval() if args.scratch else load_model(args.model)
    for sequence in read_evaluation_list(find_list(args.list, args.root), args.root):
        if args.sequences and sequence.name not in args.sequences:
            continue
        start = time.perf_counter()
        adapted = adapt(model, sequence, config, settings, args.steps, args.seed)
        seconds = time.perf_counter() - start
        scores = {name: score_options(network, sequence, ["colornet"], size=args.size)[0]
                  for name, network in (("before", model), ("after", adapted))}
        before, after = ((score["J"] + score["F"]) / 2 for score in scores.values())
        print(f"{sequence.name}: J&F {before:.1f} before, {after:.1f} after, {after - before:+.1f}; "
              f"{args.steps} steps in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    run_script(main)
