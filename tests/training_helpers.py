"""A training run small enough for tests: synthetic clips of 64x64 pixels, T = 2, size S with narrow settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from datasets.synthetic import make_clip, write_davis, write_video
from utils.config import REPOSITORY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
SCRIPT = REPOSITORY / "trainColorNetDUL_benchmark.py"
CONFIG = {"base": str(REPOSITORY / "data/configs/train_config_default_S.json"), "exp": "tiny", "video_len": 2}
SETTINGS = {"DATASET.CROP_SIZE": [64, 64], "DATASET.SMALLEST_RANGE": [64, 72], "TRAIN.BATCH_SIZE": 2,
            "TRAIN.NUM_EPOCHS": 2, "TRAIN.NUM_WORKERS": 0, "LOG.ITER_TRAIN": 1, "TB.ITER_IMAGES": 0, "MODEL.LR": 1e-3}


def make_data(root: Path, videos: int = 6) -> Path:
    """Unlabelled clips of three frames, and a labelled one with its list."""
    rng = np.random.default_rng(0)
    for number in range(videos):
        write_video(root / f"JPEGImages/clip_{number}", make_clip(rng, frames=3, size=(80, 64), objects=1).frames)
    write_davis(root / "davis2017", {"made": make_clip(rng, frames=5, size=(80, 64), objects=2)})
    name = "davis2017/{}/480p/made/{:05d}.{}"
    (root / "filelists").mkdir()
    (root / "filelists/val.txt").write_text("".join(
        f"1 {name.format('JPEGImages', t, 'jpg')} {name.format('Annotations', t, 'png')}\n" for t in range(5)))
    return root


def arguments(folder: Path, *options: object, config: dict | None = None, data: Path | None = None,
              **settings: object) -> list[str]:
    """The command line of a run whose files lie in `folder`; settings are named SECTION__KEY."""
    path = folder / "config.json"
    if config or not path.exists():
        path.write_text(json.dumps(CONFIG | (config or {})))
    named = {name.replace("__", "."): value for name, value in settings.items()}
    pairs = {**SETTINGS, "DATASET.ROOT": data or folder / "data", **named}
    words = ["--train_config", path, "--snapshot-dir", folder / "snapshots", "--logdir", folder / "logs",
             "--device", "cpu", *options,
             "--set", *(word for pair in pairs.items() for word in pair)]
    return [str(word) for word in words]


def records(folder: Path, exp: str = "tiny", key: str = "loss/total") -> list[dict]:
    """The log records that hold `key`."""
    path = folder / "logs" / exp / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if key in record]


def checkpoint(folder: Path, name: str = "final.pth", exp: str = "tiny") -> dict:
    return torch.load(folder / "snapshots" / exp / name, weights_only=True)


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]

