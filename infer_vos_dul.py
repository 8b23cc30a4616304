#!/usr/bin/env python
r"""Carry the masks of first frames through videos: reader -> encoder -> propagator -> writer (DESIGN section 8).

    python infer_vos_dul.py --cfg configs/ytvos.yaml --exp 0001 --run final \
        --infer-list filelists/val_davis2017_test --mask-output-dir ./output --seed 0 \
        --set TEST.KEY merge --resume MODEL [--infer_wh 864 480] [--infer_R 12] [--custom_interval]

writes masks to ./output/merge_vos/<sequence>/<frame>.png and overlays to ./output/merge_vis. On several devices:

    torchrun --nproc_per_node N infer_vos_dul.py ...

For a video of your own (inference/own_video.py), masks and an overlay video go to ./output/<its name>:

    python infer_vos_dul.py --video clip.mp4 --mask first.png [57=correction.png] [--backward] [--resume MODEL]

Points in the place of masks (inference/points.py) go to ./output/<its name>/points.csv and points.mp4:

    python infer_vos_dul.py --video clip.mp4 --points points.csv

The joints of JHMDB or BADJA go to ./output/merge_points/<sequence>.csv, for evaluation_method.py --task:

    python infer_vos_dul.py --badja BADJA --mask-output-dir ./output --resume MODEL
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.evaluation_video import ListedVideo
from datasets.filelists import EvaluationSequence, find_list
from datasets.keypoint_sets import read_badja_set, read_jhmdb_set
from datasets.own_video import open_video
from datasets.points import read_points
from datasets.video import result_name
from inference.outputs import Outputs
from inference.own_video import describe_source, own_video_defaults, read_job, save_frame, split_mask_word
from inference.pipeline import Job, memory_advice
from inference.points import write_points
from inference.refinement import Refinement
from inference.results import PRODUCTS, ResultFolder, claim_tables, describe_method
from inference.run import Preparation, Run, Task
from inference.sources import add_sources, read_sequences, source_flag, source_record, split_by_length
from models import load_model
from models.features import load_features, needs_model, weight_files
from models.neighbours import METHODS
from models.propagation import VideoPropagator, build_propagator, encoder_batch
from training.adaptation import Adaptation
from utils.config import DEFAULT_SETTINGS, PRESETS, SHIPPED_MODEL, Settings, load_settings
from utils.console import parse_bytes, start_console
from utils.device import PRECISIONS, resolve_device
from utils.errors import UserError, run_script
from utils.feature_spec import RANDOM, folder_name
from utils.files import refuse_existing
from utils.masks import object_ids
from utils.overlay import PALETTES
from utils.seed import seed_everything
from utils.timing import StageClock
from utils.version import VERSION

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; flags that name a YAML key are merged with the file by `load_settings`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--version", action="version", version=f"ColorNet {VERSION}")
    add_sources(parser)
    add("--cfg", default=DEFAULT_SETTINGS, help="YAML settings (default configs/ytvos.yaml)")
    add("--preset", choices=PRESETS, help="a published protocol (configs/presets); --cfg and options win over it")
    add("--exp", default="0001", help="experiment id, recorded with the results")
    add("--run", default="final", help="run name, recorded with the results")
    add("--mask-output-dir", type=Path, help="folder for <key>_vos and <key>_vis; for --video output/<its name>")
    add("--resume", help="model file, released or from training; --video has a bundled one")
    add("--features", metavar="SPEC", help="TEST.KEY: color, cls, merge, efficientnet-lite0, timm:MODEL[@LAYER], "
        "torchvision:MODEL@LAYER, dul, crw, vfs, dino, or a sum such as merge+efficientnet-lite0 "
        "(docs/experiments/features.md)")
    add("--feature-weights", nargs="+", default=[], metavar="[NAME=]FILE",
        help="weights of a network in --features; random for none")
    add("--seed", type=int, default=0, help="of every random generator (default %(default)s)")
    add("--set", nargs="+", action="extend", default=[], metavar=("K", "V"), help="override YAML keys")
    add("--infer_wh", nargs=2, type=int, metavar=("W", "H"), help="TEST.INFER_WH: frames are resized to this [pixels]")
    add("--infer_R", type=float, metavar="R", help="TEST.RADIUS: of the search in recent frames [feature cells]")
    add("--custom_interval", action="store_true", default=None,
        help="TEST.CUSTOM_INTERVAL: recent frames at growing gaps, up to 39 frames back")
    add("--upsample", help="TEST.UPSAMPLE: bilinear, or bilateral (--video), which follows the colours of the frames")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    add("--precision", default="fp32", choices=PRECISIONS, help="of the encoder (default %(default)s)")
    add("--propagation", default=METHODS[0], choices=METHODS,
        help="of neighbours; fast may miss a few (default %(default)s)")
    add("--max-memory", type=parse_bytes, metavar="SIZE",
        help="bound of what features kept and their search take, such as 1.5GB")
    add("--adapt", type=int, default=0, metavar="N",
        help="first train the model on each video's own frames for N steps, such as 20 (default: not at all)")
    add("--write", nargs="+", action="extend", choices=PRODUCTS, metavar="WHAT",
        help=f"beside the masks: {', '.join(PRODUCTS)} (default: overlays of a list; video, sheet and confidence of a "
        "--video)")
    add("--confidence-maps", action="store_true", help="add maps to what is written")
    add("--no-overlay", action="store_true", help="write no overlays, video and sheet")
    add("--clean", action="store_true", help="drop specks and fill holes of masks")
    add("--drop-lost", action="store_true", help="do not paint an object while it is lost")
    add("--no-ids", action="store_true", help="no ids in the overlay video and the contact sheet")
    add("--stamp", action="store_true", help="frame number and time in the overlay video and the contact sheet")
    add("--palette", default="davis", choices=PALETTES, help="colours of overlays (default %(default)s)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--continue", action="store_true", dest="keep_finished",
                          help="skip what is finished, and go on with a video or sequence where it ended")
    existing.add_argument("--overwrite", action="store_true", help="remove results of the same frames first")
    own = parser.add_argument_group("a video of your own (--video)").add_argument
    own("--mask", nargs="+", action="extend", metavar="[FRAME=]FILE",
        help="masks: of the first frame, and of later ones (from 0) with new objects or corrections")
    own("--points", type=Path, metavar="FILE", help="points in the place of masks: CSV with the columns point, x, y "
        "[pixels] and, if not all are of frame 0, frame; or a joint_annotations/<sequence>.json of BADJA")
    own("--backward", action="store_true", help="also carry masks from the last one given to the start")
    own("--fps", type=float, metavar="RATE", help="of the overlay of a folder of pictures (default 24)")
    own("--save-frame", type=int, metavar="N", help="only write frame N (from 0) as PNG, to paint a mask on")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Everything that can be refused is refused before the first frame."""
    args = parse_arguments(argv)
    refuse_contradictions(args)
    start_console()
    if args.video and not args.mask_output_dir:
        args.mask_output_dir = Path("output") / result_name(Path(args.video))
    if args.save_frame is not None:
        save_frame(args.video, args.save_frame, args.mask_output_dir, overwrite=args.overwrite)
        return None
    settings = load_settings(
        args.cfg, args.set, preset=args.preset, instead=own_video_defaults(args.preset) if args.video else None,
        flags={"TEST.INFER_WH": ("--infer_wh", args.infer_wh), "TEST.RADIUS": ("--infer_R", args.infer_R),
               "TEST.CUSTOM_INTERVAL": ("--custom_interval", args.custom_interval),
               "TEST.UPSAMPLE": ("--upsample", args.upsample), "TEST.KEY": ("--features", args.features)})
    choose_model(args, settings.TEST.KEY)
    seed_everything(args.seed)
    device = resolve_device(args.device)
    infer = infer_points if args.points else infer_keypoints if args.jhmdb or args.badja else infer_masks
    return infer(args, settings, device)


def choose_model(args: argparse.Namespace, spec: str) -> None:
    """The model and the files that the features ask for; `UserError` for what is missing and what they do not take."""
    args.feature_files = weight_files(spec, args.feature_weights)
    with_model = needs_model(spec)
    missing = [name for name, given in (("--mask-output-dir FOLDER", args.mask_output_dir),
                                        ("--resume MODEL", args.resume or not with_model)) if not given]
    if missing and not args.video:
        raise UserError(f"{source_flag(args)} needs {' and '.join(missing)}")
    for option, given in (("--resume", args.resume), ("--adapt", args.adapt)):
        if given and not with_model:
            raise UserError(f"{option} is of a ColorNet, and features {spec} are not; leave it out, or give --features "
                            f"merge+{spec}")
    if with_model and not args.resume:
        args.resume = SHIPPED_MODEL
        logger.info("no --resume is given: the model is %s, small and trained on little", SHIPPED_MODEL)


def refuse_contradictions(args: argparse.Namespace) -> None:
    """`UserError` for options that only make sense with the other kind of input."""
    own = {"--mask": args.mask, "--points": args.points, "--backward": args.backward, "--fps": args.fps is not None,
           "--save-frame": args.save_frame is not None}
    stray = [name for name, given in own.items() if given]
    source = source_flag(args)
    if not args.video and stray:
        raise UserError(f"{', '.join(stray)} belong to --video, and {source} is given, which names its own masks")
    if args.video and not (args.mask or args.points) and args.save_frame is None:
        raise UserError("--video needs --mask FILE, the objects of its first frame, or --points FILE; --save-frame 0 "
                        "writes that frame as PNG to paint objects on")
    joints = args.jhmdb or args.badja
    masks = {"--mask": args.mask, "--backward": args.backward, "--continue": args.keep_finished and args.points,
             "--write": args.write, "--confidence-maps": args.confidence_maps, "--clean": args.clean,
             "--drop-lost": args.drop_lost, "--no-ids": args.no_ids, "--stamp": args.stamp}
    if (args.points or joints) and any(masks.values()):
        raise UserError(f"{', '.join(name for name, given in masks.items() if given)} belong to masks, and "
                        f"{source if joints else '--points'} is given; leave one of them out")
    if (args.video or joints) and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"torchrun splits the sequences of an --infer-list; {source} takes one process")
    if args.adapt < 0:
        raise UserError(f"--adapt is a number of training steps, 0 or more; it is {args.adapt}")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise UserError(f"--fps is a number above 0 and at most 1000; it is {args.fps}")


def preparation(args: argparse.Namespace, settings: Settings, device: torch.device, clock: StageClock) -> Preparation:
    """Load the model; returns what takes a video's frames and their number to what makes propagators for it."""
    model = load_model(args.resume, device) if args.resume else None
    features = load_features(settings.TEST.KEY, model, args.feature_files, device=device)
    build = functools.partial(build_propagator, settings=settings.TEST, method=args.propagation,
                              precision=args.precision, max_memory=args.max_memory)
    build(features)  # refuses what is wrong in the settings
    if model is None or not args.adapt:
        return lambda frames, total: functools.partial(build, features)
    adaptation = Adaptation(model, args.resume, settings, steps=args.adapt, seed=args.seed)

    def adapted(frames: Iterable[np.ndarray], total: int) -> Callable[[], VideoPropagator]:
        with clock.stage("adapt"):
            return functools.partial(build, features.with_model(adaptation(frames, total)))

    return adapted


def infer_masks(args: argparse.Namespace, settings: Settings, device: torch.device) -> int | None:
    """The masks of one's own video, or of the sequences of a list, which the processes share."""
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    root, clock = settings.DATASET.ROOT, StageClock(device)
    results = ResultFolder(args.mask_output_dir, settings.TEST.KEY)
    tasks = [own_task(args, results)] if args.video else [
        listed_task(args, results, sequence)
        for sequence in split_by_length(read_sequences(args, root), processes)[rank]]
    prepare, record = preparation(args, settings, device, clock), describe(args, settings, device)
    files = (args.resume, args.cfg, *args.feature_files.values(), args.infer_list and find_list(args.infer_list, root))
    inputs = [*(Path(file) for file in files if file), *(file for task in tasks for file in task.inputs)]
    outputs = functools.partial(Outputs, refinement=refinement(args), palette=args.palette, ids=not args.no_ids,
                                stamp=args.stamp)
    with results.claim([task.files for task in tasks], record, inputs=inputs, keep=args.keep_finished,
                       overwrite=args.overwrite) as unfinished:
        todo = [task for task in tasks if task.files in unfinished]
        logger.info("%d of %d videos (%d frames) are left to do, process %d of %d; %s features at %s, %s, %s, "
                    "seed %d", len(todo), len(tasks), sum(len(task.job.video) for task in todo), rank + 1, processes,
                    settings.TEST.KEY, size_in_words(settings), device, args.precision, args.seed)
        status = Run(prepare, record["method"], outputs, clock, batch_size(settings, device), rank)(todo)
    logger.info("masks are in %s, the rest in %s", results.masks, results.pictures)
    return status


def own_task(args: argparse.Namespace, results: ResultFolder) -> Task:
    """The video of `--video` with the masks given."""
    job = read_job(args.video, args.mask, backward=args.backward, rate=args.fps)
    given = "; ".join(f"frame {number} has objects {', '.join(map(str, object_ids(mask)))}"
                      for number, mask in job.masks.items())
    logger.info("%s: %d frames %dx%d; %s", args.video, len(job.video), *job.video.size, given)
    files = results.sequence(job.video.name, job.video.names, products(args), describe_source(job), alone=True)
    return Task(job, range(len(job.video)), files, [job.video.path, *(split_mask_word(word)[1] for word in args.mask)])


def listed_task(args: argparse.Namespace, results: ResultFolder, sequence: EvaluationSequence) -> Task:
    """A sequence of a list."""
    video = ListedVideo(sequence)
    files = results.sequence(sequence.name, [video.names[number] for number in video.saved], products(args),
                             video.source())
    inputs = [file for frame in sequence.frames for file in (frame.image, frame.mask) if file]
    return Task(Job(video, video.masks, correct=False), video.saved, files, inputs)


def infer_points(args: argparse.Namespace, settings: Settings, device: torch.device) -> None:
    """One video and points of it."""
    video, table = open_video(args.video, args.fps), args.mask_output_dir / "points.csv"
    points = read_points(args.points, video)
    for file in [table] if args.no_overlay else [table, table.with_suffix(".mp4")]:
        refuse_existing(file, args.overwrite)
        if os.path.realpath(file) in map(os.path.realpath, (args.points, args.video)):
            raise UserError(f"a run does not replace what it reads, and {file} is both; choose another "
                            "--mask-output-dir")
    prepare = preparation(args, settings, device, StageClock(device))
    with memory_advice():
        write_points(video, points, table, prepare, movie=not args.no_overlay, palette=args.palette,
                     batch_size=batch_size(settings, device))


def infer_keypoints(args: argparse.Namespace, settings: Settings, device: torch.device) -> None:
    """The videos of JHMDB or BADJA, with the joints of their first annotated frame."""
    sequences = read_jhmdb_set(args.jhmdb, args.sequences) if args.jhmdb else read_badja_set(args.badja, args.sequences)
    prepare = preparation(args, settings, device, StageClock(device))
    folder, names = args.mask_output_dir / f"{folder_name(settings.TEST.KEY)}_points", [one.name for one in sequences]
    with claim_tables(folder, names, describe(args, settings, device), keep=args.keep_finished,
                      overwrite=args.overwrite) as todo, memory_advice():
        for sequence in [one for one in sequences if one.name in todo]:
            logger.info("sequence %d of %d", todo.index(sequence.name) + 1, len(todo))
            write_points(open_video(sequence.folder), sequence.given, folder / f"{sequence.name}.csv", prepare,
                         movie=not args.no_overlay, palette=args.palette, batch_size=batch_size(settings, device))
    logger.info("%d of %d sequences were left to do; points are in %s", len(todo), len(sequences), folder)


def refinement(args: argparse.Namespace) -> Refinement:
    """What is taken out of masks, by the options."""
    return Refinement(clean=args.clean, drop_lost=args.drop_lost)


def products(args: argparse.Namespace) -> list[str]:
    """What is written beside the masks, by the options."""
    wanted = set(args.write or (("video", "sheet", "confidence") if args.video else ("overlays",)))
    if args.confidence_maps:
        wanted.add("maps")
    if args.no_overlay:
        wanted -= {"overlays", "video", "sheet"}
    return sorted(wanted)


def batch_size(settings: Settings, device: torch.device) -> int:
    """Frames encoded at once."""
    return encoder_batch(device, settings.TEST.INFER_WH, settings.TEST.INPUT_SIZE)


def size_in_words(settings: Settings) -> str:
    """The size of frames inside."""
    (width, height), short = settings.TEST.INFER_WH, settings.TEST.INPUT_SIZE
    return f"{width}x{height}" if width else f"a short side of {short}" if short else "their own size"


def describe(args: argparse.Namespace, settings: Settings, device: torch.device) -> dict[str, Any]:
    """What runs, for `run.json`; `method` is what the masks depend on."""
    method = describe_method(settings.TEST, args.resume, precision=args.precision, search=args.propagation,
                             files=args.feature_files)
    method |= {"adapt": args.adapt} if args.adapt else {}
    method |= {name: True for name, used in refinement(args)._asdict().items() if used}
    method |= {"seed": args.seed} if args.adapt or RANDOM in args.feature_files.values() else {}
    source = {"video": args.video, "masks": args.mask, "backward": args.backward} if args.video else source_record(args)
    return {"exp": args.exp, "run": args.run, **source, "preset": args.preset,
            "model": args.resume and str(args.resume), "seed": args.seed, "device": str(device), "version": VERSION,
            "torch": torch.__version__, "method": method}


if __name__ == "__main__":
    run_script(main)
