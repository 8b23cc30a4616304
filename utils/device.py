"""Which device and which precision a run uses."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # what --precision names
OLDEST_GPU = (7, 5)  # compute capability that PyTorch's and Triton's kernels still serve

logger = logging.getLogger(__name__)


def resolve_device(name: str = "auto") -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:n` into a device and make it the current one of this thread.

    `auto` is the GPU where there is one. Under torchrun every process takes a GPU of its own. `UserError` for another
    name, and for a GPU that is not there, too old, or asked for by several processes.
    """
    available, reason = _cuda_state()
    if name == "auto":
        if not available and _nvidia_card():
            logger.warning("this machine has an NVIDIA card, but the CPU is used: %s", reason)
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is auto, cpu, cuda or cuda:n; it is {name}")
    if device.type == "cpu":
        return device
    count, processes = torch.cuda.device_count() if available else 0, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if (device.index or 0) >= count:
        raise UserError(f"--device {name} is not there: this machine has {count} CUDA devices"
                        f"{f' ({reason})' if reason else ''}; use --device auto")
    if processes > count or (processes > 1 and device.index is not None):
        raise UserError(f"under torchrun every process takes a GPU of its own; here are {processes} processes, {count} "
                        f"GPUs and --device {name}; lower --nproc_per_node, or use --device cuda or cpu")
    own = int(os.environ.get("LOCAL_RANK", 0)) if processes > 1 else 0
    device = torch.device("cuda", device.index or own)
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        raise UserError(f"a GPU must have compute capability {'.'.join(map(str, OLDEST_GPU))} or later; "
                        f"{torch.cuda.get_device_name(device)} ({device}) has {'.'.join(map(str, capability))}; "
                        "use another one or --device cpu")
    torch.cuda.set_device(device)  # libraries start their kernels on the current device, wherever the tensors are
    return device


@functools.cache
def kernels_start() -> bool:
    """Whether Triton is there and starts kernels, for which it builds a module of its own; where not, warn once."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # of an import, a compiler, the linker, the driver
        logger.warning("the neighbour search runs without Triton, several times slower: it needs the package triton, a "
                       "C compiler and Python's header files (python3-dev); %s: %s", type(error).__name__, error)
        return False
    return True


def channels_last(model: nn.Module) -> None:
    """Lay the weights of `model` out with the channels last, for which convolutions are fastest."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stubs lack this argument


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process can still take, those that PyTorch keeps for it included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def numbers_on(device: torch.device, numbers: Sequence[int] | Tensor) -> Tensor:
    """Whole numbers as a tensor on `device`; a GPU is not waited for."""
    tensor = torch.as_tensor(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _cuda_state() -> tuple[bool, str]:
    """Whether PyTorch can use CUDA, and if not, why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is given below, and only where it is of interest
        if torch.cuda.is_available():
            return True, ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return False, " ".join(str(error).split())
    return False, "no device answers"


def _nvidia_card() -> bool:
    """Whether the system shows an NVIDIA card to this process, which may hide it by CUDA_VISIBLE_DEVICES."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))
