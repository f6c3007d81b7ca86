"""From what is chosen on the page to what is shown on it; needs no server."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ..errors import TargetError
from ..evaluate import deletion_curve, insertion_curve
from ..explanation import Explanation
from ..render import presented, presented_layer
from . import _markup as markup
from ._choice import Choice, Switches, changed, layer_of, lines
from ._pictures import kept_picture, map_uri
from ._session import Session

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..models import Network

TOP = 5
STEPS = 16
"""Of insertion and deletion: 34 runs of the network."""
COMPARE = ("one map", "two classes", "two methods")


@dataclass(frozen=True)
class Screen:
    """What is chosen. `layer`: the name of the layer that is shown instead of the fused map."""

    network: str
    target: int
    method: str
    switches: Switches | None
    raw: bool = False
    compare: str = COMPARE[0]
    other_target: int | None = None
    other_method: str | None = None
    layer: str | None = None

    def choices(self) -> list[Choice]:
        """One map, or two that differ in class or method; the other method has its own ingredients."""
        first = Choice(self.network, self.target, self.method, self.switches, self.raw)
        if self.compare == "two classes" and self.other_target is not None:
            return [first, replace(first, target=self.other_target)]
        if self.compare == "two methods" and self.other_method is not None:
            return [first, replace(first, method=self.other_method, switches=None)]
        return [first]


@dataclass(frozen=True)
class Shown:
    """The parts of the page: HTML, and the Python lines."""

    stage: str
    profile: str
    numbers: str
    code: str


def show(visit: Session, screen: Screen) -> Shown:
    """Everything for a choice; the network runs only for a class or for layers that it did not run for before.

    Raises:
        CamError: the choice does not fit the network.
    """
    maps = titled(visit, screen)
    return Shown(
        stage=_stage(visit, screen, maps),
        profile=markup.profile(maps[0].explanation, maps[0].layer),
        numbers=markup.numbers([(each.title, each.probability, each.explanation) for each in maps]),
        code=_code(visit, screen, maps),
    )


def code(visit: Session, screen: Screen) -> str:
    """The Python lines that make what is on the screen again."""
    return _code(visit, screen, titled(visit, screen))


def stage(visit: Session, screen: Screen) -> str:
    """The maps over the photograph alone, such as after a layer was clicked."""
    return _stage(visit, screen, titled(visit, screen))


@dataclass(frozen=True)
class Titled:
    """A map on the screen with what is said of it."""

    choice: Choice
    title: str
    probability: float
    explanation: Explanation
    layer: int | None

    @property
    def layer_name(self) -> str | None:
        return None if self.layer is None else self.explanation.layers[self.layer].name

    def map(self) -> Float[Tensor, "height width"]:
        """As it is shown; a layer's is signed."""
        if self.layer is None:
            return presented(self.explanation, self.choice.raw)[0]
        return presented_layer(self.explanation, self.layer, self.choice.raw)[0]


def titled(visit: Session, screen: Screen) -> list[Titled]:
    """The maps of a choice, told apart by their titles."""
    network, chances = visit.network(screen.network), probabilities(visit.logits(screen.network))
    count, found = len(chances), []
    for choice in screen.choices():
        if not 0 <= choice.target < count:
            raise TargetError(
                f"{network.name} has {count} classes, 0 to {count - 1}; there is no class {choice.target}."
            )
        explanation = visit.explanation(choice)
        title = _title(network, screen, choice)
        found.append(
            Titled(choice, title, float(chances[choice.target]), explanation, layer_of(explanation, screen.layer))
        )
    return found


def _title(network: Network, screen: Screen, choice: Choice) -> str:
    name = short(network.label(choice.target))
    if screen.compare == "two methods":
        # A method may be compared with itself as it was before its switches were changed.
        differs = screen.other_method == screen.method and changed(choice)
        return f"{name}, {choice.method}{', changed' if differs else ''}"
    # Some classes share a name: ImageNet has two cranes.
    alike = [name for each in screen.choices() if short(network.label(each.target)) == name]
    return f"{name} ({choice.target})" if len(alike) > 1 else name


def top_classes(visit: Session, network: str, count: int = TOP) -> list[tuple[int, float]]:
    """The classes with the highest probabilities, best first."""
    chances = probabilities(visit.logits(network))
    best = chances.topk(min(count, len(chances)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def probabilities(logits: Float[Tensor, "classes"]) -> Float[Tensor, "classes"]:
    """Softmax; a single logit's sigmoid."""
    at_least_float32 = logits.double()
    return at_least_float32.softmax(0) if len(at_least_float32) > 1 else at_least_float32.sigmoid()


def short(label: str) -> str:
    """The first of a class's synonyms."""
    return label.split(",")[0]


@dataclass(frozen=True)
class Measured:
    """Insertion and deletion of one map: areas, and the probability as pixels come or go."""

    title: str
    insertion: float
    deletion: float
    inserted: tuple[float, ...]
    deleted: tuple[float, ...]


def measure(visit: Session, screen: Screen) -> list[Measured]:
    """Insertion and deletion of the maps on the screen, unsmoothed; `evaluate.faithfulness` says how.

    Raises:
        InputError: the network has fewer than two classes.
    """
    network, tensor = visit.network(screen.network), visit.seen(screen.network).tensor
    found = []
    for each in titled(visit, replace(screen, layer=None)):
        arguments = (network.model, tensor, each.explanation.map, each.choice.target, STEPS)
        inserted, deleted = insertion_curve(*arguments)[0], deletion_curve(*arguments)[0]
        found.append(
            Measured(each.title, _area(inserted), _area(deleted), tuple(inserted.tolist()), tuple(deleted.tolist()))
        )
    return found


def _area(curve: Float[Tensor, "point"]) -> float:
    return float(torch.trapezoid(curve, dx=1 / (len(curve) - 1)))


def picture(visit: Session, screen: Screen, opacity: float = 1) -> bytes:
    """PNG of what is on the screen, as large as the photograph is kept; `opacity` of the map, 0 to 1."""
    maps = titled(visit, screen)
    drawn = [
        (each.title if each.layer is None else f"{each.title}, {_detail(each)}", each.map(), each.layer is not None)
        for each in maps
    ]
    return kept_picture(drawn, visit.photograph.shown, visit.seen(screen.network), opacity)


def archive(visit: Session, screen: Screen) -> bytes:
    """A zip file of what `Explanation.save` writes, a folder for each map, and the Python lines."""
    stored = io.BytesIO()
    with TemporaryDirectory() as folder, zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as packed:
        for number, each in enumerate(titled(visit, screen)):
            place = Path(folder) / ("explanation" if number == 0 else "other")
            each.explanation.save(place)
            for file in sorted(place.iterdir()):
                packed.write(file, f"{place.name}/{file.name}")
        packed.writestr("again.py", code(visit, screen))
    return stored.getvalue()


def record(visit: Session, screen: Screen) -> dict[str, Any]:
    """The numbers of the first map, as plain values."""
    each = titled(visit, screen)[0]
    network, explanation = visit.network(screen.network), each.explanation
    parts = explanation.completeness
    recipe = explanation.recipe
    return {
        "network": screen.network,
        "method": screen.method,
        "recipe": recipe and recipe.described(),
        "target": {"index": each.choice.target, "label": network.label(each.choice.target)},
        "probability": each.probability,
        "top": [
            {"index": index, "label": network.label(index), "probability": probability}
            for index, probability in top_classes(visit, screen.network)
        ],
        "score": {
            "score": float(parts.score[0]),
            "input": float(parts.input[0]),
            "bias": float(parts.bias[0]),
            "remainder": float(parts.remainder[0]),
        },
        "layers": [layer.summary for layer in explanation.layers],
        "code": code(visit, screen),
    }


def _stage(visit: Session, screen: Screen, maps: Sequence[Titled]) -> str:
    seen, shown = visit.seen(screen.network), visit.photograph.shown
    return markup.stage(
        shown.size,
        seen.region,
        [
            markup.Figure(
                title=each.title,
                detail=_detail(each),
                map=map_uri(each.map(), seen, signed=each.layer is not None),
                signed=each.layer is not None,
            )
            for each in maps
        ],
    )


def _code(visit: Session, screen: Screen, maps: Sequence[Titled]) -> str:
    network = visit.network(screen.network)
    return lines(
        [each.choice for each in maps],
        visit.offer[screen.network].files,
        visit.photograph.name,
        [network.label(each.choice.target) for each in maps],
        [each.layer_name for each in maps],
    )


def _detail(each: Titled) -> str:
    if each.layer is None:
        return f"{each.probability:.1%} probable"
    layer = each.explanation.layers[each.layer]
    return f"layer {each.layer + 1}, {layer.name}"
