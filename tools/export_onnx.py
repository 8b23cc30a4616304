"""Write a model's encoder as ONNX: frames to the features that carry labels, for programs without PyTorch.

    pip install -r requirements-onnx.txt
    python tools/export_onnx.py snapshots/my_run/final.pth --out encoder.onnx

The input `frames` is float32 RGB in [0,1], [N,3,H,W] with H and W multiples of 8, any of them; the output `features` is
float32 [N,C,H/8,W/8] of unit length over C.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from models import load_model
from models.colornet import Branches
from utils.errors import require_packages, run_script
from utils.feature_spec import FEATURE_KEYS
from utils.files import refuse_existing, replacing

EXAMPLE = (2, 3, 64, 96)  # frames that are traced; no side equals another


class Encoder(Branches):
    """What is exported: `encode` as the forward pass."""

    forward = Branches.encode


def main(argv: Sequence[str] | None = None) -> None:
    """Load, trace, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model file, released or from training")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--features", choices=FEATURE_KEYS, help="default: merge, or color of a model without a global "
                        "head")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    args = parser.parse_args(argv)
    refuse_existing(args.out, args.overwrite)
    require_packages("writing ONNX", "onnx", "onnxscript", requirements="requirements-onnx.txt")
    model = load_model(args.model)
    key = args.features or ("merge" if model.has_global else "color")
    write_onnx(Encoder(model, key), args.out)
    print(f"{args.out}: features {key}, {args.out.stat().st_size / 1e6:.1f} MB")


def write_onnx(encoder: Encoder, path: Path) -> None:
    """Write an encoder whose batch, height and width are free."""
    sides = {0: torch.export.Dim("N"), 2: 8 * torch.export.Dim("h"), 3: 8 * torch.export.Dim("w")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter about PyTorch
        program: Any = torch.onnx.export(encoder.eval(), (torch.rand(EXAMPLE),), dynamo=True, verbose=False,
                                         input_names=["frames"], output_names=["features"],
                                         dynamic_shapes={"frames": sides})
    shape = program.model.graph.outputs[0].shape
    shape[2], shape[3] = "h", "w"
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)


if __name__ == "__main__":
    run_script(main)
