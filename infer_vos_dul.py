#!/usr/bin/env python
r"""Carry the masks of first frames through videos: reader -> encoder -> propagator -> writer (DESIGN section 8).

    python infer_vos_dul.py --cfg configs/ytvos.yaml --exp 0001 --run final \
        --infer-list filelists/val_davis2017_test --mask-output-dir ./output --seed 0 \
        --set TEST.KEY merge --resume MODEL [--infer_wh 864 480] [--infer_R 12] [--custom_interval]

writes masks to ./output/merge_vos/<sequence>/<frame>.png and overlays to ./output/merge_vis. On several devices:

    torchrun --nproc_per_node N infer_vos_dul.py ...
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from datasets.evaluation_video import read_video
from datasets.filelists import EvaluationSequence, find_list, read_evaluation_list
from models import load_model
from models.neighbours import METHODS
from models.propagation import VideoPropagator, build_propagator
from utils.config import DEFAULT_SETTINGS, Settings, load_settings, resolved
from utils.device import PRECISIONS, resolve_device
from utils.errors import run_script
from utils.log import start_console
from utils.seed import seed_everything
from utils.timing import StageClock
from utils.writer import BackgroundWriter, ResultFolder

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

ENCODER_BATCH = {"cpu": 1, "cuda": 8}  # frames encoded at once
WRITING_THREADS = min(4, os.cpu_count() or 1)
WRITING_DEPTH = 16  # results that may wait for the disk


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `infer_wh`, `infer_R` and `set` are merged with the YAML file by `load_settings`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cfg", default=DEFAULT_SETTINGS, help="YAML settings (default configs/ytvos.yaml)")
    add("--exp", default="0001", help="experiment id, recorded with the results")
    add("--run", default="final", help="run name, recorded with the results")
    add("--infer-list", required=True, help="list of frames and masks, under DATASET.ROOT or in the repository")
    add("--mask-output-dir", required=True, type=Path, help="folder for <key>_vos and <key>_vis")
    add("--resume", required=True, help="model file, released or from the training command")
    add("--seed", type=int, default=0, help="of every random generator (default %(default)s)")
    add("--set", nargs="+", action="extend", default=[], metavar=("K", "V"), help="override YAML keys")
    add("--infer_wh", nargs=2, type=int, metavar=("W", "H"), help="TEST.INFER_WH: frames are resized to this [pixels]")
    add("--infer_R", type=float, metavar="R", help="TEST.RADIUS: of the search in recent frames [feature cells]")
    add("--custom_interval", action="store_true", help="recent frames at growing gaps, up to 39 frames back")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    add("--precision", default="fp32", choices=PRECISIONS, help="of the encoder (default %(default)s)")
    add("--propagation", default=METHODS[0], choices=METHODS,
        help="of neighbours; fast may miss a few (default %(default)s)")
    add("--max-memory", type=parse_bytes, metavar="SIZE",
        help="bound of what features kept and their search take, such as 1.5GB")
    add("--no-overlay", action="store_true", help="write masks only")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--continue", action="store_true", dest="keep_finished", help="skip finished sequences")
    existing.add_argument("--overwrite", action="store_true", help="remove results of the list's frames first")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Everything that can be refused is refused before the first frame."""
    args = parse_arguments(argv)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    start_console()
    settings = load_settings(args.cfg, args.set, flags={"TEST.INFER_WH": ("--infer_wh", args.infer_wh),
                                                        "TEST.RADIUS": ("--infer_R", args.infer_R)})
    seed_everything(args.seed)
    device = process_device(args.device)
    root = settings.DATASET.ROOT
    sequences = read_evaluation_list(find_list(args.infer_list, root), root)
    model = load_model(args.resume, device)
    new_propagator = functools.partial(build_propagator, model, settings.TEST, custom_interval=args.custom_interval,
                                       precision=args.precision, method=args.propagation, max_memory=args.max_memory)
    new_propagator()  # refuses a feature that the model does not have
    results = ResultFolder(args.mask_output_dir, settings.TEST.KEY, overlays=not args.no_overlay)
    share = split_by_length(sequences, processes)[rank]
    if args.keep_finished:
        share = [sequence for sequence in share if not results.is_complete(sequence.name, saved_frames(sequence))]
    results.claim({sequence.name: saved_frames(sequence) for sequence in share}, describe(args, settings, device),
                  keep=args.keep_finished, overwrite=args.overwrite)

    frames = sum(len(sequence.frames) for sequence in share)
    logger.info("experiment %s, run %s: %d of %d sequences of %s in %s (%d frames), process %d of %d; %s features at "
                "%dx%d, %s, %s, seed %d", args.exp, args.run, len(share), len(sequences), args.infer_list, root, frames,
                rank + 1, processes, settings.TEST.KEY, *settings.TEST.INFER_WH, device, args.precision, args.seed)
    clock, start = StageClock(device), time.perf_counter()
    with (BackgroundWriter(threads=WRITING_THREADS, depth=WRITING_DEPTH) as writer,
          tqdm(total=frames, unit="frame", position=rank, disable=not frames) as bar):
        for sequence in share:
            bar.set_postfix_str(sequence.name)
            infer_sequence(sequence, new_propagator(), results, writer, clock, ENCODER_BATCH[device.type], bar)
    seconds = time.perf_counter() - start
    logger.info("%d frames in %.1f s: %.2f frames/s (%s); masks are in %s", frames, seconds, frames / seconds,
                clock.shares(), results.masks)


def infer_sequence(sequence: EvaluationSequence, propagator: VideoPropagator, results: ResultFolder,
                   writer: BackgroundWriter, clock: StageClock, batch_size: int, bar: tqdm) -> None:
    """Predict and write one sequence; frames are decoded before and written after by other threads."""
    for batch in clock.waiting("decode", batches(read_video(sequence, ahead=2 * batch_size + 4), batch_size)):
        with clock.stage("encode"):
            features = propagator.encode([frame.image for frame in batch])
        for frame, feature in zip(batch, features):
            with clock.stage("propagate"):
                mask = propagator.propagate(feature, frame.image.shape[:2], frame.mask)
            if frame.save:
                with clock.stage("write"):
                    writer.submit(results.write, sequence.name, frame.name, frame.image, mask)
            bar.update()


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def saved_frames(sequence: EvaluationSequence) -> list[str]:
    """Names of the frames whose results are written."""
    return [frame.image.stem for frame in sequence.frames if frame.save]


def split_by_length(sequences: Sequence[EvaluationSequence], processes: int) -> list[list[EvaluationSequence]]:
    """One list of sequences a process: the longest first, each to the process with the fewest frames so far."""
    shares: list[list[EvaluationSequence]] = [[] for _ in range(processes)]
    frames = [0] * processes
    for sequence in sorted(sequences, key=lambda sequence: -len(sequence.frames)):
        least = frames.index(min(frames))
        shares[least].append(sequence)
        frames[least] += len(sequence.frames)
    return shares


def describe(args: argparse.Namespace, settings: Settings, device: torch.device) -> dict[str, Any]:
    """What runs, for `run.json`; `method` is what the masks depend on."""
    model = hashlib.sha256(Path(args.resume).read_bytes()).hexdigest()
    method = {**resolved(settings.TEST), "custom_interval": args.custom_interval, "precision": args.precision,
              "propagation": args.propagation, "model_sha256": model}
    return {"exp": args.exp, "run": args.run, "infer_list": args.infer_list, "model": args.resume, "seed": args.seed,
            "device": str(device), "torch": torch.__version__, "method": method}


def process_device(name: str) -> torch.device:
    """The device that `--device` names; under torchrun, `auto` and `cuda` give every process a GPU of its own."""
    device = resolve_device(name)
    if device.type == "cuda" and name in ("auto", "cuda"):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return device


def parse_bytes(text: str) -> int:
    """`1.5GB`, `800MB`, `64KB` or a plain number of bytes to bytes; powers of 1000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"a memory size is a positive number with KB, MB or GB; it is {text!r}")
    return int(float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " "))


if __name__ == "__main__":
    run_script(main)
