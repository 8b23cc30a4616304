"""Several processes that compute one global batch (started by torchrun); with a single one, everything is a no-op.

Each process holds its slice of the batch and the same global loss. Gathers and batch statistics carry gradients, so
the gradients of all processes, averaged, are those of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device) -> None:
    """Join the process group where torchrun started us; `device` is this process's."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the process group."""
    if world_size() > 1:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 for the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def gather(local: Tensor) -> Tensor:
    """[n,...] of each process to [world*n,...] in rank order, with gradients back to every process."""
    return _Gather.apply(local.contiguous()) if world_size() > 1 else local


class _Gather(torch.autograd.Function):
    """All processes' parts in one tensor; the gradient of a part is the sum of what all processes ask of it."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def gather_objects(local: object) -> list:
    """One picklable object of each process, in rank order."""
    if world_size() == 1:
        return [local]
    everything = [None] * world_size()
    dist.all_gather_object(everything, local)
    return everything


def gather_numbers(local: list[float], device: torch.device) -> list[list[float]]:
    """A few numbers of each process, in rank order; waits for the device."""
    return gather(torch.tensor([local], dtype=torch.float64, device=device)).tolist() if world_size() > 1 else [local]


def broadcast_object(local: object) -> Any:
    """The first process's picklable object; the others' is ignored."""
    if world_size() == 1:
        return local
    carrier = [local]
    dist.broadcast_object_list(carrier)
    return carrier[0]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one collective."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes; for CPUs, which torch's own refuses."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] to [N,C,H,W]; every process holds the same N, H and W."""
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        local = torch.stack([values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=False)])  # [2,C]
        means, variances = gather(local[None]).unbind(1)  # [world,C] each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        with torch.no_grad():
            count = values.numel() // values.shape[1] * world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (values * scale.view(-1, 1, 1) + (self.bias - mean * scale).view(-1, 1, 1)).to(x.dtype)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Make every BatchNorm2d within `model` use the statistics of the global batch."""
    if world_size() == 1:
        return
    if dist.get_backend() == "nccl":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
