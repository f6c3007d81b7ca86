"""Figures of an explanation's parts: its layers and their weights, the score over depth, several inputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from ._colours import ACTIVATION, BIAS, GRADIENT, INK, INPUT, REMAINDER, SERIES, WEIGHT, WEIGHT_MARKED
from ._drawing import check_sample, draw, draw_beside, ignored, numbers, presented_layer
from ._overlay import Region
from ._placement import Seen, placed
from ._sheet import bare, colour_bar, open_frame, set_title, sheet, wrapped

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image
    from torch import Tensor

    from .._maps.streams import Streams
    from ..explanation import Explanation
    from ..models import View

LAYERS_SHOWN = 6
PALE = 0.3
"""Opacity of the bars of layers that are no cut."""


def panel(
    explanation: Explanation,
    image: Image | View,
    title: str = "",
    sample: int = 0,
    region: Region | None = None,
    raw: bool | None = None,
) -> Figure:
    """Draw photograph, overlay, the most important layers' signed maps and the weight profile over depth.

    Of an explanation without layers, only photograph and overlay.

    Args:
        explanation: of one or more images with two spatial axes.
        image: the photograph, at any size, or the network's view of it.
        title: shown above the overlay, such as the class and its probability.
        sample: which image of the explanation.
        region: where the map lies in the image; None: where the network looked, by the view or `Explanation.views`.
        raw: without effect, and deprecated.
    """
    ignored(raw)
    if explanation.map.ndim != 3:
        raise InputError(f"panel draws maps of two dimensions, but the map is {tuple(explanation.map.shape[1:])}.")
    check_sample(explanation, sample)
    photograph, region = placed(explanation, sample, image, region)
    top = min(max(5.2 * photograph.height / photograph.width, 2), 6) + 0.4
    heights = [top, 2.5, 2.7] if explanation.layers else [top]
    figure = sheet(12, sum(heights))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    parts = [figure.add_subfigure(grid[row]) for row in range(len(heights))]
    title = title or f"Why {explanation.target_names[sample]}"
    draw_beside(parts[0], explanation.map[sample].detach(), (photograph, region), title, "photograph")
    if explanation.layers:
        strongest = strongest_layers(explanation, sample)
        _layers(parts[1], explanation, sample, strongest)
        _weight_profile(parts[2].subplots(), explanation, sample, strongest)
    return figure


def profile(explanation: Explanation, sample: int = 0, marked: Collection[int] = ()) -> Figure:
    """Draw each layer's weight over depth as a bar, its gradient and activation score as lines.

    Args:
        explanation: with layers.
        sample: which image of the explanation.
        marked: layers, by index, whose bars are dark.
    """
    check_layers(explanation, sample)
    figure = sheet(9, 3)
    _weight_profile(figure.subplots(), explanation, sample, marked)
    return figure


def check_layers(explanation: Explanation, sample: int) -> None:
    """Raise InputError unless there are layers and that image."""
    check_sample(explanation, sample)
    if not explanation.layers:
        raise InputError("this explanation has no layers to draw: its map is not made of layers' maps.")


def strongest_layers(explanation: Explanation, sample: int) -> list[int]:
    """The layers with the largest weights, in order of depth."""
    order: list[int] = explanation.weights[sample].argsort(descending=True, stable=True)[:LAYERS_SHOWN].tolist()
    return sorted(order)


def layer_facts(explanation: Explanation, index: int, sample: int) -> tuple[str, str, float]:
    """A layer's name, the size of its map, and its weight."""
    layer = explanation.layers[index]
    return layer.name, " x ".join(map(str, layer.map.shape[1:])), float(layer.weight[sample])


def _layers(part: SubFigure, explanation: Explanation, sample: int, strongest: list[int]) -> None:
    cells = part.subplots(1, LAYERS_SHOWN, squeeze=False)[0]
    bare(*cells)
    for axes, index in zip(cells, strongest, strict=False):
        draw(axes, presented_layer(explanation, index)[sample], signed=True)
        name, size, weight = layer_facts(explanation, index, sample)
        name = name if len(name) <= 24 else f"…{name[-23:]}"
        set_title(axes, f"{name}\n{size}, weight {weight:.1%}", fontsize=8)
    part.suptitle("The layers that weigh most, in order of depth: orange speaks for, purple against", fontsize=10)


def _weight_profile(axes: Axes, explanation: Explanation, sample: int, marked: Collection[int]) -> None:
    depth = range(1, len(explanation.layers) + 1)
    colours = [WEIGHT_MARKED if index in marked else WEIGHT for index in range(len(depth))]
    dark = " (dark: shown above)" if marked else ""
    axes.bar(depth, explanation.weights[sample].tolist(), color=colours, label=f"weight{dark}")
    gradient = [float(layer.gradient_score[sample]) for layer in explanation.layers]
    activation = [float(layer.activation_score[sample]) for layer in explanation.layers]
    axes.plot(depth, gradient, color=GRADIENT, linewidth=1.4, marker="o", markersize=2.5, label="gradient score")
    axes.plot(
        depth, activation, color=ACTIVATION, linewidth=1.4, linestyle="--", marker="s", markersize=2.5,
        label="activation score",
    )  # fmt: skip
    axes.set(xlabel="layer, from input to output", ylabel="share over all layers", xlim=(0.3, len(depth) + 0.7))
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    open_frame(axes)
    axes.legend(frameon=False, fontsize=8)


def decomposition(explanation: Explanation, sample: int = 0, title: str = "") -> Figure:
    """Draw score = activation part + bias part + remainder as stacked bars over depth; the line is the score.

    Depth 0 is the input. Parts against the target are below zero. Where some of the network's paths go around a layer,
    its remainder includes what flows there, and its bar is pale (`Completeness.is_cut` is False).

    Args:
        explanation: of any number of spatial axes.
        sample: which image of the explanation.
        title: shown above the bars, such as the class.
    """
    check_sample(explanation, sample)
    parts = parts_over_depth(explanation, sample)
    whole = [True, *explanation.completeness.is_cut.tolist()]
    score = float(explanation.completeness.score[sample])
    figure = sheet(9, 3.2)
    axes = figure.subplots()
    depth = np.arange(parts.shape[1])
    above, below = np.zeros(len(depth)), np.zeros(len(depth))
    for values, colour in zip(numbers(parts), (INPUT, BIAS, REMAINDER), strict=True):
        bars = axes.bar(depth, values, bottom=np.where(values >= 0, above, below), color=colour, width=0.8)
        for bar, passes in zip(bars, whole, strict=True):
            bar.set_alpha(1 if passes else PALE)
        above += values.clip(0)
        below += values.clip(max=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    line = axes.axhline(score, color=INK, linewidth=1.2, linestyle="--", label=f"score {score:.2f}")
    names = [(INPUT, "activations (at 0: input)"), (BIAS, "biases behind them"), (REMAINDER, "remainder")]
    keys = [line, *(Patch(color=colour, label=name) for colour, name in names)]
    if not all(whole):
        keys.append(Patch(color=REMAINDER, alpha=PALE, label="pale: paths pass beside the layer"))
    axes.set(xlabel="layer, from input (0) to output", ylabel="part of the score", xlim=(-0.7, len(depth) - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    open_frame(axes)
    set_title(axes, wrapped(title, 9), fontsize=10)
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def parts_over_depth(explanation: Explanation, sample: int) -> Float[Tensor, "3 depth"]:
    """Activation part, bias part and remainder at the input and at every tap; columns sum to the score."""
    split = explanation.completeness
    at_input = torch.stack([split.input[sample], split.bias[sample], split.remainder[sample]])
    at_taps = torch.stack([split.activation[sample], split.tap_bias[sample], split.bypass[sample]])
    return torch.cat([at_input[:, None].to(at_taps), at_taps], 1)


def streams(explanation: Explanation, images: Sequence[Seen], title: str = "", sample: int = 0) -> Figure:
    """Draw each input of a fusion network, its map on the inputs' common scale, and the parts of the score.

    The map of an input is multiplied by its share over the largest share (`Streams.scaled_maps`), so that an
    input with little evidence stays pale.

    Args:
        explanation: of a network of several inputs.
        images: what each input shows, in order: a picture, the network's view of one, or this sample's tensor (channel,
            *space); None draws the bare map.
        title: shown above all; default "Why" and the target's name.
        sample: which image of the explanation.

    Raises:
        InputError: the network has one input, or not one image per input.
    """
    inputs = explanation.streams
    if inputs is None:
        raise InputError("streams draws explanations of networks with several inputs; this one has one: use `plot`.")
    check_sample(explanation, sample)
    if len(images) != len(inputs.names):
        raise InputError(f"images must be one for each of {', '.join(inputs.names)}, but got {len(images)}.")
    figure = sheet(max(7.5, 3.2 * len(images) + 1), 8.4)
    figure.suptitle(wrapped(title or f"Why {explanation.target_names[sample]}", figure.get_figwidth()))
    grid = figure.add_gridspec(2, 1, height_ratios=[6.4, 0.5 + 0.3 * (len(images) + 2)])
    upper, lower = (figure.add_subfigure(grid[row]) for row in range(2))
    cells = upper.subplots(2, len(images), squeeze=False)
    for column, (name, image, saliency) in enumerate(zip(inputs.names, images, inputs.scaled_maps, strict=True)):
        first, second = cells[:, column]
        first.set_axis_off()
        set_title(first, name)
        region = None
        if image is not None and saliency is not None and saliency.ndim == 3:
            image, region = placed(explanation, sample, image, stream=column)
            first.imshow(image)
        second.set_axis_off()
        if saliency is None:
            second.text(0.5, 0.5, "no layer keeps its axes:\nno map", ha="center", va="center", color=INK)
        else:
            draw(second, saliency[sample], image, region)
        set_title(second, f"{float(inputs.share[sample, column]):.0%} of the evidence")
    colour_bar(upper, list(cells.flat))
    _stream_parts(lower.subplots(), inputs, float(explanation.score[sample]), sample)
    return figure


def _stream_parts(axes: Axes, inputs: Streams, score: float, sample: int) -> None:
    evidence, shared = inputs.evidence[sample].tolist(), float(inputs.shared[sample])
    rest = score - sum(evidence) - shared
    # Rounding errors are not shown as a remainder.
    values = [*evidence, shared, rest if abs(rest) > 1e-4 * abs(score) else 0.0]
    names = [*inputs.names, "biases behind the fusion", "remainder"]
    colours = [*(SERIES[place % len(SERIES)] for place in range(len(evidence))), REMAINDER, REMAINDER]
    bars = axes.barh(names, values, color=colours)
    axes.bar_label(bars, [f"{value:+.3g}" if value else "0" for value in values], padding=3, fontsize=8)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(f"part of the score, {score:.3g}")
    axes.tick_params(axis="y", length=0)
    open_frame(axes)
    axes.spines["left"].set_visible(False)
