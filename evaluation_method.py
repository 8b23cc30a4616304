"""J and F of DAVIS for folders of masks, with the official package's protocol, numbers and files.

    python evaluation_method.py --task semi-supervised --davis_path DAVIS --results_path output/merge_vos
    python evaluation_method.py --gt_path ANNOTATIONS --results_path MASKS --include_first_last
    python evaluation_method.py --davis_path DAVIS --results_path output/cls_vos output/merge_vos --report report.html

Writes into every results folder `global_results-<set>.csv`, `per-sequence_results-<set>.csv` and `results-<set>.json`
(the unrounded values, of every frame too), always from the masks that are there now. Of several folders each is also
compared with the first. All values are shares in [0,1], or differences of them. The field's other tasks (joints: PCK;
parts: mIoU) take the data set's folder, and write `results-<task>.json`:

    python evaluation_method.py --task jhmdb --gt_path JHMDB --results_path output/merge_points
    python evaluation_method.py --task badja --gt_path BADJA --results_path output/merge_points
    python evaluation_method.py --task vip --gt_path VIP_Fine --results_path output/merge_vos
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.comparison import METRICS, Comparison, Difference, compare
from evaluation.davis_evaluation import (
    TASKS,
    Evaluation,
    Protocol,
    davis_ground_truth,
    evaluate_folders,
    folder_ground_truth,
    shorten,
)
from evaluation.report import write_report
from evaluation.tasks import TASKS as OTHER_TASKS
from evaluation.tasks import TaskEvaluation, difference, evaluate_task
from utils.errors import UserError, run_script
from utils.files import refuse_existing, write_csv, write_text
from utils.names import NAME_RULE, is_name, told_apart
from utils.run_record import features_used
from utils.threads import available_processors
from utils.version import VERSION

DAVIS_SET = "val"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"ColorNet {VERSION}")
    parser.add_argument("--task", choices=(*TASKS, *OTHER_TASKS), default=TASKS[0],
                        help="default: %(default)s")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--davis_path", metavar="DIR", help="DAVIS 2017: ImageSets/2017, Annotations/480p, "
                       "JPEGImages/480p (the pictures are for --report only)")
    truth.add_argument("--gt_path", metavar="DIR", help="any folder with one folder of masks a sequence: all sequences "
                       "that the results have too, and all objects, each from where it appears; or the folder of "
                       f"the data set of --task {', '.join(OTHER_TASKS)}")
    parser.add_argument("--results_path", metavar="DIR", nargs="+", required=True,
                        help="one or more folders with one folder of masks a sequence, or one table of points; others "
                        "are compared with the first")
    parser.add_argument("--set", default=DAVIS_SET, help="list of sequences of --davis_path (val, train, test-dev, "
                        "2016-val), and the end of the files' names; default: %(default)s")
    parser.add_argument("--sequences", metavar="NAME", nargs="+", default=[], help="score these sequences alone")
    parser.add_argument("--include_first_last", action="store_true",
                        help="score the first and the last frame too, as DAVIS does for the task unsupervised only")
    parser.add_argument("--allow-missing", action="store_true", help="missing frames and sequences are empty masks")
    parser.add_argument("--workers", type=int, default=available_processors(), help="processes; default: %(default)s")
    parser.add_argument("--report", metavar="HTML", help="write a page with tables, curves and the worst frames")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --report")
    parser.add_argument("--images_path", metavar="DIR", help="frames for the report's pictures, one folder a sequence; "
                        "default: JPEGImages/480p of --davis_path, JPEGImages beside --gt_path")
    return parser.parse_args(argv)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they need, the first to the left, the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [[cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))]
             for row in (header, ["-" * width for width in widths], *rows)]
    return "\n".join("  ".join(line) for line in lines)


def print_tables(evaluations: list[Evaluation]) -> None:
    """The global table, then the objects of each folder."""
    print_means(evaluations)
    for evaluation in evaluations:
        print(f"\n{evaluation.results}: {len(evaluation.sequences)} sequences, {len(evaluation.objects)} objects")
        empty = [sequence.sequence for sequence in evaluation.sequences if not sequence.objects]
        if empty:
            print(f"no object is scored in {shorten(empty)}")
        header, rows = ["Object", "J-Mean", "F-Mean"], []
        for sequence in evaluation.sequences:
            rows += [[row.name, f"{row.J.mean:.3f}", f"{row.F.mean:.3f}", str(len(sequence.missing))]
                     for row in sequence.objects]
        if evaluation.n_missing:
            print(f"{evaluation.n_missing} missing frames counted as empty masks")
            header.append("Missing")
        print(table(header, [row[:len(header)] for row in rows]))


def print_comparisons(comparisons: list[Comparison]) -> None:
    """What each other result has more than the first: over all objects, and for each sequence and object."""
    first, *names = told_apart([comparisons[0].first.results, *(c.other.results for c in comparisons)])
    print(f"\ndifferences from {first}: mean over all objects, standard error over sequences, 95 % of the bootstrap's "
          "means")
    rows = [[name, metric, f"{d.mean:+.3f}", f"{d.standard_error:.3f}", f"{d.low:+.3f}", f"{d.high:+.3f}",
             f"{c.better} of {len(c.sequences)} sequences" * (metric == METRICS[0])]
            for name, c in zip(names, comparisons) for metric, d in c.means.items()]
    print(table(["Results", "Metric", "Mean", "Error", "From", "To", "Better in"], rows))
    rows = []
    for sequence, objects in comparisons[0].objects.items():
        rows.append([sequence, *(f"{c.sequences[sequence][0]:+.3f}" for c in comparisons)])
        if len(objects) > 1:
            rows += [[f"  {sequence}_{k}", *(f"{c.objects[sequence][k][0]:+.3f}" for c in comparisons)]
                     for k in objects]
    print(f"\n{table(['J&F', *names], rows)}")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Plain values, `null` for what is not scored."""
    write_text(path, json.dumps(without_nan(values), indent=1))


def as_json(evaluation: Evaluation, protocol: Protocol, comparison: Comparison | None) -> dict:
    """All values unrounded; NaN at a frame that is not scored, None where there is no comparison."""
    objects = {row.name: {"J": row.J._asdict(), "F": row.F._asdict()} for row in evaluation.objects}
    sequences = {}
    for s in evaluation.sequences:
        tracks = [{"id": k, "id_in_results": proposal, "J": J.tolist(), "F": F.tolist()}
                  for k, proposal, J, F in zip(s.scores.ids, s.scores.proposals, s.scores.J, s.scores.F)]
        sequences[s.sequence] = {"frames": s.frames, "missing": s.missing, "objects": tracks}
    return {"task": protocol.task, "features": features_of(evaluation.results),
            "first_and_last_frame": protocol.all_frames, "missing_frames": evaluation.n_missing,
            "global": evaluation.means, "objects": objects, "sequences": sequences,
            "differences": comparison and comparison.as_json()}


def write_results(evaluation: Evaluation, protocol: Protocol, subset: str, comparison: Comparison | None) -> None:
    """The official package's two tables and the JSON file, into the results folder."""
    folder = evaluation.results
    write_csv(folder / f"global_results-{subset}.csv", [*evaluation.means],
              [[f"{value:.3f}" for value in evaluation.means.values()]])
    write_csv(folder / f"per-sequence_results-{subset}.csv", ["Sequence", "J-Mean", "F-Mean"],
              [[row.name, f"{row.J.mean:.3f}", f"{row.F.mean:.3f}"] for row in evaluation.objects])
    write_json(folder / f"results-{subset}.json", as_json(evaluation, protocol, comparison))


def main(argv: Sequence[str] | None = None) -> None:
    """Check, score, write, print."""
    args = parse_arguments(argv)
    refuse_mistakes(args)
    if args.task in OTHER_TASKS:
        return evaluate_other_task(args)
    protocol = Protocol(args.task, args.include_first_last, args.allow_missing)
    if args.davis_path:
        truth = davis_ground_truth(args.davis_path, args.set, args.task, args.sequences)
    else:
        truth = folder_ground_truth(args.gt_path, args.results_path, args.sequences)
        if truth.left_out:
            print(f"not evaluated, because the results lack them: {shorten(truth.left_out)}")
    evaluations = evaluate_folders(args.results_path, truth, protocol, args.workers)
    comparisons = [compare(evaluations[0], other) for other in evaluations[1:]]
    for evaluation, comparison in zip(evaluations, [None, *comparisons]):
        write_results(evaluation, protocol, args.set, comparison)
    print_tables(evaluations)
    if comparisons:
        print_comparisons(comparisons)
    if args.report:
        write_report(args.report, evaluations, truth, args.images_path, comparisons)
        print(f"\nreport: {args.report}")


def evaluate_other_task(args: argparse.Namespace) -> None:
    """Score, write and print joints or parts."""
    evaluations = evaluate_task(args.task, args.gt_path, args.results_path, args.sequences, args.workers)
    first, *others = evaluations
    differences = [{}, *(difference(first, other) for other in others)]
    parts = OTHER_TASKS[args.task].part
    for evaluation, found in zip(evaluations, differences):
        values = {"task": args.task, "features": features_of(evaluation.results),
                  "global": evaluation.means, parts: evaluation.parts, "sequences": evaluation.sequences,
                  "differences": {"first": str(first.results), **{metric: d.as_json() for metric, d in found.items()}}
                  if found else None}
        write_json(evaluation.results / f"results-{args.task}.json", values)
    print_task(evaluations, differences, parts)


def print_task(evaluations: list[TaskEvaluation], differences: list[dict[str, Difference]], parts: str) -> None:
    """The scores of each folder, what each has more than the first, then parts and sequences."""
    names = told_apart([evaluation.results for evaluation in evaluations])
    print_means(evaluations)
    if len(evaluations) > 1:
        print(f"\ndifferences from {names[0]}: mean over sequences, standard error, 95 % of the bootstrap's means")
        print(table(["Results", "Metric", "Mean", "Error", "From", "To"], [
            [name, metric, f"{d.mean:+.3f}", f"{d.standard_error:.3f}", f"{d.low:+.3f}", f"{d.high:+.3f}"]
            for name, found in zip(names[1:], differences[1:]) for metric, d in found.items()]))
    for title, rows in ((parts, [e.parts for e in evaluations]), ("sequences", [e.sequences for e in evaluations])):
        columns = [f"{name} {metric}".strip() for name in (names if len(names) > 1 else [""])
                   for metric in next(iter(rows[0].values()))]
        print("\n" + table([title, *columns], [[key, *(f"{value:.3f}" for row in rows for value in row[key].values())]
                                              for key in rows[0]]))


def print_means(evaluations: Sequence[Evaluation | TaskEvaluation]) -> None:
    """Which features made each folder, of those that say it, and the global table, a row a folder."""
    for evaluation in evaluations:
        if features := features_used(evaluation.results):
            print(f"{evaluation.results}: features {features}")
    print(table(["Results", *evaluations[0].means],
                [[str(e.results), *(f"{value:.3f}" for value in e.means.values())] for e in evaluations]))


def features_of(folder: Path) -> dict[str, Any] | None:
    """The features that made a folder as plain values, `null` where it does not say them."""
    features = features_used(folder)
    return features and features._asdict()


def without_nan(values: Any) -> Any:
    """Plain values with None for what is not scored."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and np.isnan(values) else values


def refuse_mistakes(args: argparse.Namespace) -> None:
    """`UserError` for options that contradict each other or would write where nobody expects it."""
    if args.task in OTHER_TASKS:
        stray = [option for option, given in (
            ("--davis_path", args.davis_path), ("--set", args.set != DAVIS_SET), ("--report", args.report),
            ("--include_first_last", args.include_first_last), ("--allow-missing", args.allow_missing),
            ("--images_path", args.images_path), ("--overwrite", args.overwrite)) if given]
        if stray:
            raise UserError(f"--task {args.task} takes the data set's folder as --gt_path, --results_path and "
                            f"--sequences; leave out {', '.join(stray)}")
    if not is_name(args.set):
        raise UserError(f"--set is {NAME_RULE}: it ends the names of the files; got {args.set!r:.80}")
    twice = [path for path in args.results_path if sum(os.path.samefile(path, other) for other in args.results_path
                                                       if os.path.exists(path) and os.path.exists(other)) > 1]
    if twice:
        raise UserError(f"--results_path names each folder once, and {twice[0]} is given {len(twice)} times")
    if args.report:
        if Path(args.report).suffix.lower() not in (".html", ".htm"):
            raise UserError(f"--report is an HTML file; {args.report} does not end in .html")
        refuse_existing(args.report, args.overwrite)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends at once: workers follow, and no file is half written
    run_script(main)
