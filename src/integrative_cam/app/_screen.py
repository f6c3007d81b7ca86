"""From what is selected on the page to what it shows; needs no server."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .._choices import PROBABILITY_TASKS
from ..errors import InputError, TargetError
from ..evaluate import deletion_curve, insertion_curve
from ..evaluate._probabilities import TargetAgainstNone
from ..explanation import Explanation
from ..models._image import encode_image
from ..query import area_above_half, score_parts, short_name
from ..recipe import Recipe
from ..render import coloured, overlay, presented_layer
from ..render._comparison import side_by_side
from ..render._parts import layer_facts
from ..render._sheet import DPI, png
from ..render._templates import data_uri, environment
from ._choice import Choice, layer_index, python_lines, recipe_of
from ._session import Session

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TOP = 5
MAP_SIDE = 320
"""Longer side of a map in pixels as it is sent to the browser, which stretches it over the photograph."""
STEPS = 16
"""Steps of insertion and deletion, which run the network 34 times."""
COMPARE = ("one map", "two classes", "two methods")
NOTES = {
    "multi-label": "The probabilities are of labels that do not exclude each other, so they do not sum to 100 %.",
    "regression": "The network gives values, not probabilities.",
}
"""What a visitor should know of the numbers, by the network's task."""


@cache
def macros() -> Any:
    """The parts of the page that are not form fields, as Jinja macros, which escape all text."""
    return environment("integrative_cam.app").get_template("markup.html.jinja").module


@dataclass(frozen=True)
class Selection:
    """What is selected on the page. `layer`: the name of the layer that is shown instead of the fused map."""

    network: str
    target: int
    method: str
    recipe: Recipe | None
    compare: str = COMPARE[0]
    other_target: int | None = None
    other_method: str | None = None
    layer: str | None = None

    def choices(self) -> list[Choice]:
        """One map, or two that differ in class or method; the other method has its own recipe."""
        first = Choice(self.network, self.target, self.method, self.recipe)
        if self.compare == "two classes" and self.other_target is not None:
            return [first, replace(first, target=self.other_target)]
        if self.compare == "two methods" and self.other_method is not None:
            return [first, replace(first, method=self.other_method, recipe=recipe_of(self.other_method))]
        return [first]


@dataclass(frozen=True)
class ShownMap:
    """One map on the screen: its explanation, its title, the predicted value of its class, and the layer shown."""

    choice: Choice
    title: str
    value: str
    explanation: Explanation
    layer: int | None

    @property
    def detail(self) -> str:
        """What is written beside the title."""
        if self.layer is None:
            return self.value
        return f"layer {self.layer + 1}, {self.explanation.layers[self.layer].name}"

    @property
    def signed(self) -> bool:
        """Whether the map has negative values, as that of a layer."""
        return self.layer is not None

    def map(self) -> Float[Tensor, "height width"]:
        """The map as it is shown."""
        if self.layer is None:
            return self.explanation.map[0]
        return presented_layer(self.explanation, self.layer)[0]


@dataclass(frozen=True)
class Screen:
    """The maps of a selection, and everything that the page shows of them."""

    session: Session
    selection: Selection
    maps: tuple[ShownMap, ...]

    def stage(self) -> str:
        """HTML of the maps over the photograph, which the page holds as the CSS variable --icam-photograph."""
        seen, (width, height) = self.session.seen(self.selection.network), self.session.photograph.shown.size
        left, top, right, bottom = seen.region
        place = (
            f"left:{left / width:.4%};top:{top / height:.4%};"
            f"width:{(right - left) / width:.4%};height:{(bottom - top) / height:.4%}"
        )
        sides = seen.tensor.shape[:1:-1]
        scale = min(1, MAP_SIDE / max(sides))
        size = (max(1, round(sides[0] * scale)), max(1, round(sides[1] * scale)))
        figures = []
        for shown in self.maps:
            # The colours alone, transparent without evidence.
            colours = coloured(shown.map(), size, (0, 0, *size), shown.signed)
            uri = data_uri(colours, quality=80, method=0, alpha_quality=80)
            figures.append({"title": shown.title, "detail": shown.detail, "map": uri, "signed": shown.signed})
        return str(macros().stage(place, width / height, figures))

    def profile(self) -> str:
        """HTML of the first map's layers as bars to choose from; radio buttons, so that arrow keys walk along them."""
        explanation = self.maps[0].explanation
        bars: list[dict[str, str]] = []
        for index in range(len(explanation.layers)):
            name, size, weight = layer_facts(explanation, index, 0)
            bars.append({"text": f"Layer {index + 1}: {name}, {size}, weight {weight:.1%}"})
        for score in ("weight", "gradient_score", "activation_score"):
            values = [float(getattr(layer, score)[0]) for layer in explanation.layers]
            for bar, value in zip(bars, values, strict=True):
                bar[score] = f"{0.95 * value / (max(values) or 1):.1%}"  # the largest a little below the top
        return str(macros().profile(bars, self.maps[0].layer))

    def numbers(self) -> str:
        """HTML of how the maps' scores split."""
        tables = []
        for shown in self.maps:
            score, *parts = (values[0] for values in score_parts(shown.explanation).values())
            largest = max(map(abs, parts)) or 1.0
            rows = [
                {"name": name, "value": value, "width": f"{abs(value) / largest / 2:.1%}"}
                for name, value in zip(("from the photograph", "from biases", "remainder"), parts, strict=True)
            ]
            area = f"{float(area_above_half(shown.explanation.map)[0]):.0%}"
            title = f"{shown.title}, {shown.value}"
            tables.append({"title": title, "score": f"{score:.2f}", "rows": rows, "area": area})
        return str(macros().numbers(tables, NOTES.get(self.session.network(self.selection.network).task, "")))

    def curves(self) -> str:
        """HTML of insertion and deletion as curves, with their areas; see `measure`."""

        def points(values: Sequence[float]) -> str:
            return " ".join(
                f"{34 + 276 * at / (len(values) - 1):.1f},{128 - 120 * value:.1f}" for at, value in enumerate(values)
            )

        lines = [
            {**line, "points": {"insertion": points(line["inserted"]), "deletion": points(line["deleted"])}}
            for line in self.measure()
        ]
        return str(macros().curves(lines))

    def code(self) -> str:
        """The Python lines that make the maps again."""
        name, network = self.selection.network, self.session.network(self.selection.network)
        return python_lines(
            # The recipe that was used explains the logits of labels, and values.
            [replace(shown.choice, recipe=shown.explanation.recipe) for shown in self.maps],
            self.session.offer[name].files,
            self.session.photograph.name,
            [network.label(shown.choice.target) for shown in self.maps],
            [None if shown.layer is None else self.selection.layer for shown in self.maps],
        )

    def picture(self, opacity: float = 1) -> bytes:
        """PNG of the maps, as large as the photograph is kept; `opacity` of the map, 0 to 1."""
        photograph, region = self.session.photograph.shown, self.session.seen(self.selection.network).region
        drawn = []
        for shown in self.maps:
            title = f"{shown.title}, {shown.detail}" if shown.signed else shown.title
            drawing = overlay(shown.map(), photograph, region, shown.signed)
            drawn.append((title, Image.blend(photograph, drawing, opacity)))
        if len(drawn) > 1:
            return png(side_by_side([("photograph", photograph), *drawn]), DPI)
        return encode_image(drawn[0][1], "PNG")

    def archive(self) -> bytes:
        """A zip file with a folder of `Explanation.save` for each map, and the Python lines."""
        stored = io.BytesIO()
        with TemporaryDirectory() as folder, zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, shown in zip(("explanation", "other"), self.maps, strict=False):
                for file in sorted(shown.explanation.save(Path(folder) / name).iterdir()):
                    packed.write(file, f"{name}/{file.name}")
            packed.writestr("again.py", self.code())
        return stored.getvalue()

    def measure(self) -> list[dict[str, Any]]:
        """Insertion and deletion of the fused maps: areas, and the probability at each step."""
        network = self.session.network(self.selection.network)
        if network.task not in PROBABILITY_TASKS:
            raise InputError(f"Insertion and deletion follow a probability, but {network.name} gives values.")
        measured = []
        for shown in self.maps:
            model = TargetAgainstNone(network.model, shown.choice.target, network.task)
            arguments = (model, self.session.seen(self.selection.network).tensor, shown.explanation.map, 1, STEPS)
            inserted, deleted = insertion_curve(*arguments)[0], deletion_curve(*arguments)[0]
            areas = {
                name: float(torch.trapezoid(curve, dx=1 / STEPS))
                for name, curve in (("insertion", inserted), ("deletion", deleted))
            }
            curves = {"inserted": inserted.tolist(), "deleted": deleted.tolist()}
            measured.append({"title": shown.title, **areas, **curves})
        return measured

    def record(self) -> dict[str, Any]:
        """The numbers of the first map as plain values."""
        shown, network = self.maps[0], self.session.network(self.selection.network)
        ranking, explanation = self.session.ranking(self.selection.network), shown.explanation
        ranked = ranking.find(shown.choice.target)
        return {
            "network": self.selection.network,
            "method": self.selection.method,
            "recipe": explanation.recipe and explanation.recipe.described(),
            "target": {"index": shown.choice.target, "label": network.label(shown.choice.target)},
            ranking.measure: ranked and ranked.value,
            "top": ranking.as_records(network, TOP),
            "score": {name: values[0] for name, values in score_parts(explanation).items()},
            "layers": [layer.summary for layer in explanation.layers],
            "code": self.code(),
        }


def screen_of(session: Session, selection: Selection) -> Screen:
    """The maps of a selection. The network runs only for a class or for layers that it did not run for before."""
    network, ranking = session.network(selection.network), session.ranking(selection.network)
    maps = []
    for choice in selection.choices():
        if choice.recipe is not None:
            choice.recipe.validate()
        ranked = ranking.find(choice.target)
        if ranked is None:
            count = len(ranking.classes)
            raise TargetError(
                f"{network.name} has {count} classes, 0 to {count - 1}; there is no class {choice.target}."
            )
        explanation = session.explanation(choice)
        value = ranking.as_text(ranked.value) + (" probable" if ranking.measure == "probability" else "")
        layer = layer_index(explanation, selection.layer)
        maps.append(ShownMap(choice, _title(session, selection, choice), value, explanation, layer))
    return Screen(session, selection, tuple(maps))


def _title(session: Session, selection: Selection, choice: Choice) -> str:
    """The class, and what tells the map apart from the other one."""
    label = session.network(selection.network).label
    name = short_name(label(choice.target))
    if selection.compare == "two methods":
        # A method may be compared with itself as it was before its ingredients were changed.
        differs = selection.other_method == selection.method and choice.changes()
        return f"{name}, {choice.method}{', changed' if differs else ''}"
    # Some classes share a name: ImageNet has two cranes.
    alike = [other for other in selection.choices() if short_name(label(other.target)) == name]
    return f"{name} ({choice.target})" if len(alike) > 1 else name
