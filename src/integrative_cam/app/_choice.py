"""Which map the page shows, and the lines of Python that make it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..explanation import Explanation
from ..methods._registry import Method, get_method, list_methods
from ..recipe import Recipe, one_of

NOT_OFFERED = ("scorecam", "ablationcam", "random", "center", "uniform")
"""Methods that take half a minute of a processor, too long for a page that many share, and controls."""


INGREDIENTS = ("readout", "bias", "weighting", "negative_share")
"""The fields of `Recipe` that the page offers."""


@dataclass(frozen=True)
class Choice:
    """One map: which network, class index, method and recipe.

    `recipe` is None for a method that is no recipe.
    """

    network: str
    target: int
    method: str
    recipe: Recipe | None

    def changes(self) -> dict[str, object]:
        """The ingredients that differ from the method's own."""
        own = recipe_of(self.method)
        return (
            {name: value for name, value in vars(self.recipe or own).items() if value != getattr(own, name)}
            if own
            else {}
        )

    def call(self) -> str:
        """The Python expression that computes the explanation from `network` and `view`."""
        own = f"get_method({self.method!r})"
        if self.recipe is None:
            return f"{own}(network.model, view.tensor, target={self.target})"
        arguments = ["network.model", *([] if self.method == "integrative" else [f"{own}.recipe"])]
        arguments += [f"{name}={value!r}" for name, value in self.changes().items()]
        return f"IntegrativeCAM({', '.join(arguments)})(view.tensor, target={self.target})"


def offered(name: str) -> Method:
    """The method of that name, if the page offers it."""
    one_of("method", name, methods_offered())
    return get_method(name)


def recipe_of(method: str) -> Recipe | None:
    """The method's own recipe; None for a method that is no recipe."""
    way = offered(method).way
    return way if isinstance(way, Recipe) else None


def methods_offered() -> list[str]:
    """The names of all methods except NOT_OFFERED."""
    return [method.name for method in list_methods() if method.name not in NOT_OFFERED]


def python_lines(
    choices: Sequence[Choice],
    files: Sequence[str],
    photograph: str,
    labels: Sequence[str],
    layers: Sequence[str | None],
) -> str:
    """A Python script that computes the one or two maps on the page and writes them as pictures.

    `files` are the arguments of `load`, `labels` the maps' classes, and `layers` the layers shown, if any, instead of
    the fused maps.
    """
    calls = [choice.call() for choice in choices]
    needed = [name for name in ("IntegrativeCAM", "get_method") if any(f"{name}(" in call for call in calls)]
    drawn = {"overlay"} | ({"presented_layer"} if any(layers) else set())
    lines = [
        f"from integrative_cam import {', '.join(needed)}",
        "from integrative_cam.models import load, read_image",
        f"from integrative_cam.render import {', '.join(sorted(drawn))}",
        "",
        f"network = load({', '.join(map(repr, files))})",
        f"photograph = read_image({photograph!r})",
        "view = network.preprocessing(photograph)",
    ]
    for result, call, label, layer in zip(("explanation", "other"), calls, labels, layers, strict=False):
        # A label may hold line breaks.
        lines += ["", f"{result} = {call}  # {' '.join(label.split())}"]
        if layer is None:
            drawing = f"{result}.map[0], photograph, view.region"
        else:
            lines += [f"index = [layer.name for layer in {result}.layers].index({layer!r})"]
            drawing = f"presented_layer({result}, index)[0], photograph, view.region, signed=True"
        lines += [f'overlay({drawing}).save("{result}.png")']
    return "\n".join(lines) + "\n"


def layer_index(explanation: Explanation, name: str | None) -> int | None:
    """The index of a layer; None for no name, or one that this explanation does not have."""
    return next((index for index, layer in enumerate(explanation.layers) if layer.name == name), None)
