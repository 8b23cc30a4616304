"""The network and what carries labels with its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.colornet import ColorNet
from utils.checkpoint import read_checkpoint, refuse_misfits
from utils.config import Settings, TrainConfig, parse_train_config
from utils.errors import UserError


def build_model(train_config: TrainConfig, settings: Settings) -> ColorNet:
    """A freshly initialised network of the configured size, stem and heads."""
    return ColorNet(size=train_config.model_size, has_global=train_config.is_dul,
                    stem_kernel=train_config.first_kernal_size, feature_dim=settings.MODEL.FEATURE_DIM)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> ColorNet:
    """Load a released or own checkpoint for inference: eval mode, on `device`.

    A file without `num_batches_tracked` (averages) and a local-only one with its unused `query_cls` load as well.

    Raises:
        UserError: the file is missing, unreadable, or does not hold the network that its `train_config` names.
    """
    contents = read_checkpoint(path)
    return _model_from_state(contents["model"], _train_config(contents, path), path).to(device).eval()


def load_weights(model: ColorNet, path: str | Path) -> None:
    """Give `model` the weights of a file; `UserError` as for `load_model`, and where it holds another network."""
    source = load_model(path)
    if source.shape != model.shape:
        raise UserError(f"the weights to begin with (--init) must be of the same network; {path} is {source.shape}, "
                        f"the run trains {model.shape}; give another file or change model_size, is_dul, "
                        "first_kernal_size or MODEL.FEATURE_DIM")
    model.load_state_dict(source.state_dict())


def model_train_config(path: str | Path) -> TrainConfig:
    """How the model in a checkpoint was trained; `UserError` as for `load_model`."""
    return _train_config(read_checkpoint(path), path)


def _train_config(contents: dict[str, Any], path: str | Path) -> TrainConfig:
    config = contents.get("train_config")
    if not isinstance(config, dict):
        raise UserError(f"a model file says how it was trained under 'train_config'; {path} does not; "
                        "add the 16 keys of its training config")
    return parse_train_config(config, f"{path}, train_config")


def _model_from_state(state: dict[str, torch.Tensor], config: TrainConfig, path: str | Path) -> ColorNet:
    head = state.get("query_color.3.weight")
    with torch.device("meta"):  # shapes only: what a damaged file asks for is not allocated before it is compared
        model = ColorNet(size=config.model_size, has_global=config.is_dul, stem_kernel=config.first_kernal_size,
                         feature_dim=head.shape[0] if head is not None and head.ndim else 128)
    wanted = model.state_dict()
    used = {name: tensor for name, tensor in state.items() if config.is_dul or not name.startswith("query_cls.")}
    refuse_misfits(used, wanted, path, fix="use the file as it was written",
                   network=f"the network of its train_config (size {config.model_size}, is_dul "
                           f"{str(config.is_dul).lower()}, first kernel {config.first_kernal_size})")
    own = {name: state.get(name, torch.zeros(())).to(like.dtype, copy=True, memory_format=torch.contiguous_format)
           for name, like in wanted.items()}  # a counter may be missing
    model.load_state_dict(own, assign=True)
    return model
