"""Curves of training runs as one picture: losses, and J&F of the validations where there are any.

    python tools/plot_curves.py LOGS/RUN [LOGS/RUN ...] --out curves.png

Reads each run's metrics.jsonl. Losses are drawn as running means over a tenth of the run. Needs matplotlib, which
requirements-dev.txt installs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from utils.errors import UserError, require_packages, run_script
from utils.files import refuse_existing, replacing
from utils.names import told_apart
from utils.values import parse_json, read_text

PANELS = {"loss/color": "colour loss", "loss/consistency": "consistency loss", "loss/dense": "dense loss",
          "val/J&F": "J&F"}
SMOOTHED_SHARE = 0.1  # of the records of a loss, in each mean


def read_curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps [N] and values [N] of each of `PANELS` that a run has; `UserError` where there is no record of any."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"a run's log folder holds metrics.jsonl; {path} does not exist; give LOGDIR/EXP of a run")
    records = []
    try:
        for line in read_text(path).splitlines():
            record = parse_json(line)
            records.append({"step": float(record["step"]), **{n: float(record[n]) for n in PANELS if n in record}})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"each line of {path} is a JSON record of numbers with its step; line {len(records) + 1} is "
                        f"none ({error!r}); remove that line") from error
    curves = {}
    for name in PANELS:
        found = [(record["step"], record[name]) for record in records if name in record]
        if found:
            steps, values = np.array(found, float).T
            curves[name] = (steps, values) if name.startswith("val/") else running_mean(steps, values)
    if not curves:
        raise UserError(f"{path} holds no losses and no validation; train longer than LOG.ITER_TRAIN steps")
    return curves


def running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each record and those before it that lie in the window, at the window's last step."""
    window = max(round(SMOOTHED_SHARE * len(values)), 1)
    return steps[window - 1:], np.convolve(values, np.full(window, 1 / window), mode="valid")


def draw(runs: Sequence[Path], out: Path) -> None:
    """Write the picture, one panel a quantity, one line a run."""
    require_packages("drawing curves", "matplotlib", requirements="requirements-dev.txt")
    from matplotlib.figure import Figure

    curves = dict(zip(told_apart(runs), map(read_curves, runs)))
    shown = [name for name in PANELS if any(name in found for found in curves.values())]
    figure = Figure(figsize=(4 * len(shown), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for i, (run, found) in enumerate(curves.items()):
            if name in found:
                dots = name.startswith("val/") or len(found[name][0]) == 1  # a line of one point is none
                axes.plot(*found[name], f"C{i}", label=run, marker="o" if dots else "", markersize=3)
        axes.set(title=PANELS[name], xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with replacing(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="LOGS/RUN")
    parser.add_argument("--out", required=True, type=Path, help="the picture, .png or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    args = parser.parse_args(argv)
    if args.out.suffix not in (".png", ".svg"):
        parser.error(f"--out ends in .png or .svg; got {args.out}")
    refuse_existing(args.out, args.overwrite)
    draw(args.runs, args.out)
    print(f"{len(args.runs)} runs drawn in {args.out}")


if __name__ == "__main__":
    run_script(main)
