"""Model files: `{"model": state dict, "train_config": {16 keys}}` as released, ours also saying what made them.

    python -m utils.checkpoint MODEL

prints what a file says of itself: configuration, data and counts, seed, epoch, versions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError, run_script
from utils.files import replacing


def save_checkpoint(path: str | Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint that is whole or not there."""
    with replacing(path) as temporary:
        try:
            torch.save(contents, temporary)
        except RuntimeError as error:  # torch's archive writer reports a full disk as RuntimeError
            raise OSError(str(error).splitlines()[0]) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code that it may carry.

    Raises:
        UserError: the file is missing, cut short, holds anything but tensors and plain values, or lacks `model`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"model {path} does not exist; check --resume")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file makes the unpickler raise
        raise UserError(f"model {path} is not a readable checkpoint of tensors and plain values "
                        f"({type(error).__name__}); it may be cut short or of another kind: fetch it again") from error
    state = contents.get("model") if isinstance(contents, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"a model file is a dict with 'model' (names to tensors) and 'train_config'; {path} is not; "
                        "use a file that the training command wrote or a released one")
    return contents


def average_models(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts in double precision; integer counters are left out (DESIGN section 7)."""
    return {name: (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
            for name, tensor in states[0].items() if tensor.is_floating_point()}


def _summary(contents: dict[str, Any]) -> dict[str, Any]:
    tensors = contents["model"].values()
    return {"tensors": len(tensors), "parameters and statistics": sum(t.numel() for t in tensors),
            **{key: value for key, value in contents.items() if key not in ("model", "training")}}


def _main() -> None:
    if len(sys.argv) != 2:
        raise UserError("usage: python -m utils.checkpoint MODEL")
    print(json.dumps(_summary(read_checkpoint(sys.argv[1])), indent=2, default=str))


if __name__ == "__main__":
    run_script(_main)
