"""Model files: `{"model": state dict, "train_config": {16 keys}}` as released, ours also saying what made them.

    python -m utils.checkpoint MODEL

prints what a file says of itself: configuration, data and counts, seed, epoch, versions.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor

from utils.errors import UserError, run_script
from utils.files import replacing
from utils.values import check_plain

logger = logging.getLogger(__name__)

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32)  # weights, counters
# Scores beside the weights of other software are often numbers of NumPy, which keep no code.
NUMPY_NUMBERS: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype,
                            *(type(np.dtype(kind)) for kind in ("f4", "f8", "i8"))]


def save_checkpoint(path: str | Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint that is whole or not there."""
    with replacing(path) as temporary:
        try:
            torch.save(contents, temporary)
        except RuntimeError as error:  # torch's archive writer reports a full disk as RuntimeError
            raise OSError(str(error).splitlines()[0]) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code that it may carry, and without taking damage for weights.

    What is under `model` are names and finite numbers that lie in the file; all else are tensors and plain values.

    Raises:
        UserError: the file is missing, cut short, has a wrong checksum, holds anything else, or lacks `model`.
    """
    contents = _read(Path(path))
    state = contents.get("model") if isinstance(contents, dict) else None
    _check_weights(state, path, f"a model file is a dict with 'model' (names to tensors) and 'train_config'; {path} is "
                                "not; use a file that the training command wrote or a released one")
    return contents


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file of another software, names to tensors; read as safely as `read_checkpoint` does.

    They are the file itself, or what it has under `model`, `state_dict`, `teacher` or `net`; a `.safetensors` file,
    too. `UserError` for anything else.
    """
    contents = _read(Path(path))
    for section in ("state_dict", "model", "teacher", "net"):
        if isinstance(contents, dict) and isinstance(contents.get(section), dict):
            contents = contents[section]
    _check_weights(contents, path, "a file of weights holds names and tensors, at its top or under model, state_dict "
                                   f"or teacher; {path} does not; give the file as it was released")
    return dict(contents)


def refuse_misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: str | Path, *,
                   network: str = "this network",
                   fix: str = "give the file of this network, or name the network of this file") -> None:
    """`UserError` where a file's tensors, `state`, are not those `wanted` by a network; counters may be left out.

    It lists them; `network` says which one it is, and `fix` what to do.
    """
    both = [name for name in wanted if name in state]
    found = {
        "lacks": [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")],
        "has unknown": [name for name in state if name not in wanted],
        "has other shapes for": [name for name in both if state[name].shape != wanted[name].shape],
        "has numbers of another kind for": [name for name in both if state[name].is_floating_point()
                                            != wanted[name].is_floating_point()],
        "has negative variances in": [name for name in both if name.endswith("running_var")
                                      and (state[name] < 0).any()]}
    listed = "; ".join(f"{what} {', '.join(sorted(names)[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})"
                       for what, names in found.items() if names)
    if listed:
        raise UserError(f"{file} does not hold {network}: it {listed}; {fix}")


def _read(path: Path) -> Any:
    """The contents of a file of tensors and plain values; `UserError` for anything else."""
    if not path.is_file():
        raise UserError(f"model {path} does not exist; check its path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
            warnings.simplefilter("ignore")  # they are about odd kinds of tensors, which are refused below
            contents = torch.load(path, map_location="cpu", weights_only=True)
        check_plain(contents)
        return contents
    except Exception as error:  # whatever a broken or hostile file makes the unpickler raise
        reason = f": {error}" if type(error) is ValueError else ""
        raise UserError(f"model {path} is not a readable checkpoint of tensors and plain values "
                        f"({type(error).__name__}{reason}); it may be damaged, cut short or of another kind: fetch it "
                        "again") from error


def _check_weights(state: Any, path: str | Path, rule: str) -> None:
    """`UserError`: `rule` where it is no dict of tensors; names that are no text, and tensors of no finite numbers."""
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(rule)
    for name, tensor in state.items():
        mistake = "has a name that is no text" if not isinstance(name, str) else _mistake(tensor)
        if mistake:
            raise UserError(f"the weights of a model are finite numbers that lie in its file; in {path} {name!s:.80} "
                            f"{mistake}; use another file")


def _check_archive(path: Path) -> None:
    """ValueError for an archive whose checksums are wrong, which torch does not look at, or that unpacks to more."""
    if not zipfile.is_zipfile(path):
        logger.warning("%s is in PyTorch's format of before 1.6, which has no checksums: damage to its numbers is not "
                       "noticed; load and save it once with a newer PyTorch where it can be trusted", path)
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its archive is compressed, which torch.save does not do")
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def _mistake(tensor: Tensor) -> str | None:
    """What keeps a tensor from being weights or a counter, or None."""
    if (tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu"
            or tensor.dtype not in NUMBERS):
        kind = "nested" if tensor.is_nested else "quantised" if tensor.is_quantized else \
            "without data" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        return f"is {kind} {str(tensor.dtype).removeprefix('torch.')}, not a plain tensor of numbers"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"says it has {tensor.numel()} numbers and repeats fewer"
    if not torch.isfinite(tensor.float()).all():
        return "has numbers that are infinite or none (NaN)"
    return None


def average_models(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts in double precision; integer counters are left out (DESIGN section 7)."""
    zero = torch.zeros((), dtype=torch.double)
    return {name: (sum((state[name].double() for state in states), zero) / len(states)).to(tensor.dtype)
            for name, tensor in states[0].items() if tensor.is_floating_point()}


def _main() -> None:
    if len(sys.argv) != 2:
        raise UserError("usage: python -m utils.checkpoint MODEL")
    contents = read_checkpoint(sys.argv[1])
    tensors = contents["model"].values()
    summary = {"tensors": len(tensors), "parameters and statistics": sum(t.numel() for t in tensors),
               **{key: value for key, value in contents.items() if key not in ("model", "training")}}
    print(json.dumps(summary, indent=2, default=str))


if __name__ == "__main__":
    run_script(_main)
