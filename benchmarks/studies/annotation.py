"""A person's work on a video, imitated: a box, the outline found in it, corrections at the frames that the page names.

    python benchmarks/studies/annotation.py --davis ROOT/davis2017 --sequences libby dog [--corrections 2]
        [--direction forward] [--set TEST.INPUT_SIZE 240 ...]

By what stands behind the annotation page: GrabCut in the box of the true mask of frame 0, carried on; then the true
mask of the first frame that is doubtful, carried again, and so on. J&F of all frames but the first, in percent, after
each step. Where no frame is doubtful any more the work ends.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, when started as a file

from annotation.outline import cut_box
from annotation.session import Session
from annotation.work import Work
from datasets.own_video import open_video
from evaluation.davis_metrics import evaluate_sequence
from inference.own_video import own_video_defaults
from inference.results import ResultFolder
from models import load_model
from models.features import load_features, needs_model
from models.propagation import build_propagator
from utils.config import SHIPPED_MODEL, Settings, load_settings
from utils.errors import run_script
from utils.masks import read_mask


def main() -> None:
    """One line a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--davis", type=Path, required=True, help="folder with JPEGImages/480p and Annotations/480p")
    add("--sequences", nargs="+", required=True, metavar="NAME", help="of one object each")
    add("--resume", default=SHIPPED_MODEL, metavar="MODEL")
    add("--corrections", type=int, default=2)
    add("--direction", default="forward", choices=("forward", "both"), help="in which corrections are carried")
    add("--set", nargs="+", action="extend", default=[], metavar=("K", "V"))
    args = parser.parse_args()
    settings = load_settings(overrides=args.set, instead=own_video_defaults(None))
    print("| sequence | step | J&F |\n|---|---|---|")
    for name in args.sequences:
        for step, score in imitate(name, args, settings):
            print(f"| {name} | {step} | {score:.1f} |", flush=True)


def imitate(name: str, args: argparse.Namespace, settings: Settings) -> Iterator[tuple[str, float]]:
    """What was done, and J&F after it."""
    truths = [np.minimum(read_mask(file), 1) for file in sorted((args.davis / "Annotations/480p" / name).glob("*.png"))]
    rows, columns = np.flatnonzero(truths[0].any(1)), np.flatnonzero(truths[0].any(0))
    box = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    with tempfile.TemporaryDirectory() as folder:
        video = open_video(str(args.davis / "JPEGImages/480p" / name))
        files = ResultFolder(folder, settings.TEST.KEY).sequence(name, video.names, ["confidence"], {}, alone=True)
        session = Session(video, Path(folder), files.masks)
        work = Work(session, files, lambda: propagators(args.resume, settings), lambda masks, both: "", batch_size=1)
        score = lambda: 100 * j_and_f(truths, [session.mask(number).ids for number in range(len(truths))])
        session.add_object()
        session.give(0, cut_box(session.frame(0), tuple(map(int, box))).astype(np.uint8), 0)
        work.wait()
        yield "outline in a box of frame 0, against its true mask", 100 * j_and_f(truths[:1], [session.mask(0).ids], 0)
        carry(work, "forward")
        yield "carried", score()
        for _ in range(args.corrections):
            doubtful = work.state(0, 0)["doubtful"]
            if not doubtful:
                break
            session.give(doubtful[0], truths[doubtful[0]], session.revision(doubtful[0]))
            carry(work, args.direction)
            yield f"frame {doubtful[0]} of {', '.join(map(str, doubtful))} corrected, carried again", score()
        work.close()


def propagators(model: str, settings: Settings) -> functools.partial:
    """What makes new propagators."""
    network = load_model(model, "cpu") if needs_model(settings.TEST.KEY) else None
    return functools.partial(build_propagator, load_features(settings.TEST.KEY, network), settings.TEST)


def carry(work: Work, direction: str) -> None:
    """To the end."""
    work.carry(direction)
    work.wait()
    if work.state(0, 0)["error"]:
        raise RuntimeError(work.state(0, 0)["error"])


def j_and_f(truths: list[np.ndarray], masks: list[np.ndarray], first: int = 1) -> float:
    """The mean over the frames from `first` on, of one object."""
    scores = evaluate_sequence(truths[:1] + truths[first:], truths[:1] + masks[first:], include_first_last=True)
    return float((scores.J[0, 1:] + scores.F[0, 1:]).mean() / 2)


if __name__ == "__main__":
    run_script(main)
