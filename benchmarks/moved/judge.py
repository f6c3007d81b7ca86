"""Whether a map shows the evidence where it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ENERGY = 0.8
"""Share of a right map's sum that lies in the zone around the evidence, at least."""
OUTSIDE = 0.4
"""Highest value of a right map outside of the zone, at most."""


@dataclass(frozen=True)
class Truth:
    """Where the evidence of one input lies.

    Attributes:
        evidence: (batch, *space) bool: the pixels that are bright and that the score depends on.
        zone: how many pixels around the evidence, along each axis, a right map may be bright; infinite along an axis
            that the network sums over at once.
        shift: how far the centre of a right map may be from the centre of the evidence, along each axis.
    """

    evidence: Tensor
    zone: tuple[float, ...]
    shift: tuple[float, ...]


def fault(found: Tensor, truth: Truth) -> str:
    """What is wrong with the maps (batch, *space) of one input, or nothing."""
    if found.shape != truth.evidence.shape:
        return f"map of shape {tuple(found.shape)} instead of {tuple(truth.evidence.shape)}"
    for sample, (values, evidence) in enumerate(zip(found, truth.evidence, strict=True)):
        reason = _fault(values.double(), evidence, truth)
        if reason:
            return f"sample {sample}: {reason}"
    return ""


def _fault(values: Tensor, evidence: Tensor, truth: Truth) -> str:
    if not values.max() > 0:
        return "blank map"
    places = evidence.nonzero().double()
    positions = torch.stack(
        torch.meshgrid(*(torch.arange(side, dtype=torch.double) for side in values.shape), indexing="ij"), -1
    )
    zone = torch.tensor(truth.zone)
    inside = ((positions >= places.amin(0) - zone) & (positions <= places.amax(0) + zone)).all(-1)
    energy = float(values[inside].sum() / values.sum())
    centre = (positions * values[..., None]).flatten(0, -2).sum(0) / values.sum()
    summary = (
        f"evidence at {_text(places.mean(0))}, map's centre at {_text(centre)}, maximum at "
        f"{_text(positions.flatten(0, -2)[values.argmax()])}, {energy:.0%} of it within {_text(zone)} pixels"
    )
    if energy < ENERGY or not inside.flatten()[values.argmax()]:
        return summary
    if (~inside).any() and values[~inside].max() > OUTSIDE * values.max():
        return f"{summary}, second place {float(values[~inside].max()):.2f} as bright"
    weights = values * inside
    centre = (positions * weights[..., None]).flatten(0, -2).sum(0) / weights.sum()
    offset = (centre - places.mean(0)).abs()
    if (offset > torch.tensor(truth.shift)).any():
        return f"{summary}, centre off by {_text(offset)}, more than {_text(truth.shift)}"
    return ""


def _text(values: Tensor | tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{float(value):.3g}" for value in values) + ")"
