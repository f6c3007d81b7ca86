"""Looking through the layers in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from ._drawing import Seen, draw
from ._overlay import Region
from ._panel import check_layers
from ._presentation import presented, presented_layer
from ._sheet import colour_bar, png, sheet

if TYPE_CHECKING:
    from ipywidgets import VBox

    from ..explanation import Explanation

FUSED = -1


def viewer(explanation: Explanation, image: Seen = None, sample: int = 0, region: Region | None = None) -> VBox:
    """A slider over the layers, from input to output, each with its signed map and numbers; first the fused map.

    Args:
        explanation: with layers.
        image: the photograph or this sample's input (channel, *space); None draws bare maps.
        sample: which image of the explanation.
        region: where the map lies in the photograph, such as `View.region`; None: all of it.

    Raises:
        MissingExtraError: ipywidgets is not installed (extra `notebook`).
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise MissingExtraError.of("The viewer", "notebook", error) from error

    check_layers(explanation, sample)
    names = [f"{number} of {len(explanation.layers)}" for number in range(1, len(explanation.layers) + 1)]
    chosen = widgets.SelectionSlider(
        options=[("all, fused", FUSED), *zip(names, range(len(names)), strict=True)],
        value=FUSED,
        description="layer",
        continuous_update=False,
        layout={"width": "32em"},
    )
    raw = widgets.Checkbox(value=False, description="without smoothing", indent=False)
    shown = widgets.Image(format="png", layout={"width": "32em", "object_fit": "contain"})
    told = widgets.HTML()

    def update(_change: Any = None) -> None:
        index = int(chosen.value)
        shown.value = _picture(explanation, index, image, sample, region, bool(raw.value))
        told.value = _numbers(explanation, index, sample)

    chosen.observe(update, names="value")
    raw.observe(update, names="value")
    update()
    return widgets.VBox([chosen, raw, shown, told])


def _picture(explanation: Explanation, index: int, image: Seen, sample: int, region: Region | None, raw: bool) -> bytes:
    signed = index != FUSED
    saliency = presented_layer(explanation, index, raw) if signed else presented(explanation, raw)
    figure = sheet(5.6, 2.6 if saliency.ndim == 2 else 4.4)
    axes = figure.subplots()
    draw(axes, saliency[sample], image, region, signed)
    colour_bar(figure, [axes], signed)
    return png(figure, 110)


def _numbers(explanation: Explanation, index: int, sample: int) -> str:
    if index == FUSED:
        return f"<b>why {escape(explanation.target_names[sample])}</b>: all layers by their weights"
    layer = explanation.layers[index]
    values = {
        "weight": layer.weight,
        "gradient score": layer.gradient_score,
        "activation score": layer.activation_score,
    }
    scores = ", ".join(f"{name} {float(each[sample]):.1%}" for name, each in values.items())
    size = " x ".join(map(str, layer.map.shape[1:]))
    return f"<b>{escape(layer.name)}</b> ({escape(layer.kind)}, {size}): {scores}"
