"""Small things that several tests make."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.colornet import ColorNet
from utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def _golden_tensor(name: str, shape: torch.Size) -> torch.Tensor:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if len(shape) == 4:
        value = noise * np.sqrt(2.0 / (shape[0] * shape[2] * shape[3]))
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif name.endswith("running_mean"):
        value = 0.1 * noise
    elif name.endswith("weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.05 * noise
    return torch.from_numpy(value.astype(np.float32))


def golden_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fill a state dict in place with the golden vectors' weights, each drawn from the CRC-32 of its name."""
    for name, tensor in state.items():
        tensor.copy_(_golden_tensor(name, tensor.shape) if tensor.is_floating_point() else torch.tensor(0))
    return state


def golden_model(size: str = "S", has_global: bool = True, stem_kernel: int = 3, feature_dim: int = 128) -> ColorNet:
    """A network with the golden weights, in eval mode; none are drawn that these would take the place of."""
    with torch.device("meta"):
        model = ColorNet(size=size, has_global=has_global, stem_kernel=stem_kernel, feature_dim=feature_dim)
    golden_weights(model.to_empty(device="cpu").state_dict())
    return model.eval()


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


class Waits(TorchDispatchMode):
    """Notes the operations for which the host waits for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options, name = options or {}, operation.overloadpacket.__name__
        result = operation(*arguments, **options)
        if name in ("_to_copy", "copy_"):
            ends = {x.device.type for x in (result, *arguments) if isinstance(x, torch.Tensor)}
            waits = len(ends) == 2 and not options.get("non_blocking", name == "copy_" and arguments[2:] == (True,))
        else:
            waits = name in ("_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave")
        if waits:
            self.found.append(name)
        return result
