"""A region of the photograph, given as a box or a mask file, on the network's input or output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import TargetError
from ..models import read_image
from ..models._image import is_file
from ._prediction import Box, Prediction

if TYPE_CHECKING:
    from jaxtyping import Bool

BLACK = 32
"""Mask pixels with no channel above this, of 255, are outside: JPEG leaves noise on black."""


def read_box(text: str) -> Box | None:
    """Parse LEFT,TOP,RIGHT,BOTTOM; None for anything else, such as a file name.

    Raises:
        TargetError: a box without area.
    """
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        return None
    if not (right > left and bottom > top):
        raise TargetError(f"--within {text}: a box is LEFT,TOP,RIGHT,BOTTOM with RIGHT > LEFT and BOTTOM > TOP.")
    return left, top, right, bottom


def region_name(text: str) -> str:
    """The region in a few words: the box, or the mask's file name without its folder."""
    return text if read_box(text) else Path(text).name


def check_region(text: str) -> None:
    """Raise TargetError if the text is neither a box nor an existing file."""
    if read_box(text) is None and not is_file(text):
        raise TargetError(
            f"--within {text}: must be a box, LEFT,TOP,RIGHT,BOTTOM in pixels of the photograph, or the file of a mask."
        )


def region_as_box(text: str, prediction: Prediction) -> Box:
    """The box in pixels of the network's input.

    Raises:
        TargetError: the text names a mask.
    """
    box = read_box(text)
    if box is None:
        raise TargetError(f"--within {text}: a detector needs a box, LEFT,TOP,RIGHT,BOTTOM, not a mask.")
    return prediction.to_input(box)


def region_as_mask(text: str, prediction: Prediction) -> Bool[Tensor, "height width"]:
    """The pixels of a dense output whose centres lie in the box, or that hold a mask pixel that is not black.

    Raises:
        TargetError: the mask's size differs from the photograph's, or the network sees nothing of the region.
        ImageError: the mask cannot be read.
    """
    box = read_box(text)
    if box is None:
        inside = _mask_on_output(Path(text), prediction)
    else:
        (height, width), (rows, columns) = prediction.view.tensor.shape[2:], prediction.output_size
        left, top, right, bottom = prediction.to_input(box)
        y = (torch.arange(rows) + 0.5) * height / rows
        x = (torch.arange(columns) + 0.5) * width / columns
        inside = ((top <= y) & (y < bottom))[:, None] & ((left <= x) & (x < right))
    if not inside.any():
        seen = ",".join(f"{side:.0f}" for side in prediction.view.region)
        raise TargetError(
            f"--within {text}: holds no pixel of the network's output, which covers {seen} of the photograph."
        )
    return inside


def _mask_on_output(path: Path, prediction: Prediction) -> Bool[Tensor, "height width"]:
    picture, size = read_image(path), prediction.photograph.size
    if picture.size != size:
        raise TargetError(
            f"--within {path}: must have the photograph's size, {size[0]} x {size[1]} pixels, "
            f"but has {picture.width} x {picture.height}."
        )
    marked = torch.from_numpy(np.asarray(picture).max(2) > BLACK)
    seen = prediction.network.preprocessing.classes(marked.long())
    return torch.nn.functional.interpolate(seen[None, None].float(), prediction.output_size)[0, 0] > 0
