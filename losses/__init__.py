"""The training objective and its three terms (DESIGN section 6)."""

from __future__ import annotations

from losses.objective import Objective
from utils.config import Settings, TrainConfig


def build_objective(train_config: TrainConfig, settings: Settings) -> Objective:
    """The objective of a training configuration."""
    return Objective(color_temperature=train_config.TEMP, negatives=train_config.is_neg,
                     color_weight=1.5 if train_config.color_mode == "AB" else 1.0,
                     ohem_range=train_config.ohem_range, consistency=train_config.space_consistency,
                     dense=train_config.is_dul, dense_weight=settings.MODEL.DUL_WEIGHT,
                     dense_temperature=settings.MODEL.DUL_TEMP, anchor_grid=settings.MODEL.GRID_SIZE,
                     cross_view_grid=settings.MODEL.GRID_SIZE_REF, cross_view_weight=settings.MODEL.CE_REF)
