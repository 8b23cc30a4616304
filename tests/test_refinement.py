"""Masks refined: specks, holes, lost objects; what was given stays."""

from __future__ import annotations

import numpy as np
import torch

from inference.refinement import Refinement
from models.propagation import Prediction


def prediction(named=()):
    return Prediction((0, 1, 2), torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), None, named)


def drawn():
    """Object 1, 40x40 with a hole of 4 pixels and one of 100, a speck of 4 pixels and a part of 100; object 2."""
    mask = np.zeros((80, 80), np.uint8)
    mask[10:50, 10:50] = 1
    mask[20:22, 20:22], mask[30:40, 30:40] = 0, 0
    mask[60:62, 5:7], mask[60:70, 20:30], mask[60:70, 60:70] = 1, 1, 2
    return mask


def test_specks_go_and_holes_are_filled_large_ones_stay():
    refined = Refinement(clean=True)(drawn(), prediction(), set())
    assert not refined[60:62, 5:7].any() and (refined[20:22, 20:22] == 1).all()
    assert not refined[30:40, 30:40].any() and (refined[60:70, 20:30] == 1).all()
    assert (refined[60:70, 60:70] == 2).all()


def test_a_hole_that_holds_another_object_or_reaches_the_border_stays():
    mask = drawn()
    mask[20:22, 20:22] = 2
    mask[45:47, 10:50] = 0  # a cut to the side
    refined = Refinement(clean=True)(mask, prediction(), set())
    assert not refined[45:47, 10:50].any()
    mask = drawn()
    mask[20, 20] = 2
    assert Refinement(clean=True)(mask, prediction(named=(2,)), set())[21, 21] == 0


def test_a_lost_object_is_not_painted_and_what_was_given_stays():
    assert set(np.unique(Refinement(drop_lost=True)(drawn(), prediction(), {2}))) == {0, 1}
    assert np.array_equal(Refinement(True, True)(drawn(), prediction(named=(1, 2)), {1, 2}), drawn())


def test_nothing_is_refined_unasked():
    mask = drawn()
    assert Refinement()(mask, prediction(), {1}) is mask
