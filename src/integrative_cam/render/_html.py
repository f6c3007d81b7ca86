"""An explanation as a notebook shows it: one piece of HTML that loads nothing."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from ._colours import WEIGHT
from ._drawing import draw
from ._panel import strongest_layers
from ._presentation import presented
from ._sheet import png, sheet

if TYPE_CHECKING:
    from torch import Tensor

    from ..explanation import Explanation

SHOWN = 4
"""Images of a batch; the others are counted."""
_ROW = "display:flex;gap:1.2em;align-items:flex-start;margin:0.4em 0"
_CELL = "padding:0.1em 0.6em 0.1em 0;text-align:left"
_BAR = f"display:inline-block;height:0.7em;background:{WEIGHT}"


def summary(explanation: Explanation) -> str:
    """Per image its map, what was explained with its score, and the layers that weigh most.

    The explanation holds no photograph: `Explanation.plot` draws over one.
    """
    maps = presented(explanation)
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
    """Of a class among several: its share of the softmax and its rank."""
    output, target = explanation.output, explanation.target
    if target is None or output.ndim != 2 or output.shape[1] < 2:
        return ""
    logits, index = output[sample].double(), int(target[sample])
    rank = int((logits > logits[index]).sum()) + 1
    return f", {float(logits.softmax(0)[index]):.1%} by softmax, rank {rank} of {len(logits)}"


def _layers(explanation: Explanation, sample: int) -> str:
    if not explanation.layers:
        return ""
    strongest = strongest_layers(explanation, sample)
    largest = max(float(explanation.weights[sample, index]) for index in strongest) or 1.0
    rows = []
    for index in strongest:
        layer, weight = explanation.layers[index], float(explanation.weights[sample, index])
        size = " x ".join(map(str, layer.map.shape[1:]))
        bar = f'<span style="{_BAR};width:{6 * weight / largest:.2f}em"></span>'
        cells = (f"<code>{escape(layer.name)}</code>", size, f"{weight:.1%}", bar)
        rows.append("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>")
    others = len(explanation.layers) - len(strongest)
    rest = f"<div><small>and {others} layers of less weight</small></div>" if others else ""
    return f"<table>{''.join(rows)}</table>{rest}"
