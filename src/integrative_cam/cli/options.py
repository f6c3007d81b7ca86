"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..bias import BIASES
from ..fusion import FUSIONS
from ..models import DEFAULT
from ..readout import READOUTS
from ..recipe import Recipe
from ..taps import POLICIES
from ..weighting import WEIGHTINGS

INGREDIENTS = "Ingredients of the method"
_default = Recipe()


def _choices(table: dict[str, str]) -> str:
    return "; ".join(f"{name}: {meaning}" for name, meaning in table.items())


# typer reads these at run time: Optional, since `X | None` needs newer versions of it.
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=f"{DEFAULT} (bundled), torchvision/NAME, timm/NAME, or FILE.py:FACTORY, whose code is run.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Local weights: safetensors, or a torch state dict. Without it, the library's pretrained ones."),
]
TapChoice = Annotated[
    list[str] | None,
    typer.Option(
        "--taps",
        help=f"Layers to fuse, repeatable. {_choices(POLICIES)}; or a name, glob, module path or resolution (14x14).",
        rich_help_panel=INGREDIENTS,
        show_default="activations",
    ),
]
Readout = Annotated[
    str,
    typer.Option(
        help=f"Smooth function of the score: {', '.join(READOUTS)}. exp saturates evidence as Grad-CAM++ does.",
        rich_help_panel=INGREDIENTS,
    ),
]
AggregationChoice = Annotated[
    str,
    typer.Option(
        help="position: evidence stays where it arose; channel: one weight per channel (Grad-CAM++).",
        rich_help_panel=INGREDIENTS,
    ),
]
Negative = Annotated[
    float,
    typer.Option(help="Share of the evidence against the target to subtract, 0 to 1.", rich_help_panel=INGREDIENTS),
]
BiasChoice = Annotated[str, typer.Option("--bias", help=f"{_choices(BIASES)}.", rich_help_panel=INGREDIENTS)]
BiasShare = Annotated[
    float, typer.Option(help="With --bias layers: their share of the weight, 0 to 1.", rich_help_panel=INGREDIENTS)
]
WeightingChoice = Annotated[
    str,
    typer.Option("--weighting", help=f"Layer weights: {', '.join(WEIGHTINGS)}.", rich_help_panel=INGREDIENTS),
]
Temper = Annotated[
    float, typer.Option(help="Power of the weights; below 1 it flattens them.", rich_help_panel=INGREDIENTS)
]
Signed = Annotated[
    bool,
    typer.Option(
        "--signed/--unsigned",
        help="Fuse signed maps and cut at zero once, or cut each layer's map.",
        rich_help_panel=INGREDIENTS,
    ),
]
FusionChoice = Annotated[str, typer.Option("--fusion", help=f"{_choices(FUSIONS)}.", rich_help_panel=INGREDIENTS)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
