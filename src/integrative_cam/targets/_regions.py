"""Targets inside a region of the output: of a segmentation, or of an image that a network makes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import TargetError
from ._output import logits_of, tensor_of
from ._scoring import SampleTarget, as_integer, check_box, check_index, named

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Where = Tensor | Sequence[float]
"""A boolean mask of the output's space, or (left, top, right, bottom) in pixels of the output."""
CHANNELS = "the output has {} channels"


def segmentation(index: int, where: Where | None = None) -> SampleTarget:
    """A class's mean logit over a region of a segmentation, (class, *space).

    The mean is the sum of Seg-Grad-CAM (arXiv:2002.11434) divided by the number of pixels, so that it has the scale of
    a logit for objects of any size.

    Args:
        index: the class.
        where: a mask or a box, see `region`; None takes the pixels where the network itself finds the class: it ranks
            first there or, of an output of one channel, its logit is above 0.

    Raises:
        TargetError: as for `region`; or the network finds the class nowhere.
    """
    index = as_integer(index, "index")
    place = None if where is None else _checked_region(where)

    def target(output: Any) -> Tensor:
        scores = _dense(logits_of(output))
        own = scores[check_index(index, len(scores), "index", CHANNELS)]
        inside = _found(scores, index) if place is None else _mask(place, scores)
        if not inside.any():
            raise TargetError(
                f"segmentation({index}): the network finds class {index} nowhere in this image. Say where to look, by "
                "a mask or a box."
            )
        return own[inside].mean()

    name = f"class {index} where found" if where is None else f"class {index} in {_kind(where)}"
    return named(target, name, has_unit=True)


def region(where: Where, channel: int | None = None) -> SampleTarget:
    """The mean of an output image, (channel, *space), over a region.

    Args:
        where: a boolean mask of the output's space; or a box of two dimensions, (left, top, right, bottom) in pixels of
            the output, whose area reaches from 0 to width and height: it holds the pixels whose centre it holds.
        channel: one of them; None takes the mean over all.

    Raises:
        TargetError: an empty mask or a box without area, or, when called, another shape than the output's space, a
            box without pixels, a channel out of range.
    """
    where = _checked_region(where)
    channel = None if channel is None else as_integer(channel, "channel", "an integer")

    def target(output: Any) -> Tensor:
        values = _dense(tensor_of(output))
        inside = _mask(where, values)
        if channel is not None:
            return values[check_index(channel, len(values), "channel", CHANNELS)][inside].mean()
        return values[:, inside].mean()

    return named(target, f"{'all' if channel is None else f'channel {channel}'} in {_kind(where)}", has_unit=False)


def _found(scores: Float[Tensor, "channel *space"], index: int) -> Bool[Tensor, "*space"]:
    """Where the network finds a class."""
    if len(scores) > 1:
        return scores.argmax(0) == index
    if scores.amin() >= 0 and scores.amax() <= 1:
        warnings.warn(
            "All values of the segmentation lie between 0 and 1: they are taken for probabilities, and the class is "
            "found where they are above 0.5. If they are logits, say where to look, by a mask or a box.",
            stacklevel=2,
        )
        return scores[0] > 0.5
    return scores[0] > 0


def _dense(values: Tensor) -> Float[Tensor, "channel *space"]:
    if values.ndim < 2:
        raise TargetError(
            "A region needs an output with space, (channel, *space) per sample, "
            f"but it has shape {tuple(values.shape)}. For one value per class give the class."
        )
    return values


def _checked_region(where: Where) -> Where:
    if isinstance(where, Tensor) and where.dtype == torch.bool:
        if not where.any():
            raise TargetError("where is an empty mask: no pixel of it is True.")
        return where
    if isinstance(where, Tensor) and where.ndim != 1:
        raise TargetError(
            "where as a mask must be boolean, of the output's space, "
            f"but got {where.dtype} of shape {tuple(where.shape)}; compare it, such as mask > 0."
        )
    try:
        edges = list(map(float, where))
    except (TypeError, ValueError):
        edges = []
    if len(edges) != 4:
        raise TargetError(
            "where must be a boolean mask or a box (left, top, right, bottom) in pixels of the output, "
            f"but got {where!r}."
        )
    return tuple(check_box(edges, "where must be a box").tolist())


def _mask(where: Where, values: Float[Tensor, "channel *space"]) -> Bool[Tensor, "*space"]:
    space = values.shape[1:]
    if isinstance(where, Tensor):
        if where.shape != space:
            raise TargetError(
                f"where must have the space of the output, {tuple(space)}, but has {tuple(where.shape)}; scale it, "
                "such as torch.nn.functional.interpolate(mask[None, None].float(), size)[0, 0] > 0.5."
            )
        return where.to(values.device)
    if len(space) != 2:
        raise TargetError(
            f"where as a box needs an output with two axes of space, but it has {len(space)}; use a mask."
        )
    inside = inside_boxes(torch.tensor([where], device=values.device), space)[0]
    if not inside.any():
        raise TargetError(
            f"where = {tuple(where)} holds the centre of no pixel of the output, {space[1]} wide and {space[0]} high. "
            "Boxes count pixels of the output, not of the input."
        )
    return inside


def inside_boxes(boxes: Float[Tensor, "box 4"], size: Sequence[int]) -> Bool[Tensor, "box height width"]:
    """True where a box, (left, top, right, bottom) in pixels, holds the centre of a pixel; `size`: (height, width)."""
    left, top, right, bottom = boxes.T[:, :, None]
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    inside: Tensor = ((top <= y) & (y < bottom))[:, :, None] & ((left <= x) & (x < right))[:, None]
    return inside


def _kind(where: Where) -> str:
    return "mask" if isinstance(where, Tensor) and where.dtype == torch.bool else "box"
