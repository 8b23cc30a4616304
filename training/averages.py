"""The running average of a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningAverage:
    """Exponential moving average of a model's parameters and statistics, which are the first average.

    It keeps `decay`, in [0,1), of itself in a step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()
                      if tensor.is_floating_point()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model by 1 - decay."""
        present = model.state_dict()
        torch._foreach_lerp_(list(self.state.values()), [present[name] for name in self.state], 1 - self.decay)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up the average of a checkpoint; ValueError where it is of another network or not finite."""
        for name, tensor in self.state.items():
            if state[name].shape != tensor.shape or not state[name].isfinite().all():
                raise ValueError(f"the running average of {name} is of another network or not finite")
            tensor.copy_(state[name])
