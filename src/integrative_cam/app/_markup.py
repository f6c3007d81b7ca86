"""The parts of the page that are no form fields, as HTML. Whatever came from a file or a visitor is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from ..explanation import Explanation, Layer

if TYPE_CHECKING:
    from ._screen import Measured


@dataclass(frozen=True)
class Figure:
    """One map for the stage; `map` is a data URI that covers what the network saw."""

    title: str
    detail: str
    map: str
    signed: bool


CHOOSE = (
    '<label class="icam-choose"><input type="file" accept="image/*" aria-label="Choose a photograph">'
    "<span>{text}</span></label>"
)
_POSITIVE = '<div class="icam-scale"><span>no evidence</span><i></i><span>most</span></div>'
_SIGNED = '<div class="icam-scale icam-signed"><span>against</span><i></i><span>for</span></div>'
ALL_LAYERS = "All layers, fused"
_EXAMPLE = '<button type="button" class="icam-plain" data-example>or try the example</button>'


def empty(example: bool) -> str:
    """The stage before there is a photograph."""
    return (
        '<div class="icam-drop">'
        "<p><strong>Drop a photograph here</strong></p>"
        f"{CHOOSE.format(text='Choose a photograph')}"
        f"{_EXAMPLE if example else ''}"
        '<p class="icam-hint">JPEG, PNG or WebP; paste works too. It stays on this server, in memory, '
        "and is forgotten after half an hour.</p></div>"
    )


def stage(size: tuple[int, int], region: tuple[float, float, float, float], figures: Sequence[Figure]) -> str:
    """The maps over the photograph, which the page holds as the CSS variable --icam-photograph.

    Args:
        size: (width, height) of the photograph.
        region: of it, what the network saw: (left, top, right, bottom).
        figures: one map, or two to stand side by side.
    """
    width, height = size
    left, top, right, bottom = region
    place = (
        f"left:{left / width:.4%};top:{top / height:.4%};"
        f"width:{(right - left) / width:.4%};height:{(bottom - top) / height:.4%}"
    )
    drawn = "".join(
        f'<figure><div class="icam-photograph" style="--ratio:{width / height:.5f}" role="img" '
        f'aria-label="Map for {escape(each.title)} over the photograph">'
        f'<div class="icam-seen" style="{place}"><img src="{each.map}" alt=""></div></div>'
        f"<figcaption><strong>{escape(each.title)}</strong><span>{escape(each.detail)}</span></figcaption>"
        f"{_SIGNED if each.signed else _POSITIVE}</figure>"
        for each in figures
    )
    many = " icam-two" if len(figures) > 1 else ""
    return f'<div class="icam-maps{many}">{drawn}</div>{CHOOSE.format(text="Another photograph")}'


def profile(explanation: Explanation, chosen: int | None) -> str:
    """The weight of each layer as a bar to choose it by; radio buttons, so that arrow keys walk along them."""
    if not explanation.layers:
        return '<p class="icam-hint">The map of this method is not made of layers.</p>'
    layers = explanation.layers
    weights = _heights([float(each.weight[0]) for each in layers])
    gradients = _heights([float(each.gradient_score[0]) for each in layers])
    activations = _heights([float(each.activation_score[0]) for each in layers])
    bars = "".join(
        f'<label><input type="radio" name="icam-layer" value="{index}" aria-label="{escape(said(index, layer))}"'
        f"{' checked' if index == chosen else ''}>"
        f'<i class="icam-bar" style="height:{weights[index]:.1%}"></i>'
        f'<i class="icam-gradient" style="bottom:{gradients[index]:.1%}"></i>'
        f'<i class="icam-activation" style="bottom:{activations[index]:.1%}"></i></label>'
        for index, layer in enumerate(layers)
    )
    everything = (
        f'<label class="icam-all"><input type="radio" name="icam-layer" value="-1" aria-label="{ALL_LAYERS}"'
        f"{' checked' if chosen is None else ''}><span>{ALL_LAYERS}</span></label>"
    )
    now = ALL_LAYERS if chosen is None else said(chosen, layers[chosen])
    return (
        f'<fieldset class="icam-profile"><legend>Which layer mattered? Choose one to see its map.</legend>{everything}'
        f'<div class="icam-bars">{bars}</div>'
        '<div class="icam-ends"><span>near the photograph</span><span>near the answer</span></div>'
        f'<output>{escape(now)}</output><div class="icam-key"><span><i class="icam-bar"></i>weight</span>'
        '<span><i class="icam-gradient"></i>gradient score</span>'
        '<span><i class="icam-activation"></i>activation score</span>'
        "<span>each to its own scale</span></div></fieldset>"
    )


def _heights(values: Sequence[float]) -> list[float]:
    """Shares of the height, the largest value below its top."""
    largest = max(values) or 1.0
    return [0.95 * value / largest for value in values]


def said(index: int, layer: Layer) -> str:
    """A layer in one line."""
    size = " x ".join(map(str, layer.map.shape[1:]))
    return f"Layer {index + 1}: {layer.name}, {size}, weight {float(layer.weight[0]):.1%}"


def numbers(maps: Sequence[tuple[str, float, Explanation]]) -> str:
    """How the score of each map's class splits: title, probability, explanation."""
    return '<div class="icam-numbers">' + "".join(_score(*each) for each in maps) + "</div>"


def _score(title: str, probability: float, explanation: Explanation) -> str:
    parts = explanation.completeness
    split = {
        "from the photograph": float(parts.input[0]),
        "from biases": float(parts.bias[0]),
        "remainder": float(parts.remainder[0]),
    }
    largest = max(map(abs, split.values())) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="icam-split">'
        f'<i class="icam-{"minus" if value < 0 else "plus"}" style="width:{abs(value) / largest / 2:.1%}"></i></td>'
        f"<td>{value:+.2f}</td></tr>"
        for name, value in split.items()
    )
    high = float((explanation.map[0] > 0.5).float().mean())
    return (
        f"<table><caption>{escape(title)}, {probability:.1%}: "
        f"score {float(parts.score[0]):.2f} splits into</caption>{rows}"
        f'<tr><th scope="row">area above half</th><td></td><td>{high:.0%}</td></tr></table>'
    )


PARTS = (
    "The score is the logit of the class. The remainder comes from clipping, gates and smooth activations, which split "
    "into no parts."
)


def curves(found: Sequence[Measured]) -> str:
    """Insertion and deletion as curves, with their areas."""
    left, top, width, height = 34, 8, 276, 120
    drawn = []
    for number, each in enumerate(found):
        for kind, values in (("insertion", each.inserted), ("deletion", each.deleted)):
            points = " ".join(
                f"{left + width * at / (len(values) - 1):.1f},{top + height * (1 - value):.1f}"
                for at, value in enumerate(values)
            )
            drawn.append(f'<polyline class="icam-{kind} icam-line{number}" points="{points}"/>')
    grid = "".join(
        f'<line x1="{left}" x2="{left + width}" y1="{top + height * (1 - at):.1f}" y2="{top + height * (1 - at):.1f}"/>'
        f'<text x="{left - 5}" y="{top + height * (1 - at) + 3:.1f}" text-anchor="end">{at:.0%}</text>'
        for at in (0, 0.5, 1)
    )
    across = "".join(
        f'<text x="{left + width * at:.1f}" y="{top + height + 13}" text-anchor="{anchor}">{at:.0%}</text>'
        for at, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    rows = "".join(
        f'<tr><th scope="row"><svg class="icam-sample" viewBox="0 0 20 4" aria-hidden="true">'
        f'<line class="icam-line{number}" x1="0" x2="20" y1="2" y2="2"/></svg>{escape(each.title)}</th>'
        f"<td>{each.insertion:.3f}</td><td>{each.deletion:.3f}</td><td>{each.insertion - each.deletion:+.3f}</td></tr>"
        for number, each in enumerate(found)
    )
    return (
        '<div class="icam-curves">'
        f'<svg viewBox="0 0 320 156" role="img" aria-label="Probability as pixels are shown or hidden">{grid}{across}'
        f'<text x="{left + width / 2}" y="153" text-anchor="middle">share of pixels, highest of the map first</text>'
        f"{''.join(drawn)}</svg>"
        '<table><thead><tr><th scope="col">area under the curve</th>'
        '<th scope="col" class="icam-insertion">insertion ↑</th><th scope="col" class="icam-deletion">deletion ↓</th>'
        f'<th scope="col">difference ↑</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def photograph(uri: str) -> str:
    """A style that gives the page the photograph, once, however often the maps over it change."""
    return f'<style>:root{{--icam-photograph:url("{uri}")}}</style>'
