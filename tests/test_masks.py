"""Masks on disk."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.masks import DAVIS_PALETTE, read_mask, write_mask


def test_palette_is_the_fields():
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert DAVIS_PALETTE[:7].tolist() == expected
    assert DAVIS_PALETTE[255].tolist() == [224, 224, 192]


def test_written_masks_are_palette_pngs_that_read_back(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_mask(tmp_path / "new/folder/mask.png", mask)
    with Image.open(tmp_path / "new/folder/mask.png") as image:
        assert image.mode == "P" and image.getpalette() == DAVIS_PALETTE.flatten().tolist()
    assert (read_mask(tmp_path / "new/folder/mask.png") == mask).all()
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["mask.png"]


def test_grey_masks_read_as_ids(tmp_path):
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "grey.png")
    assert (read_mask(tmp_path / "grey.png") == 7).all()


@pytest.mark.parametrize("make, word", [
    (lambda path: None, "exist"), (lambda path: path.write_text("text"), "picture"),
    (lambda path: Image.new("L", (2, 2)).save(path, format="JPEG"), "lossy JPEG"),
    (lambda path: Image.new("RGB", (2, 2)).save(path), "RGB")])
def test_unusable_masks_are_named(tmp_path, make, word):
    path = tmp_path / "mask.png"
    make(path)
    with pytest.raises(UserError, match=word) as error:
        read_mask(path)
    assert "mask.png" in str(error.value)
