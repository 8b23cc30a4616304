"""Training on a video's own frames before its masks are carried (`infer_vos_dul.py --adapt N`); no mask is used."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from datasets import build_adaptation_dataset, read_batch
from losses import build_objective
from losses.objective import refuse_non_finite
from models import model_train_config
from models.colornet import ColorNet
from models.convolution import use_winograd
from training.schedule import build_optimiser
from utils.config import Settings
from utils.device import channels_last

CLIP_FRAMES = 4  # of the one clip of a step


class Adaptation:
    """Makes a network for each video: a copy that took some steps of the training objective on the video's frames.

    Args:
        model: where every video starts from, in eval mode.
        path: a checkpoint whose training configuration names the terms of the objective. Negatives come from other
            videos, and here there is none.
        settings: the sections DATASET and MODEL are those of training.
        steps: optimiser steps a video, one clip each.
        seed: of clips and views; the same for all videos, so that none depends on another.
    """

    def __init__(self, model: ColorNet, path: str | Path, settings: Settings, *, steps: int, seed: int):
        self._config = replace(model_train_config(path), is_neg=False, video_len=CLIP_FRAMES)
        self._model, self._settings, self._steps, self._seed = model, settings, steps, seed
        self._objective = build_objective(self._config, settings)

    def __call__(self, frames: Iterable[np.ndarray], total: int) -> ColorNet:
        """The network for a video of `total` frames, uint8 RGB [H,W,3]; they are passed once, few of them held.

        `UserError` where the loss is not finite.
        """
        clips = build_adaptation_dataset(frames, total, self._settings, self._config, clips=self._steps,
                                         seed=self._seed)
        device = next(self._model.parameters()).device
        model = copy.deepcopy(self._model).train()
        channels_last(model)
        if device.type == "cpu":
            use_winograd(model)
        optimiser = build_optimiser(model, self._settings)
        for step in trange(self._steps, desc="adapting", unit="step", leave=False, disable=None):
            batch = read_batch(clips, [(0, step)], device)
            losses = self._objective(model, batch.views, torch.Generator().manual_seed(self._seed + step))
            refuse_non_finite(losses, step + 1, batch.clips)
            losses.total.backward()
            optimiser.step()
            optimiser.zero_grad()
        return model.eval()
