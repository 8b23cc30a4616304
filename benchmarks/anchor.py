"""A small ImageNet network, our features and both together, in one propagator on the same frames.

    pip install -r requirements-features.txt
    python benchmarks/anchor.py --list filelists/davis16 --root ROOT [--size 432x240] [--resume MODEL]
        [--features SPEC ...] [--sequences NAME ...] [--results anchor.jsonl]

Prints J&F of each sequence and the mean, in percent, and the seconds of one processor core that encoder and propagation
take a frame (published protocol; first and last frame are not scored, as in DAVIS 2017). What several SPECs have
in common is encoded once. Each sequence is added to --results; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.common import width_and_height
from datasets.evaluation_video import read_video
from datasets.filelists import EvaluationSequence, find_list, read_evaluation_list
from evaluation.davis_metrics import evaluate_sequence, statistics
from models import load_model
from models.features import Features, combine, load_features
from models.propagation import build_propagator
from utils.config import SHIPPED_MODEL, TestSettings, load_settings
from utils.errors import run_script
from utils.feature_spec import parse_features

SPECS = ("merge", "efficientnet-lite0", "merge+efficientnet-lite0")


def measure(sequence: EvaluationSequence, specs: Sequence[str], networks: dict[str, Features],
            test: TestSettings) -> list[dict]:
    """J and F [percent] of each specification on one sequence, with seconds a frame.

    `networks` has the features of each name in the specifications, alone.
    """
    propagators = {spec: build_propagator(networks[parse_features(spec)[0].name], test) for spec in specs}
    encoders = {name: build_propagator(network, test) for name, network in networks.items()}
    masks: dict[str, list[np.ndarray]] = {spec: [] for spec in specs}
    seconds: dict[str, float] = defaultdict(float)
    truths = []

    def timed(part: str, function: Callable, *args: Any) -> Any:
        start = time.thread_time()
        result = function(*args)
        seconds[part] += time.thread_time() - start
        return result

    def carry(spec: str, features: Tensor, mask: np.ndarray | None, image: np.ndarray) -> np.ndarray:
        return propagators[spec].index_mask(propagators[spec].predict(features, mask), image)

    for frame in read_video(sequence):
        maps = {name: timed(f"encode {name}", encoder.encode, [frame.image]) for name, encoder in encoders.items()}
        for spec in specs:
            terms = parse_features(spec)
            features = combine([maps[term.name] for term in terms], [term.weight for term in terms])[0]
            masks[spec].append(timed(spec, carry, spec, features, None if truths else frame.mask, frame.image))
        truths.append(frame.mask)
    rows = []
    for spec in specs:
        scores = evaluate_sequence(truths, masks[spec])
        J, F = (float(np.mean([statistics(row).mean for row in values]) * 100) for values in (scores.J, scores.F))
        encode = sum(seconds[f"encode {term.name}"] for term in parse_features(spec))
        rows.append({"sequence": sequence.name, "features": spec, "J": J, "F": F, "encode": encode / len(truths),
                     "propagate": seconds[spec] / len(truths)})
    return rows


def print_table(rows: Sequence[dict], specs: Sequence[str]) -> None:
    """One line a sequence, one column a specification."""
    print(f"| J&F | {' | '.join(specs)} |\n|---|{'---|' * len(specs)}")
    found = {(row["sequence"], row["features"]): row for row in rows}
    names = [name for name in dict.fromkeys(row["sequence"] for row in rows)
             if all((name, spec) in found for spec in specs)]
    score = lambda name, spec: (found[name, spec]["J"] + found[name, spec]["F"]) / 2
    for name in names:
        print(f"| {name} | " + " | ".join(f"{score(name, spec):.1f}" for spec in specs) + " |")
    for title, digits, value in (("mean", 1, score), ("encoder, seconds a frame", 3, lambda *k: found[k]["encode"]),
                                 ("propagation, seconds a frame", 3, lambda *k: found[k]["propagate"])):
        means = [np.mean([value(name, spec) for name in names]) for spec in specs]
        print(f"| {title} | " + " | ".join(f"{mean:.{digits}f}" for mean in means) + " |")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--list", default="filelists/davis16", help="labelled list, as infer_vos_dul.py --infer-list")
    add("--root", default="data", help="the data root, as DATASET.ROOT")
    add("--size", type=width_and_height, default=(432, 240), metavar="WxH")
    add("--resume", default=SHIPPED_MODEL, metavar="MODEL", help="the ColorNet (default: the bundled model)")
    add("--features", nargs="+", default=SPECS, metavar="SPEC")
    add("--sequences", nargs="+", metavar="NAME", help="some of the list")
    add("--results", default="anchor.jsonl", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure what is not yet in the results, and print the table."""
    args = parse_arguments()
    torch.set_num_threads(1)
    setting = {"size": list(args.size), "model": str(args.resume)}
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.is_file() else []
    rows = [row for row in rows if {key: row[key] for key in setting} == setting]
    test = load_settings(flags={"TEST.INFER_WH": ("--size", args.size)}).TEST
    model = load_model(args.resume)
    networks = {name: load_features(name, model)
                for name in dict.fromkeys(term.name for spec in args.features for term in parse_features(spec))}
    for sequence in read_evaluation_list(find_list(args.list, args.root), args.root):
        have = {row["features"] for row in rows if row["sequence"] == sequence.name}
        if (args.sequences and sequence.name not in args.sequences) or have >= set(args.features):
            continue
        for row in measure(sequence, args.features, networks, test):
            rows.append({**setting, **row})
            with args.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(f"{sequence.name} measured", file=sys.stderr, flush=True)
    print_table(rows, args.features)


if __name__ == "__main__":
    run_script(main)
