"""`--within`: a box or a mask of the photograph, in the space of the network's output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import TargetError
from ..models import read_image
from ..models._files import is_file
from ._sight import Box, Prediction

if TYPE_CHECKING:
    from jaxtyping import Bool

DARK = 32
"""What is no brighter, of 255, in any channel is outside of a mask; JPEG leaves noise on black."""


def read_box(option: str) -> Box | None:
    """LEFT,TOP,RIGHT,BOTTOM; None for anything else, such as a file name.

    Raises:
        TargetError: a box without area.
    """
    try:
        left, top, right, bottom = map(float, option.split(","))
    except ValueError:
        return None
    if not (right > left and bottom > top):
        raise TargetError(f"--within {option}: a box is LEFT,TOP,RIGHT,BOTTOM with RIGHT > LEFT and BOTTOM > TOP.")
    return left, top, right, bottom


def check_within(option: str) -> None:
    """Raise TargetError where it is neither a box nor a file."""
    if read_box(option) is None and not is_file(option):
        raise TargetError(
            f"--within {option}: is neither a box, LEFT,TOP,RIGHT,BOTTOM in pixels of the photograph, nor the file of "
            "a mask."
        )


def box_within(option: str, prediction: Prediction) -> Box:
    """A box in pixels of the network's input.

    Raises:
        TargetError: a mask.
    """
    box = read_box(option)
    if box is None:
        raise TargetError(f"--within {option}: a detector's box is matched by a box, LEFT,TOP,RIGHT,BOTTOM.")
    return prediction.in_input(box)


def mask_within(option: str, prediction: Prediction) -> Bool[Tensor, "height width"]:
    """The pixels of a dense output that lie in the box, or where the mask is not black.

    Raises:
        TargetError: a mask of another size than the photograph's, or nothing of it in the network's view.
        ImageError: a mask that cannot be read.
    """
    box = read_box(option)
    inside = _of_mask(Path(option), prediction) if box is None else _of_box(prediction.in_input(box), prediction)
    if not inside.any():
        raise TargetError(f"--within {option}: holds no pixel of what the network gives for this photograph.")
    return inside


def _of_box(box: Box, prediction: Prediction) -> Bool[Tensor, "height width"]:
    (height, width), (rows, columns) = prediction.view.tensor.shape[2:], prediction.space
    y = (torch.arange(rows) + 0.5) * height / rows
    x = (torch.arange(columns) + 0.5) * width / columns
    left, top, right, bottom = box
    return ((top <= y) & (y < bottom))[:, None] & ((left <= x) & (x < right))


def _of_mask(path: Path, prediction: Prediction) -> Bool[Tensor, "height width"]:
    picture = read_image(path)
    if picture.size != prediction.photograph.size:
        raise TargetError(
            f"--within {path}: must have the photograph's size, "
            f"{prediction.photograph.width} x {prediction.photograph.height} pixels, "
            f"but has {picture.width} x {picture.height}."
        )
    marked = torch.from_numpy(np.asarray(picture).max(2) > DARK)
    seen = prediction.network.preprocessing.classes(marked.long())
    return torch.nn.functional.interpolate(seen[None, None].float(), prediction.space)[0, 0] > 0
