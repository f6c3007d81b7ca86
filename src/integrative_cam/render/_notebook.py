"""An explanation in a notebook: as one piece of HTML that loads nothing, and as a slider over its layers."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Any

from ..errors import import_extra
from ..query import probabilities
from ._colours import WEIGHT
from ._drawing import draw, presented_layer
from ._overlay import Region
from ._parts import check_layers, layer_facts, strongest_layers
from ._placement import Seen, placed
from ._sheet import colour_bar, png, sheet

if TYPE_CHECKING:
    from ipywidgets import VBox
    from torch import Tensor

    from ..explanation import Explanation

SHOWN = 4
"""Images of a batch; of the others only the number is given."""
FUSED = -1
"""The place of the fused map on the viewer's slider."""
_ROW = "display:flex;gap:1.2em;align-items:flex-start;margin:0.4em 0"
_CELL = "padding:0.1em 0.6em 0.1em 0;text-align:left"
_BAR = f"display:inline-block;height:0.7em;background:{WEIGHT}"


def summary(explanation: Explanation) -> str:
    """For each image its map, the target with its score, and the layers with the largest weights.

    The explanation holds no photograph: `Explanation.plot` draws over one.
    """
    maps = explanation.map.detach()
    rows = [
        f'<div style="{_ROW}"><img alt="map" style="max-width:14em" src="{_map(maps[sample])}">'
        f"<div>{_head(explanation, sample)}{_layers(explanation, sample)}</div></div>"
        for sample in range(min(SHOWN, len(maps)))
    ]
    more = len(maps) - SHOWN
    if more > 0:
        rows.append(f"<div>and {more} more</div>")
    return "<div>" + "".join(rows) + "<div><small>explanation.plot(images) draws it over the images</small></div></div>"


def _map(saliency: Tensor) -> str:
    figure = sheet(2.6, 2.6 if saliency.ndim > 1 else 1.3)
    draw(figure.subplots(), saliency)
    return f"data:image/png;base64,{base64.b64encode(png(figure, 80, transparent=True)).decode()}"


def _head(explanation: Explanation, sample: int) -> str:
    name, score = escape(explanation.target_names[sample]), float(explanation.score[sample])
    return f"<b>why {name}</b>, score {score:.4g}{_probability(explanation, sample)}"


def _probability(explanation: Explanation, sample: int) -> str:
    """The probability by softmax and the rank of a class among several."""
    output, target = explanation.output, explanation.target
    if target is None or output.ndim != 2 or output.shape[1] < 2:
        return ""
    logits, index = output[sample], int(target[sample])
    rank = int((logits > logits[index]).sum()) + 1
    # An explanation does not know the network's task.
    probability = float(probabilities(logits, "classification")[index])
    return f", {probability:.1%} by softmax, rank {rank} of {len(logits)}"


def _layers(explanation: Explanation, sample: int) -> str:
    if not explanation.layers:
        return ""
    strongest = strongest_layers(explanation, sample)
    largest = max(float(explanation.weights[sample, index]) for index in strongest) or 1.0
    rows = []
    for index in strongest:
        name, size, weight = layer_facts(explanation, index, sample)
        bar = f'<span style="{_BAR};width:{6 * weight / largest:.2f}em"></span>'
        cells = (f"<code>{escape(name)}</code>", size, f"{weight:.1%}", bar)
        rows.append("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>")
    others = len(explanation.layers) - len(strongest)
    rest = f"<div><small>and {others} layers of less weight</small></div>" if others else ""
    return f"<table>{''.join(rows)}</table>{rest}"


def viewer(explanation: Explanation, image: Seen = None, sample: int = 0, region: Region | None = None) -> VBox:
    """A slider over the fused map and the layers, from input to output, with signed maps and numbers.

    Args:
        explanation: with layers.
        image: the photograph, the network's view of it, or this sample's input (channel, *space); None draws bare maps.
        sample: which image of the explanation.
        region: where the map lies in the image; None: where the network looked, by the view or `Explanation.views`.

    Raises:
        MissingExtraError: ipywidgets is not installed (extra `notebook`).
    """
    widgets = import_extra("ipywidgets", "The viewer", "notebook")
    check_layers(explanation, sample)
    names = [f"{number} of {len(explanation.layers)}" for number in range(1, len(explanation.layers) + 1)]
    chosen = widgets.SelectionSlider(
        options=[("all, fused", FUSED), *zip(names, range(len(names)), strict=True)],
        value=FUSED,
        description="layer",
        continuous_update=False,
        layout={"width": "32em"},
    )
    shown = widgets.Image(format="png", layout={"width": "32em", "object_fit": "contain"})
    facts = widgets.HTML()
    if image is not None and explanation.map.ndim == 3:
        image, region = placed(explanation, sample, image, region)

    def update(_change: Any = None) -> None:
        index = int(chosen.value)
        shown.value = _picture(explanation, index, image, sample, region)
        facts.value = _numbers(explanation, index, sample)

    chosen.observe(update, names="value")
    update()
    return widgets.VBox([chosen, shown, facts])


def _picture(explanation: Explanation, index: int, image: Seen, sample: int, region: Region | None) -> bytes:
    signed = index != FUSED
    saliency = presented_layer(explanation, index) if signed else explanation.map.detach()
    figure = sheet(5.6, 2.6 if saliency.ndim == 2 else 4.4)
    axes = figure.subplots()
    draw(axes, saliency[sample], image, region, signed)
    colour_bar(figure, [axes], signed)
    return png(figure, 110)


def _numbers(explanation: Explanation, index: int, sample: int) -> str:
    if index == FUSED:
        return f"<b>why {escape(explanation.target_names[sample])}</b>: all layers by their weights"
    layer = explanation.layers[index]
    name, size, weight = layer_facts(explanation, index, sample)
    gradient, activation = float(layer.gradient_score[sample]), float(layer.activation_score[sample])
    return (
        f"<b>{escape(name)}</b> ({escape(layer.kind)}, {size}): weight {weight:.1%}, gradient score {gradient:.1%}, "
        f"activation score {activation:.1%}"
    )
