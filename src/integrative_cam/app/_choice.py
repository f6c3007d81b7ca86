"""What a map on the page is made of, and the Python lines that make it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from ..explanation import Explanation
from ..methods._registry import Method, get_method, list_methods
from ..recipe import Recipe, one_of

SLOW = ("scorecam", "ablationcam")
"""Half a minute of a processor each: not for a page that many share."""
CONTROLS = ("random", "center", "uniform")


@dataclass(frozen=True)
class Switches:
    """The ingredients that the page offers; see `Recipe`."""

    readout: str
    bias: str
    weighting: str
    negative_share: float

    @staticmethod
    def of(recipe: Recipe) -> Switches:
        """Those of a recipe."""
        return Switches(**{each.name: getattr(recipe, each.name) for each in fields(Switches)})


@dataclass(frozen=True)
class Choice:
    """One map: of which network, for which class, by which method with which switches.

    `switches` None: the method's own. `raw`: not smoothed for showing.
    """

    network: str
    target: int
    method: str = "integrative"
    switches: Switches | None = None
    raw: bool = False

    def recipe(self) -> Recipe | None:
        """The ingredients; None for a method that is no recipe.

        Raises:
            RecipeError: a name is unknown, or a value out of range.
        """
        own = offered(self.method).way
        if not isinstance(own, Recipe):
            return None
        recipe = own if self.switches is None else replace(own, **asdict(self.switches))
        recipe.validate()
        return recipe


def offered(name: str) -> Method:
    """The method of that name, if the page offers it.

    Raises:
        RecipeError: it does not.
    """
    one_of("method", name, methods_offered())
    return get_method(name)


def methods_offered() -> list[str]:
    """All methods but the slow ones and the controls."""
    return [each.name for each in list_methods() if each.name not in SLOW + CONTROLS]


def changed(choice: Choice) -> dict[str, object]:
    """The ingredients that differ from the method's own."""
    own, recipe = offered(choice.method).way, choice.recipe()
    if recipe is None:
        return {}
    assert isinstance(own, Recipe)
    return {name: value for name, value in vars(recipe).items() if value != getattr(own, name)}


def lines(
    shown: Sequence[Choice],
    files: Sequence[str],
    photograph: str,
    names: Sequence[str],
    layers: Sequence[str | None],
) -> str:
    """Python that makes the maps on the screen from the photograph and writes them as pictures.

    Args:
        shown: one or two maps of one network.
        files: arguments of `load`: the network's name, and its file of weights if it has one.
        photograph: the file's name.
        names: the classes', one per map.
        layers: the layer that is shown instead of the fused map, one per map.
    """
    made = [_made(choice) for choice in shown]
    needed = [name for name in ("IntegrativeCAM", "method") if any(f"{name}(" in each for each in made)]
    drawn = {"overlay"} | {"presented" if layer is None else "presented_layer" for layer in layers}
    text = [
        f"from integrative_cam import {', '.join(needed)}",
        "from integrative_cam.models import load, read_image",
        f"from integrative_cam.render import {', '.join(sorted(drawn))}",
        "",
        f"network = load({', '.join(map(repr, files))})",
        f"photograph = read_image({photograph!r})",
        "view = network.preprocessing(photograph)",
    ]
    results = ["explanation", "other"][: len(shown)]
    for result, choice, call, name, layer in zip(results, shown, made, names, layers, strict=True):
        raw = ", raw=True" if choice.raw else ""
        # A label may hold line breaks.
        text += ["", f"{result} = {call}  # {' '.join(name.split())}"]
        if layer is None:
            picture = f"presented({result}{raw})[0], photograph, view.region"
        else:
            text += [f"index = [layer.name for layer in {result}.layers].index({layer!r})"]
            picture = f"presented_layer({result}, index{raw})[0], photograph, view.region, signed=True"
        text += [f'overlay({picture}).save("{result}.png")']
    return "\n".join(text) + "\n"


def _made(choice: Choice) -> str:
    arguments = f"(view.tensor, target={choice.target})"
    if choice.recipe() is None:
        return f"get_method({choice.method!r})(network.model, view.tensor, target={choice.target})"
    ingredients = ["network.model"]
    if choice.method != "integrative":
        ingredients.append(f"get_method({choice.method!r}).recipe")
    ingredients += [f"{name}={value!r}" for name, value in changed(choice).items()]
    return f"IntegrativeCAM({', '.join(ingredients)}){arguments}"


def layer_of(explanation: Explanation, name: str | None) -> int | None:
    """The place of a layer; None for no name, or one that this explanation does not have."""
    return next((index for index, layer in enumerate(explanation.layers) if layer.name == name), None)
