"""The parts of the page that are not form fields, from the macros in markup.html.jinja, which escape all text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ..explanation import Explanation
from ..query import area_above_half, score_parts
from ..render._templates import environment

if TYPE_CHECKING:
    from ._screen import Measured


@dataclass(frozen=True)
class Figure:
    """One map for the stage; `map` is a data URI that covers what the network saw."""

    title: str
    detail: str
    map: str
    signed: bool


PARTS = (
    "The score is the network's output for the class, before any softmax or sigmoid. The remainder comes from "
    "clipping, gates and smooth activations, which cannot be split."
)


@cache
def _macros() -> Any:
    return environment("integrative_cam.app").get_template("markup.html.jinja").module


def empty(example: bool) -> str:
    """The stage before there is a photograph."""
    return str(_macros().empty(example))


def stage(size: tuple[int, int], region: tuple[float, float, float, float], figures: Sequence[Figure]) -> str:
    """The maps over the photograph, which the page holds as the CSS variable --icam-photograph.

    Args:
        size: (width, height) of the photograph.
        region: of it, what the network saw: (left, top, right, bottom).
        figures: one map, or two to stand side by side.
    """
    (width, height), (left, top, right, bottom) = size, region
    shares = {
        "left": left / width, "top": top / height, "width": (right - left) / width, "height": (bottom - top) / height
    }  # fmt: skip
    place = ";".join(f"{name}:{share:.4%}" for name, share in shares.items())
    return str(_macros().stage(place, width / height, figures))


def profile(explanation: Explanation, chosen: int | None) -> str:
    """The weight of each layer as a bar to choose it by; radio buttons, so that arrow keys walk along them."""
    layers = explanation.layers
    heights = {
        name: _heights([float(getattr(layer, attribute)[0]) for layer in layers])
        for name, attribute in (
            ("weight", "weight"),
            ("gradient", "gradient_score"),
            ("activation", "activation_score"),
        )
    }
    bars = [
        {
            "text": f"Layer {index + 1}: {layer.name}, {' x '.join(map(str, layer.map.shape[1:]))}, "
            f"weight {float(layer.weight[0]):.1%}",
            **{name: f"{values[index]:.1%}" for name, values in heights.items()},
        }
        for index, layer in enumerate(layers)
    ]
    return str(_macros().profile(bars, chosen))


def _heights(values: Sequence[float]) -> list[float]:
    """Shares of the height, the largest value a little below the top."""
    largest = max(values, default=0) or 1.0
    return [0.95 * value / largest for value in values]


def numbers(maps: Sequence[tuple[str, Explanation]], note: str = "") -> str:
    """How each map's score splits, under its title, and a note on all of the numbers."""
    tables = []
    for title, explanation in maps:
        score, *parts = (values[0] for values in score_parts(explanation).values())
        largest = max(map(abs, parts)) or 1.0
        rows = [
            {"name": name, "value": value, "width": f"{abs(value) / largest / 2:.1%}"}
            for name, value in zip(("from the photograph", "from biases", "remainder"), parts, strict=True)
        ]
        area = f"{float(area_above_half(explanation.map)[0]):.0%}"
        tables.append({"title": title, "score": f"{score:.2f}", "rows": rows, "area": area})
    return str(_macros().numbers(tables, note))


def curves(measured: Sequence[Measured]) -> str:
    """Insertion and deletion as curves, with their areas."""

    def points(values: Sequence[float]) -> str:
        return " ".join(
            f"{34 + 276 * at / (len(values) - 1):.1f},{128 - 120 * value:.1f}" for at, value in enumerate(values)
        )

    lines = [
        {**vars(each), "points": {"insertion": points(each.inserted), "deletion": points(each.deleted)}}
        for each in measured
    ]
    return str(_macros().curves(lines))


def photograph(uri: str) -> str:
    """A style that gives the page the photograph, once, however often the maps over it change."""
    return f'<style>:root{{--icam-photograph:url("{uri}")}}</style>'
