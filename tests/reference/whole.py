"""The entire recipe, walked on given arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import bias as bias_maps
from . import evidence, fusion, readout, regional, weighting
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
    the network's paths passes each layer. `score` is what the gradients are of.
    """

    layers: Sequence[Layer]
    sites: Sequence[Site]
    behind: Sequence[Sequence[bool]]
    paths: Sequence[float]
    logits: Sequence[float]
    target: int
    space: Space
    score: float


@dataclass(frozen=True)
class Ingredients:
    """A recipe with everything spelled out."""

    score: str = "contrast"
    readout: readout.Readout = readout.exp
    aggregation: str = "position"
    regions: int | None = 14
    centred: bool = True
    negative_share: float = 0.9
    bias: str = "layers"
    bias_share: float = 0.2
    weighting: str = "joint"
    weight_exponent: float = 0.25
    path_exponent: float = 4.0
    stride_exponent: float = 2.0
    stage_share: float = 0.5
    signed: bool = True
    fusion: str = "sum"
    gamma: float = 1.0


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
    logits = list(sample.logits)
    if recipe.readout not in (readout.softmax, readout.log_softmax):
        logits[sample.target] = sample.score
    derivatives = recipe.readout(logits, sample.target)
    # Where f falls with S, it rises with -S: every gradient and the score turn, and f''' with them.
    sign = readout.direction(derivatives)
    rho = sign * readout.rho(derivatives)
    score = sign * sample.score
    site_gradients = [_regional(site.gradient, recipe.regions) for site in sample.sites]
    site_maps = [
        bias_maps.site_map(
            sign * gradient,
            site.shift,
            rho,
            recipe.negative_share * regional.coherence(gradient.shape[1:], recipe.regions),
        )
        for site, gradient in zip(sample.sites, site_gradients, strict=True)
    ]

    site_maps = [_calmed(each, recipe.regions) for each in site_maps]
    layer_maps, layer_biases, clamped = [], [], 0
    centred, gradients = [], []
    for layer, behind in zip(sample.layers, sample.behind, strict=True):
        activation, gradient = layer.activation, sign * layer.gradient
        space = activation.shape[1:]
        trust = regional.coherence(space, recipe.regions)
        gradients.append(_regional(layer.gradient, recipe.regions))
        centred.append(regional.centred(activation, trust) if recipe.centred else activation)
        found, touched = evidence.evidence(
            centred[-1],
            sign * gradients[-1],
            rho,
            recipe.negative_share * trust,
            recipe.aggregation,
            by_product=recipe.centred and recipe.aggregation == "position",
        )
        found = _calmed(found, recipe.regions)
        bias = np.zeros(space)
        if recipe.bias == "complete":
            bias = bias_maps.complete(site_maps, behind, space)
        elif recipe.bias == "residual":
            bias = bias_maps.residual(score, activation, gradient)
        layer_maps.append(found + bias)
        layer_biases.append(bias)
        clamped += touched

    gradient_shares, _, joint = weighting.layer_scores(centred, gradients)
    _, activation_shares, _ = weighting.layer_scores([each.activation for each in sample.layers], gradients)
    scores = gradient_shares, activation_shares, joint
    weights = weighting.weights(*scores, sample.paths, recipe.weighting, recipe.weight_exponent, recipe.path_exponent)
    spaces = [each.shape for each in layer_maps]
    weights = weighting.adjust_for_resolution(weights, spaces, sample.space, recipe.stride_exponent, recipe.stage_share)

    joining: list[Array] = []
    masses: list[float] = []
    if recipe.bias == "layers":
        for site, gradient, found in zip(sample.sites, site_gradients, site_maps, strict=True):
            if found.ndim == len(sample.space) and found.size > 1:
                joining.append(found)
                masses.append(weighting.joint_score(site.shift, gradient))
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


def _regional(gradient: Array, regions: int | None, times: int = 1) -> Array:
    """Without space, as of a linear layer, there are no regions."""
    if regions is None or gradient.ndim == 1:
        return gradient
    return regional.averaged_over_regions(gradient, times * regional.along_axis(regions, gradient.shape[1:]))


def _calmed(values: Array, regions: int | None) -> Array:
    return values if regions is None or values.ndim == 0 else _regional(values[None], regions, 2)[0]


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
