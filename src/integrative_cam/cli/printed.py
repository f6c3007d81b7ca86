"""What `icam explain` prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from ..explanation import Explanation

if TYPE_CHECKING:
    from .explain import Result

CLASSES_SHOWN = 5
LAYERS_SHOWN = 8
FILES = {"overlay": "overlay.png", "panel": "panel.png", "explanation": "explanation"}


def print_explanation(result: Result) -> None:
    """The top classes, the layers that weigh most, how the score splits, and the files."""
    console = Console()
    console.print(f"[bold]{result.image}[/bold] seen by {result.network.name}", highlight=False, soft_wrap=True)
    classes = Table(title="Top classes", title_justify="left", box=None, pad_edge=False)
    classes.add_column("index", justify="right")
    classes.add_column("class")
    classes.add_column("probability", justify="right")
    for index, probability in _top_classes(result):
        mark = "  <- explained" if index in result.aim.classes else "  <- versus" if index in result.aim.against else ""
        classes.add_row(str(index), f"{result.network.label(index)}{mark}", f"{probability:.1%}")
    console.print(classes)

    explanation = result.explanation
    if explanation.layers:
        console.print(_layers_table(explanation))

    parts = explanation.completeness
    what = "logit" if result.aim.index is not None else result.aim.label
    console.print(
        f"\nScore ({what}) {float(parts.score[0]):.2f} = input {float(parts.input[0]):+.2f}, "
        f"biases {float(parts.bias[0]):+.2f}, remainder {float(parts.remainder[0]):+.2f} "
        "(clipping, gates, smooth activations)",
        highlight=False,
        soft_wrap=True,
    )
    if explanation.layers:
        console.print(
            f"At {explanation.layers[-1].name}, the last layer: activations {float(parts.activation[0, -1]):+.2f}, "
            f"biases behind it {float(parts.tap_bias[0, -1]):+.2f}, rest {float(parts.bypass[0, -1]):+.2f}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Map: {area(explanation):.0%} of the image holds more than half of the maximum", highlight=False)
    if int(explanation.guarded[0]):
        console.print(f"Pole guard: limited alpha at {int(explanation.guarded[0])} entries", highlight=False)
    for note in result.notes:
        console.print(f"Note: {note}", highlight=False, soft_wrap=True)
    console.print("Written:")
    for file in FILES.values():
        console.print(f"  {result.folder / file}", highlight=False, soft_wrap=True)


def _layers_table(explanation: Explanation) -> Table:
    weights = explanation.weights[0]
    strongest = weights.argsort(descending=True)[:LAYERS_SHOWN].tolist()
    title = f"\nLayers that weigh most, of {len(weights)}"
    layers = Table(title=title, title_justify="left", box=None, pad_edge=False)
    layers.add_column("layer", overflow="fold")
    layers.add_column("size", justify="right")
    layers.add_column("weight", justify="right")
    layers.add_column("", width=30)
    for index in strongest:
        layer, weight = explanation.layers[index], float(weights[index])
        size = "x".join(map(str, layer.map.shape[1:]))
        layers.add_row(layer.name, size, f"{weight:.1%}", Bar(float(weights.max()), 0, weight, color="dark_orange"))
    return layers


def print_summary(results: Sequence[Result]) -> None:
    """One row per image and target."""
    table = Table(title=f"{len(results)} explanations")
    for column in ("image", "class", "strongest layer", "files"):
        table.add_column(column, overflow="fold")
    for result in results:
        layers = result.explanation.layers
        strongest = layers[int(result.explanation.weights[0].argmax())].name if layers else "-"
        table.add_row(result.image.name, result.named, strongest, str(result.folder))
    Console().print(table)
    for note in dict.fromkeys(f"{result.image}: {note}" for result in results for note in result.notes):
        Console().print(f"Note: {note}", highlight=False, soft_wrap=True)


def as_record(result: Result) -> dict[str, Any]:
    """The same facts as plain values for --json."""
    explanation, parts = result.explanation, result.explanation.completeness
    return {
        "image": str(result.image),
        "model": result.network.name,
        "target": {"index": result.aim.index, "label": result.aim.label},
        "probability": None if result.aim.index is None else float(result.probabilities[result.aim.index]),
        "top": [
            {"index": index, "label": result.network.label(index), "probability": probability}
            for index, probability in _top_classes(result)
        ],
        "score": float(explanation.score[0]),
        "parts": {
            "input": float(parts.input[0]),
            "bias": float(parts.bias[0]),
            "remainder": float(parts.remainder[0]),
        },
        "area_above_half": area(explanation),
        "guarded": int(explanation.guarded[0]),
        "layers": [
            {
                "name": layer.name,
                "size": list(layer.map.shape[1:]),
                "weight": float(layer.weight[0]),
                "gradient_score": float(layer.gradient_score[0]),
                "activation_score": float(layer.activation_score[0]),
            }
            for layer in explanation.layers
        ],
        "recipe": explanation.recipe and explanation.recipe.described(),
        "files": {name: str(result.folder / file) for name, file in FILES.items()},
        "notes": list(result.notes),
    }


def report_failures(failures: Sequence[tuple[Path, str]], attempted: int) -> int:
    """Name each image that failed, and why, on standard error; the exit code: 1 if any did, else 0."""
    for path, reason in failures:
        print(f"icam: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    if failures and attempted > 1:
        done = attempted - len(failures)
        print(f"icam: {len(failures)} of {attempted} images failed, {done} done.", file=sys.stderr)
    return 1 if failures else 0


def _top_classes(result: Result) -> list[tuple[int, float]]:
    top = result.probabilities.topk(min(CLASSES_SHOWN, len(result.probabilities)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def area(explanation: Explanation) -> float:
    """The share of the first image that holds more than half of the maximum."""
    return float((explanation.map[0] > 0.5).double().mean())
