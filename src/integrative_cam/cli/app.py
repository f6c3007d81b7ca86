"""The commands of `icam`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..models import DEFAULT
from ..recipe import Recipe
from . import options
from .explain import Request, run
from .taps import list_taps

_default = Recipe()

app = typer.Typer(
    help="Ask a convolutional network why: a class activation map fused over all of its layers.",
    epilog="First steps:  icam explain   |   icam explain photo.jpg --target top3   |   icam taps --model resnet18",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"icam {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def explain(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="Photographs. Without any: the cat that comes with scikit-image."),
    ] = None,
    model: options.Model = DEFAULT,
    weights: options.Weights = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with one class name per line.")] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="What to explain: top1, top3, ... (the network's favourites), a class index or name.",
        ),
    ] = "top1",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("icam-out"),
    taps: options.TapChoice = None,
    readout: options.Readout = str(_default.readout),
    aggregation: options.AggregationChoice = _default.aggregation,
    negative: options.Negative = _default.negative,
    bias: options.BiasChoice = _default.bias,
    bias_share: options.BiasShare = _default.bias_share,
    weighting: options.WeightingChoice = str(_default.weighting),
    temper: options.Temper = _default.temper,
    signed: options.Signed = _default.signed,
    fusion: options.FusionChoice = _default.fusion,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Explain what a network sees in photographs.

    Prints the top classes, the layers that mattered and how the score splits, and writes for each image an
    overlay, a panel and the explanation, which `Explanation.load` reads back. The network runs once per target.

    An image that cannot be explained is reported at the end, with exit code 1; the others are done.
    """
    recipe = Recipe(
        taps=tuple(taps) if taps else _default.taps,
        readout=readout,
        aggregation=aggregation,  # type: ignore[arg-type]  # checked by the recipe
        negative=negative,
        bias=bias,  # type: ignore[arg-type]
        bias_share=bias_share,
        weighting=weighting,
        temper=temper,
        signed=signed,
        fusion=fusion,  # type: ignore[arg-type]
    )
    raise typer.Exit(run(Request(tuple(images or ()), model, weights, labels, target, out, recipe, as_json, debug)))


@app.command()
def taps(
    model: options.Model = DEFAULT,
    weights: options.Weights = None,
    taps: options.TapChoice = None,
    every: Annotated[bool, typer.Option("--all", help="Every feature map that can be named.")] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """List the layers that would be fused: name, kind, channels and size, from input to output."""
    list_taps(model, weights, tuple(taps) if taps else _default.taps, every, as_json)
