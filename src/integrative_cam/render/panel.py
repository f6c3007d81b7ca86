"""One picture that tells the whole story: photograph, fused map, the layers behind it, the weight over depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError
from .overlay import COLOURS, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image

    from ..explanation import Explanation

LAYERS_SHOWN = 6
SIGNED_COLOURS = "PuOr_r"


def panel(explanation: Explanation, image: Image, title: str = "", sample: int = 0) -> Figure:
    """Draw photograph, overlay, the most important layers' signed maps and the weight profile over depth.

    An explanation without layers shows the first two.

    Args:
        explanation: of one or more images with two spatial axes.
        image: the region that the network saw, at any size.
        title: shown above the overlay, such as the class and its probability.
        sample: which image of the explanation.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if explanation.map.ndim != 3:
        raise InputError(f"panel draws maps of two dimensions, but the map is {tuple(explanation.map.shape[1:])}.")
    heights = [4.4, 2.5, 2.6] if explanation.layers else [4.4]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    parts = [figure.add_subfigure(grid[row]) for row in range(len(heights))]
    top = parts[0]

    photograph, fused = top.subplots(1, 2)
    photograph.imshow(image)
    photograph.set_title("What the network saw")
    fused.imshow(overlay(explanation.map[sample], image))
    fused.set_title(title or f"Why {explanation.target_names[sample]}")
    for axes in (photograph, fused):
        axes.set_axis_off()
    bar = top.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), ax=[photograph, fused], shrink=0.85, ticks=[0, 0.5, 1])
    bar.set_label("evidence, relative to its maximum")

    if explanation.layers:
        _layers(parts[1], parts[2], explanation, sample)
    return figure


def _layers(middle: SubFigure, bottom: SubFigure, explanation: Explanation, sample: int) -> None:
    weights = explanation.weights[sample]
    strongest = weights.argsort(descending=True)[:LAYERS_SHOWN].sort().values.tolist()
    cells = middle.subplots(1, LAYERS_SHOWN, squeeze=False)[0]
    for axes in cells:
        axes.set_axis_off()
    for axes, index in zip(cells, strongest, strict=False):
        layer = explanation.layers[index]
        values = layer.map[sample].float().cpu().numpy()
        limit = float(abs(values).max()) or 1.0
        axes.imshow(values, cmap=SIGNED_COLOURS, vmin=-limit, vmax=limit)
        size = " x ".join(map(str, values.shape))
        axes.set_title(f"{_shortened(layer.name)}\n{size}, weight {float(weights[index]):.1%}", fontsize=8)
    middle.suptitle("The layers that weigh most, in order of depth: orange speaks for, purple against", fontsize=10)

    _weight_profile(bottom.subplots(), explanation, sample, strongest)


def _weight_profile(axes: Axes, explanation: Explanation, sample: int, marked: list[int]) -> None:
    depth = range(1, len(explanation.layers) + 1)
    colours = ["#b35806" if index in marked else "#f1a340" for index in range(len(depth))]
    axes.bar(depth, explanation.weights[sample].tolist(), color=colours, label="weight (dark: shown above)")
    gradient = [float(layer.gradient_score[sample]) for layer in explanation.layers]
    activation = [float(layer.activation_score[sample]) for layer in explanation.layers]
    axes.plot(depth, gradient, color="#542788", linewidth=1.4, marker="o", markersize=2.5, label="gradient score")
    axes.plot(
        depth, activation, color="#2b7a78", linewidth=1.4, linestyle="--", marker="s", markersize=2.5,
        label="activation score",
    )  # fmt: skip
    axes.set(xlabel="layer, from input to output", ylabel="share over all layers", xlim=(0.3, len(depth) + 0.7))
    axes.set_ylim(0, None)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _shortened(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"
