"""The whole method in minutes on a CPU, on data that it makes itself: train, predict, evaluate, look.

    python tools/demo.py [--output demo_output] [--seed 0]

Makes clips in the layouts of YouTube-VOS, COCO and DAVIS, trains the smallest model on the clips with the real
training command, carries the first masks through the validation videos with each feature, and prints J&F beside that
of the same network before training and of the bundled model. The output folder is replaced when it is one that
this demo made.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

import cv2
import numpy as np

from datasets.synthetic import JPEG_QUALITY, Clip, make_clip, write_davis, write_video
from models import build_model
from utils.checkpoint import save_checkpoint
from utils.config import REPOSITORY, SHIPPED_MODEL, load_settings, load_train_config, resolved
from utils.errors import UserError, run_script
from utils.feature_spec import FEATURE_KEYS
from utils.masks import read_mask
from utils.overlay import contact_sheet, overlay, write_jpeg
from utils.seed import seed_everything

SIZE = (256, 192)  # (width, height) of the synthetic frames [pixels]
TRAINING_CLIPS, TRAINING_FRAMES = 48, 12
VALIDATION_CLIPS, VALIDATION_FRAMES = 4, 20
STILLS = 8
MARK = "made_by_the_demo"  # a file in the output folder: what carries it may be replaced
TRAIN_CONFIG = REPOSITORY / "data/configs/train_config_first_try.json"
SETTINGS = REPOSITORY / "configs/first_try.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Make data, train, predict and evaluate before and after, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    start, folder = time.time(), fresh_folder(args.output)
    data, davis = folder / "data", folder / "data/davis2017"
    settings = ["--cfg", SETTINGS, "--set", "DATASET.ROOT", data]  # more words of --set may follow
    clips = make_data(data, args.seed)
    untrained = save_untrained(folder / "untrained.pth", args.seed)
    run("trainColorNetDUL_benchmark.py", "--exp", "demo", "--train_config", TRAIN_CONFIG, "--seed", args.seed,
        "--snapshot-dir", folder / "snapshots", "--logdir", folder / "logs", *settings)
    models = {"untrained": untrained, "trained": folder / "snapshots/demo/final.pth", "bundled": SHIPPED_MODEL}
    results = {(name, key): folder / "masks" / name / f"{key}_vos" for name in models for key in FEATURE_KEYS}
    for (name, key), masks in results.items():
        run("infer_vos_dul.py", "--infer-list", "filelists/val_demo", "--mask-output-dir", masks.parent, "--seed", 0,
            "--resume", models[name], *settings, "TEST.KEY", key)
    # --gt_path counts the object that appears late, too.
    run("evaluation_method.py", "--task", "semi-supervised", "--gt_path", davis / "Annotations/480p",
        "--images_path", davis / "JPEGImages/480p", "--results_path", *results.values(), "--report",
        folder / "report.html")
    scores = {of: 100 * json.loads((masks / "results-val.json").read_text())["global"]["J&F-Mean"]
              for of, masks in results.items()}
    best = max(FEATURE_KEYS, key=lambda key: scores["trained", key])
    sheet = write_sheet(folder, clips, best)
    return report(folder, scores, sheet, time.time() - start)


def fresh_folder(path: Path) -> Path:
    """An empty folder; one that the demo made before is replaced, any other is refused."""
    if path.exists():
        if not (path / MARK).exists():
            raise UserError(f"the demo replaces only a folder that it made; {path} is another: give --output")
        shutil.rmtree(path)
    path.mkdir(parents=True)
    (path / MARK).touch()
    return path.resolve()


def make_data(root: Path, seed: int) -> dict[str, Clip]:
    """Write training clips, stills and labelled validation videos; returns the latter."""
    rng = np.random.default_rng(seed)
    for number in range(TRAINING_CLIPS):
        write_video(root / f"JPEGImages/clip_{number:02d}",
                    make_clip(rng, frames=TRAINING_FRAMES, size=SIZE, objects=3).frames)
    for number in range(STILLS):
        write_jpeg(root / f"COCO/train2017/{number:03d}.jpg", make_clip(rng, frames=1, size=SIZE, objects=4).frames[0],
                   JPEG_QUALITY, sync=False)
    clips = {f"made_{number}": make_clip(rng, frames=VALIDATION_FRAMES, size=SIZE, objects=3, late=number == 0)
             for number in range(VALIDATION_CLIPS)}
    write_davis(root / "davis2017", clips)
    lines = [f"1 davis2017/JPEGImages/480p/{name}/{t:05d}.jpg davis2017/Annotations/480p/{name}/{t:05d}.png\n"
             for name in clips for t in range(VALIDATION_FRAMES)]
    (root / "filelists").mkdir()
    (root / "filelists/val_demo.txt").write_text("".join(lines))
    return clips


def save_untrained(path: Path, seed: int) -> Path:
    """The network that training begins with, as a model file."""
    config = load_train_config(TRAIN_CONFIG)
    seed_everything(seed)
    model = build_model(config, load_settings())
    save_checkpoint(path, {"model": model.state_dict(), "train_config": resolved(config)})
    return path


@functools.cache  # what the demo itself does must not count
def threads() -> str:
    """OMP_NUM_THREADS, or as many as there are idle cores: two on a core and a busy one are many times slower than one.
    """
    idle = (os.cpu_count() or 1) - round(os.getloadavg()[0])
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, idle))


def run(*words: object) -> None:
    """Run one of the repository's commands, its messages passed on; its failure is ours."""
    command = [str(word) for word in words]
    print("\n$ python " + " ".join(command), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": threads()}
    status = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment).returncode
    if status:
        raise UserError(f"the demo needs every command to end well; {command[0]} ended with status {status}")


def write_sheet(folder: Path, clips: dict[str, Clip], key: str) -> Path:
    """One picture: for each video the truth, the untrained and the trained prediction at five times."""
    times, pictures = np.linspace(0, VALIDATION_FRAMES - 1, 5).astype(int), []
    for name, clip in clips.items():
        results = {"truth": clip.masks} | {
            label: [read_mask(folder / "masks" / label / f"{key}_vos" / name / f"{t:05d}.png")
                    for t in range(VALIDATION_FRAMES)] for label in ("untrained", "trained")}
        pictures += [(f"{name}, frame {t}: {label}", overlay(clip.frames[t], masks[t]))
                     for label, masks in results.items() for t in times]
    path = folder / "contact_sheet.png"
    sheet = contact_sheet(pictures, columns=len(times), width=SIZE[0])
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return path


def report(folder: Path, scores: dict[tuple[str, str], float], sheet: Path, seconds: float) -> int:
    """Print the table and say whether training helped; status 1 where it did not."""
    print(f"\nJ&F on {VALIDATION_CLIPS} synthetic videos (%)\n{'':12}" + "".join(f"{key:>9}" for key in FEATURE_KEYS))
    row = lambda name: print(f"{name:12}" + "".join(f"{scores[name, key]:9.1f}" for key in FEATURE_KEYS))
    row("untrained"), row("trained")
    gains = [scores["trained", key] - scores["untrained", key] for key in FEATURE_KEYS]
    print(f"{'gain':12}" + "".join(f"{gain:+9.1f}" for gain in gains))
    row("bundled")
    helped = gains[FEATURE_KEYS.index("merge")] > 0
    print("\nTraining helped the merged feature." if helped else
          "\nTraining did NOT help the merged feature: something is wrong, or the seed is unlucky.")
    print(f"Overlays: {folder}/masks/*/*_vis   contact sheet: {sheet}\n"
          f"Report: {folder}/report.html   curves: {sys.executable} -m tensorboard.main --logdir {folder}/logs\n"
          f"Training from the made stills: the training command above with --exp demo_stills --coco\n"
          f"{seconds:.0f} s in all; OMP_NUM_THREADS {threads()} (another number rounds sums in another order, and the "
          "trained network scores a few points more or less)")
    return 0 if helped else 1


if __name__ == "__main__":
    run_script(main)
