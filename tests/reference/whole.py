"""The entire recipe, walked on given arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import bias as bias_maps
from . import evidence, fusion, readout, weighting
from .arrays import Array, Space, inner, relu


@dataclass(frozen=True)
class Layer:
    """A feature map and the score's gradient there: (channel, *space)."""

    activation: Array
    gradient: Array


@dataclass(frozen=True)
class Site:
    """A constant that the network adds and the score's gradient there: (channel, *space), or (channel,)."""

    shift: Array
    gradient: Array


@dataclass(frozen=True)
class Sample:
    """One image's run; `behind[layer][site]` tells which constants enter behind which layer, `paths` which share of
    the network's paths passes each layer.
    """

    layers: Sequence[Layer]
    sites: Sequence[Site]
    behind: Sequence[Sequence[bool]]
    paths: Sequence[float]
    logits: Sequence[float]
    target: int
    space: Space


@dataclass(frozen=True)
class Ingredients:
    """A recipe with everything spelled out."""

    readout: readout.Readout = readout.exp
    aggregation: str = "position"
    negative_share: float = 0.5
    bias: str = "layers"
    bias_share: float = 0.2
    weighting: str = "joint"
    weight_exponent: float = 0.25
    path_exponent: float = 4.0
    stride_exponent: float = 2.0
    stage_share: float = 0.5
    signed: bool = True
    fusion: str = "sum"
    gamma: float = 0.85


@dataclass(frozen=True)
class Walked:
    """Everything that the walk computes for one image."""

    map: Array
    layer_maps: list[Array]
    layer_biases: list[Array]
    weights: list[float]
    scores: tuple[list[float], list[float], list[float]]
    bias_layer_maps: list[Array]
    bias_layer_weights: list[float]
    clamped: int


def walk(sample: Sample, recipe: Ingredients) -> Walked:
    """Evidence per layer, bias, weights, fusion."""
    derivatives = recipe.readout(sample.logits, sample.target)
    # Where f falls with S, it rises with -S: every gradient and the score turn, and f''' with them.
    sign = readout.direction(derivatives)
    rho = sign * readout.rho(derivatives)
    score = sign * sample.logits[sample.target]
    site_maps = [
        bias_maps.site_map(sign * site.gradient, site.shift, rho, recipe.negative_share) for site in sample.sites
    ]

    layer_maps, layer_biases, clamped = [], [], 0
    for layer, behind in zip(sample.layers, sample.behind, strict=True):
        activation, gradient = layer.activation, sign * layer.gradient
        found, touched = evidence.evidence(activation, gradient, rho, recipe.negative_share, recipe.aggregation)
        space = activation.shape[1:]
        bias = np.zeros(space)
        if recipe.bias == "complete":
            bias = bias_maps.complete(site_maps, behind, space)
        elif recipe.bias == "residual":
            bias = bias_maps.residual(score, activation, gradient)
        layer_maps.append(found + bias)
        layer_biases.append(bias)
        clamped += touched

    scores = weighting.layer_scores(
        [each.activation for each in sample.layers], [each.gradient for each in sample.layers]
    )
    weights = weighting.weights(*scores, sample.paths, recipe.weighting, recipe.weight_exponent, recipe.path_exponent)
    spaces = [each.shape for each in layer_maps]
    weights = weighting.adjust_for_resolution(weights, spaces, sample.space, recipe.stride_exponent, recipe.stage_share)

    joining: list[Array] = []
    masses: list[float] = []
    if recipe.bias == "layers":
        for site, found in zip(sample.sites, site_maps, strict=True):
            if found.ndim == len(sample.space) and found.size > 1:
                joining.append(found)
                masses.append(weighting.joint_score(site.shift, site.gradient))
    share = recipe.bias_share if joining else 0.0
    tempered = weighting.shares(
        [
            part**recipe.weight_exponent * weighting.coarseness(found.shape, sample.space) ** recipe.stride_exponent
            for part, found in zip(weighting.shares(masses), joining, strict=True)
        ]
    )
    bias_weights = [share * part for part in tempered]

    maps = layer_maps + joining
    fused = fusion.fuse(
        maps if recipe.signed else [relu(each) for each in maps],
        [(1 - share) * weight for weight in weights] + bias_weights,
        sample.space,
        recipe.fusion,
    )
    fused = np.vectorize(lambda value: value**recipe.gamma)(fused)
    return Walked(fused, layer_maps, layer_biases, weights, scores, joining, bias_weights, clamped)


@dataclass(frozen=True)
class Split:
    """score = input + bias + remainder, and per layer score = activation + tap_bias + bypass."""

    bias: float
    activation: list[float]
    tap_bias: list[float]


def split(sample: Sample) -> Split:
    """Gradient times value at every bias site and every layer (section 4)."""
    parts = [inner(site.shift, site.gradient) for site in sample.sites]
    return Split(
        bias=sum(parts),
        activation=[inner(layer.activation, layer.gradient) for layer in sample.layers],
        tap_bias=[sum(part for part, is_behind in zip(parts, row, strict=True) if is_behind) for row in sample.behind],
    )
