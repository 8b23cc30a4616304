"""Does training on the video itself pay? J&F of labelled sequences before and after some steps on their own frames.

    python benchmarks/studies/adaptation.py --model MODEL [--scratch] --list filelists/davis16 --root ROOT
        [--sequences NAME ...] [--steps 20] [--lr 1e-4] [--size 432x240]

Each sequence starts anew from MODEL, or with --scratch from its untrained network, as `infer_vos_dul.py --adapt` does.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, when started as a file

from benchmarks.common import width_and_height
from benchmarks.studies.study import score_options
from datasets.evaluation_video import read_video
from datasets.filelists import find_list, read_evaluation_list
from models import build_model, load_model, model_train_config
from training.adaptation import Adaptation
from utils.config import load_settings
from utils.errors import run_script
from utils.seed import seed_everything


def main() -> None:
    """One line a sequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True)
    add("--scratch", action="store_true", help="begin with the untrained network of the model's configuration")
    add("--list", default="filelists/davis16")
    add("--root", default="data")
    add("--sequences", nargs="+", metavar="NAME")
    add("--steps", type=int, default=20)
    add("--lr", default="1e-4")
    add("--size", type=width_and_height, default=(432, 240), metavar="WxH")
    add("--seed", type=int, default=777)
    args = parser.parse_args()

    settings = load_settings(overrides=["MODEL.LR", args.lr])
    seed_everything(args.seed)
    model = build_model(model_train_config(args.model), settings).eval() if args.scratch else load_model(args.model)
    adapt = Adaptation(model, args.model, settings, steps=args.steps, seed=args.seed)
    for sequence in read_evaluation_list(find_list(args.list, args.root), args.root):
        if args.sequences and sequence.name not in args.sequences:
            continue
        start = time.perf_counter()
        adapted = adapt((frame.image for frame in read_video(sequence)), len(sequence.frames))
        seconds = time.perf_counter() - start
        scores = {name: score_options(network, sequence, ["colornet"], size=args.size)[0]
                  for name, network in (("before", model), ("after", adapted))}
        before, after = ((score["J"] + score["F"]) / 2 for score in scores.values())
        print(f"{sequence.name}: J&F {before:.1f} before, {after:.1f} after, {after - before:+.1f}; "
              f"{args.steps} steps in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    run_script(main)
