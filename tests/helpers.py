"""Small things that several tests make."""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden"


def golden_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fill a state dict in place with the golden vectors' weights: each tensor drawn from the CRC-32 of its name."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        if tensor.ndim == 4:
            value = noise * np.sqrt(2.0 / (tensor.shape[0] * tensor.shape[2] * tensor.shape[3]))
        elif name.endswith("running_var"):
            value = 1 + 0.1 * np.abs(noise)
        elif name.endswith("running_mean"):
            value = 0.1 * noise
        elif name.endswith("weight"):
            value = 1 + 0.1 * noise
        else:
            value = 0.05 * noise
        tensor.copy_(torch.from_numpy(value.astype(np.float32)))
    return state


def golden_json(name: str):
    return json.loads((GOLDEN / name).read_text())


def released_state(kind: str) -> dict[str, torch.Tensor]:
    """The state dict of a released file, e.g. `S_color_dul`: no batch counters, golden weights."""
    shapes = golden_json("state_dict_keys.json")[kind]
    return golden_weights({k: torch.zeros(s) for k, s in shapes.items() if not k.endswith("num_batches_tracked")})


def called(main: Callable, *arguments) -> SimpleNamespace:
    """Call a command's `main` with words in this process: its `returncode`, `stdout` and `stderr`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments]) or 0
        except UserError as error:
            code = 1
            err.write(f"error: {error}\n")
        except SystemExit as end:
            code = end.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
