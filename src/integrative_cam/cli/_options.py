"""Options that several commands share."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .._maps.completeness import BIASES
from .._maps.evidence import AGGREGATIONS
from .._maps.fusion import FUSIONS
from .._maps.readout import READOUTS
from .._maps.weighting import WEIGHTINGS
from .._plan.taps import POLICIES
from ..methods._registry import Method as Way
from ..methods._registry import get_method, list_methods
from ..models import DEFAULT
from ..models._network import TASKS
from ..recipe import Recipe

INGREDIENTS = "Ingredients that differ from the method's"


def _choices(table: dict[str, str]) -> str:
    return "; ".join(f"{name}: {meaning}" for name, meaning in table.items())


def _ingredient(name: str, meaning: str, *old_names: str) -> Any:
    return typer.Option(name, *old_names, help=meaning, rich_help_panel=INGREDIENTS)


Images = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[IMAGE]...", help="Photographs. Without any: the cat that comes with scikit-image."),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=f"{DEFAULT} (bundled), torchvision/NAME, timm/NAME, hf/OWNER/REPOSITORY, hf/FOLDER, FILE.onnx, "
        "FILE.pt2:trusted (torch.export) or FILE.py:FACTORY; the last two can run code.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Local weights: safetensors, or a torch state dict. Without it, the library's pretrained ones."),
]
WeightsOfSeveral = Annotated[
    list[str] | None,
    typer.Option("--weights", help="Local weights: FILE for the only network; MODEL=FILE, repeatable, for several."),
]
Labels = Annotated[Path | None, typer.Option(help="Text file with one class name per line.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="What the output means, where that is not known of the network: "
        f"{'; '.join(f'{name}: {meaning}' for name, meaning in TASKS.items())}."
    ),
]
AIM = "What to explain"


def _aim(*names: str, meaning: str) -> Any:
    return typer.Option(*names, help=meaning, rich_help_panel=AIM)


Target = Annotated[
    str,
    _aim(
        "--target",
        "-t",
        meaning="top1, top3, ... (the network's favourites); a class index or name; several with + between them "
        "(281+282+285), for the sum of their logits. Of segmentation: the class where it is found; of a detector: its "
        "best box; of an image made: a channel.",
    ),
]
Versus = Annotated[
    str | None,
    _aim(
        "--versus",
        meaning="Why the target and not this: a class or several, as in --target; runner-up, the best of the other "
        "classes; or rest, all of them.",
    ),
]
Within = Annotated[
    str | None,
    _aim(
        "--within",
        meaning="A part of the output: a box, LEFT,TOP,RIGHT,BOTTOM in pixels of the photograph, or the file of a mask "
        "of its size, black outside. A detector's box is the one that matches it.",
    ),
]
SimilarTo = Annotated[
    Path | None,
    _aim("--similar-to", meaning="Why it is like this photograph: the cosine of the two outputs."),
]
Probability = Annotated[bool, _aim("--probability", meaning="Explain the class's probability in place of its logit.")]
Step = Annotated[
    int | None, _aim("--step", meaning="Of an output of (step, class): the step, from the end where negative.")
]
Negate = Annotated[bool, _aim("--negate", meaning="Explain what lowers the score in place of what raises it.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Method = Annotated[str, typer.Option(help=f"{', '.join(each.name for each in list_methods())}; see icam methods.")]
TapChoice = Annotated[
    list[str] | None,
    _ingredient(
        "--taps",
        f"Layers to fuse, repeatable. {_choices(POLICIES)}; or a name, glob, module path or resolution (14x14).",
    ),
]
Readout = Annotated[
    str | None,
    _ingredient(
        "--readout",
        f"Smooth function of the score: {', '.join(READOUTS)}. exp saturates evidence as Grad-CAM++ does.",
    ),
]
AggregationChoice = Annotated[str | None, _ingredient("--aggregation", f"{_choices(AGGREGATIONS)}.")]
NegativeShare = Annotated[
    float | None,
    _ingredient("--negative-share", "Share of the evidence against the target to subtract, 0 to 1.", "--negative"),
]
BiasChoice = Annotated[str | None, _ingredient("--bias", f"{_choices(BIASES)}.")]
BiasShare = Annotated[
    float | None, _ingredient("--bias-share", "With --bias layers: their share of the weight, 0 to 1.")
]
WeightingChoice = Annotated[str | None, _ingredient("--weighting", f"Layer weights: {', '.join(WEIGHTINGS)}.")]
WeightExponent = Annotated[
    float | None, _ingredient("--weight-exponent", "Power of the weights; below 1 it flattens them.", "--temper")
]
PathExponent = Annotated[
    float | None,
    _ingredient(
        "--path-exponent", "Power of the share of the network's paths through a layer; 0 ignores paths.", "--branch"
    ),
]
StrideExponent = Annotated[
    float | None,
    _ingredient(
        "--stride-exponent", "Power by which layers finer than half the image's resolution count less.", "--fine"
    ),
]
StageShare = Annotated[
    float | None,
    _ingredient("--stage-share", "Share of the weight that the last layer of each resolution adds, 0 to 1."),
]
Gamma = Annotated[float | None, _ingredient("--gamma", "Power of the finished map; below 1 it lifts weak evidence.")]
Signed = Annotated[
    bool | None,
    _ingredient("--signed/--unsigned", "Fuse signed maps and cut at zero once, or cut each layer's map."),
]
FusionChoice = Annotated[str | None, _ingredient("--fusion", f"{_choices(FUSIONS)}.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def chosen_method(context: typer.Context) -> Way:
    """The method that `--method` names, with the ingredients that the command's other options change.

    Raises:
        RecipeError: no such method, or one without ingredients that could be changed.
    """
    chosen = get_method(context.params["method"])
    given = {field.name: context.params[field.name] for field in fields(Recipe)}
    given["taps"] = tuple(given["taps"] or ()) or None
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(chosen, way=replace(chosen.recipe, **changes)) if changes else chosen
