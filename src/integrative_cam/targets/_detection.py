"""The score of the detected box that matches another box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import TargetError
from ._output import tensor_of
from ._scoring import SampleTarget, as_integer, check_box, check_index, named

if TYPE_CHECKING:
    from jaxtyping import Float

CELL = 16
"""Pixels of the input of FastestDet per cell of its output."""


@dataclass(frozen=True)
class Detections:
    """A detector's boxes (left, top, right, bottom) in one image, with a score, >= 0, for each class."""

    boxes: Float[Tensor, "box 4"]
    scores: Float[Tensor, "box classes"]


Decoder = Callable[[Any], Detections]
"""Takes one sample's output and returns its boxes and scores, made by differentiable operations."""


def detection(box: Sequence[float] | Tensor, index: int, decode: Decoder, least: float = 0.5) -> SampleTarget:
    """A class's score in the detected box that matches `box`.

    As D-RISE pairs detections (arXiv:2006.03204), it is the one with the largest product of overlap and score, among
    the boxes with an intersection over union of `least` or more. No suppression of weaker boxes is needed.

    Args:
        box: (left, top, right, bottom) in the units of the decoder's boxes.
        index: the class.
        decode: from one sample's output to its boxes and scores, such as `fastestdet`.
        least: intersection over union, above 0 and at most 1.

    Raises:
        TargetError: no such box, index or least or, when called, boxes and scores of other shapes, a class out of
            range, or no box that overlaps enough.
    """
    wanted = check_box(box, "box must be (left, top, right, bottom)")
    index = as_integer(index, "index")
    if not 0 < least <= 1:
        raise TargetError(f"least must be an intersection over union above 0 and at most 1, but got {least!r}.")

    def target(output: Any) -> Tensor:
        detections = _checked(decode(output))
        classes = detections.scores.shape[1]
        scores = detections.scores[:, check_index(index, classes, "index", "the decoder gives {} classes")]
        return scores[matching(wanted, detections.boxes.detach(), scores.detach(), least)]

    return named(target, f"class {index} in box", has_unit=True)


def matching(
    box: Float[Tensor, "4"], others: Float[Tensor, "box 4"], scores: Float[Tensor, "box"], least: float = 0.5
) -> int:
    """The index of the box that `detection` takes: see there.

    Raises:
        TargetError: none does.
    """
    overlaps = overlap(box.to(others), others)
    if not (overlaps >= least).any():
        best = f"; the best has {float(overlaps.max()):.2f}" if len(overlaps) else ""
        raise TargetError(
            f"No detected box overlaps {tuple(box.tolist())} by {least} or more (intersection over union)"
            f"{best}. Check that both count the same pixels, or lower `least`."
        )
    return int(torch.where(overlaps >= least, overlaps * scores, -1).argmax())


def overlap(box: Float[Tensor, "4"], others: Float[Tensor, "box 4"]) -> Float[Tensor, "box"]:
    """Intersection over union of a box with each of the others, 0 to 1; 0 for boxes without area."""
    shared = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp_min(0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).clamp_min(0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared)


def fastestdet(output: Any) -> Detections:
    """Read the output of FastestDet, (5 + classes, height, width) per sample, one box per cell of 16 pixels.

    Channels: objectness o, centre's shift (x, y) in cells through tanh, width and height as shares of the image through
    a sigmoid, probabilities p of the classes. Boxes count pixels of the input; a class's score is o^0.6 p^0.4, as in
    the authors' code (github.com/dog-qiuqiu/FastestDet).

    Raises:
        TargetError: another shape.
    """
    cells = tensor_of(output)
    if cells.ndim != 3 or len(cells) < 6:
        raise TargetError(
            "fastestdet reads (5 + classes, height, width) per sample, such as (85, 22, 22), "
            f"but the output has shape {tuple(cells.shape)}; write a decoder for it."
        )
    _, height, width = cells.shape
    row = torch.arange(height, device=cells.device)[:, None]
    column = torch.arange(width, device=cells.device)
    x, y = (column + cells[1].tanh()) * CELL, (row + cells[2].tanh()) * CELL
    half_width, half_height = cells[3].sigmoid() * width * CELL / 2, cells[4].sigmoid() * height * CELL / 2
    boxes = torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)
    # At 0, powers below 1 have an infinite slope.
    sure = cells.clamp_min(torch.finfo(cells.dtype).tiny)
    scores = sure[0] ** 0.6 * sure[5:] ** 0.4
    return Detections(boxes.reshape(-1, 4), scores.flatten(1).T)


def _checked(detections: Detections) -> Detections:
    boxes, scores = detections.boxes, detections.scores
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.ndim != 2 or len(scores) != len(boxes):
        raise TargetError(
            "decode must give boxes of shape (box, 4) and scores of shape (box, classes), "
            f"but gave {tuple(boxes.shape)} and {tuple(scores.shape)}."
        )
    return detections
