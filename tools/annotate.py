"""Draw, carry and correct the masks of a video in the browser; nothing leaves this machine.

    python tools/annotate.py clip.mp4
    python tools/annotate.py folder_of_frames --resume MODEL --output FOLDER --port 8123

Everything is kept in the output folder (output/<name of the video>) as it comes, as infer_vos_dul.py --video writes it;
starting again goes on. Ctrl-C ends the server. Needs requirements-annotate.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import shlex
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from annotation.session import Session
from annotation.work import Work
from datasets.own_video import open_video
from datasets.video import OwnVideo
from inference.own_video import describe_source, own_video_defaults
from inference.pipeline import Job
from inference.results import ResultFolder, SequenceFiles, describe_method
from models import load_model
from models.features import load_features, needs_model, weight_files
from models.propagation import VideoPropagator, build_propagator, encoder_batch
from utils.config import DEFAULT_SETTINGS, PRESETS, SHIPPED_MODEL, Settings, load_settings
from utils.console import start_console
from utils.device import resolve_device
from utils.errors import UserError, require_packages, run_script
from utils.files import claimed
from utils.run_record import RECORD
from utils.signals import StopRequest

LOOPBACK = ("127.0.0.1", "localhost", "::1")

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("video", metavar="VIDEO", help="a video file, or a folder of pictures")
    add("--output", type=Path, metavar="FOLDER", help="default output/<name of the video>")
    add("--resume", default=SHIPPED_MODEL, metavar="MODEL", help="model file (default: the bundled one)")
    add("--cfg", default=DEFAULT_SETTINGS, help="YAML settings (default configs/ytvos.yaml)")
    add("--preset", choices=PRESETS, help="a protocol (configs/presets); other options win over it")
    add("--features", metavar="SPEC", help="TEST.KEY: merge, or a sum with other networks' such as "
        "merge+efficientnet-lite0 (docs/experiments/features.md)")
    add("--feature-weights", nargs="+", default=[], metavar="[NAME=]FILE",
        help="weights of a network in --features; random for none")
    add("--set", nargs="+", action="extend", default=[], metavar=("K", "V"), help="override YAML keys")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    add("--fps", type=float, metavar="RATE", help="of a folder of pictures (default 24)")
    add("--port", type=int, default=0, help="default: one that is free")
    add("--host", default=LOOPBACK[0], help="address to listen at (default %(default)s: this machine alone)")
    add("--no-browser", action="store_true", help="only print the address")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Open the video, hold the output folder, serve the page until Ctrl-C."""
    args = parse_arguments(argv)
    start_console()
    require_packages("the page", "aiohttp", requirements="requirements-annotate.txt")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port is a number from 0 (any that is free) to 65535; it is {args.port}")
    if not Path(args.resume).is_file():
        raise UserError(f"--resume is a model file; {args.resume} does not exist")
    settings = load_settings(args.cfg, args.set, preset=args.preset, instead=own_video_defaults(args.preset),
                             flags={"TEST.KEY": ("--features", args.features)})
    args.feature_files = weight_files(settings.TEST.KEY, args.feature_weights)
    device = resolve_device(args.device)
    video = open_video(args.video, args.fps)
    output = args.output or Path("output") / video.name
    files = ResultFolder(output, settings.TEST.KEY).sequence(
        video.name, video.names, ["confidence"], describe_source(Job(video, {})), alone=True)
    with claimed(files.masks.parent, also=[files.rest]):
        method = describe_method(settings.TEST, args.resume if needs_model(settings.TEST.KEY) else None,
                                 files=args.feature_files)
        refuse_others_results(files, video, method)
        files.begin(method)
        session = Session(video, output, files.masks)
        work = Work(session, files, functools.partial(propagators, args, settings, device),
                    functools.partial(command, args, output),
                    batch_size=encoder_batch(device, settings.TEST.INFER_WH, settings.TEST.INPUT_SIZE))
        StopRequest()  # SIGTERM as Ctrl-C, also where the shell that started this in the background ignores the latter
        with contextlib.closing(work), contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(args, session, work))
    logger.info("everything is in %s", output)


def propagators(args: argparse.Namespace, settings: Settings, device: torch.device) -> Callable[[], VideoPropagator]:
    """Load the model; returns what makes new propagators."""
    model = load_model(args.resume, device) if needs_model(settings.TEST.KEY) else None
    features = load_features(settings.TEST.KEY, model, args.feature_files, device=device)
    build_propagator(features, settings.TEST)  # refuses a feature that the model does not have
    return functools.partial(build_propagator, features, settings.TEST)


def refuse_others_results(files: SequenceFiles, video: OwnVideo, method: dict[str, object]) -> None:
    """`UserError` where the output folder holds masks that this program and this model did not make of this video."""
    before, present = files.recorded(), files.present(video.names)
    if present and before is None:
        raise UserError(f"{present[0]} is there and no {RECORD} beside it says that this program made it; "
                        "give another --output")
    if before is not None and (before["method"] != method or before["source"].get("video") != files.source["video"]):
        raise UserError(f"results of one folder come from one video, model and settings, and {files.masks / RECORD} "
                        "names others; give another --output")


def command(args: argparse.Namespace, output: Path, masks: dict[int, Path], both: bool) -> str:
    """The command that makes the same masks and the overlay video; nothing where nothing is drawn."""
    if not masks:
        return ""
    words = ["python", "infer_vos_dul.py", "--video", args.video, "--mask",
             *(f"{number}={path}" for number, path in masks.items()), *(["--backward"] if both else []),
             "--mask-output-dir", str(output), "--continue"]
    for name, value in (("--resume", args.resume), ("--cfg", args.cfg), ("--preset", args.preset), ("--fps", args.fps),
                        ("--features", args.features)):
        if value is not None and value not in (SHIPPED_MODEL, DEFAULT_SETTINGS):
            words += [name, str(value)]
    for name, several in (("--feature-weights", args.feature_weights), ("--set", args.set)):
        words += [name, *several] if several else []
    return shlex.join(words)


async def serve(args: argparse.Namespace, session: Session, work: Work) -> None:
    """Serve the page until the task is cancelled."""
    from aiohttp import web

    from annotation.server import Server

    hosts: set[str] = set()
    server = Server(session, work, hosts)
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, args.host, args.port).start()
        except OSError as error:
            raise UserError(f"the page cannot be served at {args.host}:{args.port} ({error.strerror}); give another "
                            "--port or --host") from error
        port = runner.addresses[0][1]
        shown = f"[{args.host}]" if ":" in args.host else args.host
        hosts |= {f"{shown}:{port}"} | ({f"{name}:{port}" for name in LOOPBACK[:2]} if args.host in LOOPBACK else set())
        if args.host not in LOOPBACK:
            logger.warning("--host %s: everybody who reaches this machine and has the address below sees the video and "
                           "can change its masks, and nothing on the way is encrypted", args.host)
        address = f"http://{shown}:{port}/?token={server.token}"
        print(f"open {address}", flush=True)
        if not args.no_browser:
            webbrowser.open(address)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    run_script(main)
