"""Networks of several inputs: each input, its map, and how much of the score came through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError
from ._colours import INK, REMAINDER, SERIES
from ._drawing import Seen, as_picture, check_sample, draw
from ._sheet import colour_bar, open_frame, sheet, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .._maps.streams import Streams
    from ..explanation import Explanation


def streams(explanation: Explanation, images: Sequence[Seen], title: str = "", sample: int = 0) -> Figure:
    """Draw each input of a fusion network, its map on the inputs' common scale, and the parts of the score.

    The map of an input is multiplied by its share over the largest share (`Streams.scaled_maps`), so that an input
    that mattered little stays pale.

    Args:
        explanation: of a network of several inputs.
        images: what each input shows, in order: a picture, or this sample's tensor (channel, *space); None draws the
            bare map.
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
        first.set_title(name)
        if image is not None and saliency is not None and saliency.ndim == 3:
            first.imshow(as_picture(image))
        second.set_axis_off()
        if saliency is None:
            second.text(0.5, 0.5, "no layer keeps its axes:\nno map", ha="center", va="center", color=INK)
        else:
            draw(second, saliency[sample], image)
        second.set_title(f"{float(inputs.share[sample, column]):.0%} of the evidence")
    colour_bar(upper, list(cells.flat))
    _parts(lower.subplots(), inputs, float(explanation.score[sample]), sample)
    return figure


def _parts(axes: Axes, inputs: Streams, score: float, sample: int) -> None:
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
