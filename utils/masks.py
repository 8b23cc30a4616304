"""Index masks on disk: uint8 [H,W], 0 is background, 1, 2, ... are object ids."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.files import replacing
from utils.pictures import read_picture


def _voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC and DAVIS, uint8 [256,3] RGB: the bits of an id dealt out to R, G, B in turn."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # [256,8]
    dealt = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)  # of each id, by round and channel
    return np.packbits(dealt.swapaxes(1, 2), axis=2)[..., 0]  # the first round gives the highest bit


DAVIS_PALETTE = _voc_palette()


def read_mask(path: str | Path) -> np.ndarray:
    """Read a palette or grey 8-bit PNG as index mask, uint8 [H,W]; `UserError` for anything else."""
    picture = read_picture(path)
    if picture.image.mode not in ("P", "L", "1") or picture.lossy or picture.pictures > 1:
        raise UserError(f"a mask is an 8-bit palette or grey PNG whose value is the object id; {path} is {picture}; "
                        "convert it to index values")
    return np.array(picture.image, dtype=np.uint8)


def object_ids(mask: np.ndarray) -> list[int]:
    """The values other than 0 of an index mask, uint8 [H,W], in order."""
    counts = cv2.calcHist([mask], [0], None, [256], [0, 256])  # ten times as fast as sorting, which np.unique does
    return [int(k) for k in np.flatnonzero(counts) if k]


def write_mask(path: str | Path, mask: np.ndarray, *, sync: bool = True) -> None:
    """Write uint8 [H,W] as 8-bit palette PNG in DAVIS colours; the file is whole or not there (`replacing`)."""
    image = Image.fromarray(mask.astype(np.uint8, copy=False), mode="P")
    image.putpalette(DAVIS_PALETTE.tobytes())
    with replacing(path, sync=sync) as temporary:
        image.save(temporary, format="PNG")
