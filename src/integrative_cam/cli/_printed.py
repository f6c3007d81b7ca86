"""What `icam explain` prints."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..explanation import Explanation

if TYPE_CHECKING:
    from ._explain import Result
    from ._sight import Finding

CLASSES_SHOWN = 5
TITLES = {"probability": "Top classes", "area": "Classes by area", "value": "Values", "score": "Boxes found"}
LAYERS_SHOWN = 8
FILES = {
    "overlay": "overlay.png",
    "panel": "panel.png",
    "decomposition": "decomposition.png",
    "explanation": "explanation",
}


def print_explanation(result: Result) -> None:
    """What the network says, the layers that weigh most, how the score splits, and the files."""
    console = Console(markup=False)  # names of files and classes may hold anything
    console.print(
        Text.assemble((str(result.image), "bold"), f" seen by {result.network.name}"), highlight=False, soft_wrap=True
    )
    if result.ranking.findings:
        console.print(_findings_table(result))

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
    if int(explanation.clamped[0]):
        console.print(f"Pole guard: limited alpha at {int(explanation.clamped[0])} entries", highlight=False)
    for note in result.notes:
        console.print(f"Note: {note}", highlight=False, soft_wrap=True)
    console.print("Written:")
    for file in FILES.values():
        console.print(f"  {result.folder / file}", highlight=False, soft_wrap=True)


def _findings_table(result: Result) -> Table:
    ranking, aim = result.ranking, result.aim
    boxes = ranking.measure == "score"
    table = Table(title=TITLES[ranking.measure], title_justify="left", box=None, pad_edge=False)
    table.add_column("index", justify="right")
    table.add_column("class")
    table.add_column(ranking.measure, justify="right")
    if boxes:
        table.add_column("box")
    for finding in ranking.findings[:CLASSES_SHOWN]:
        # Of a detector's boxes of one class, one is explained.
        explained = finding.box == aim.outline if boxes else finding.index in aim.classes
        mark = "  <- explained" if explained else "  <- versus" if finding.index in aim.against else ""
        box = [",".join(map(str, _rounded(result, finding)))] if boxes else []
        label = f"{result.network.label(finding.index)}{mark}"
        table.add_row(str(finding.index), label, ranking.shown(finding), *box)
    return table


def _rounded(result: Result, finding: Finding) -> list[int]:
    assert finding.box is not None
    width, height = result.prediction.photograph.size
    sides = zip(result.prediction.in_photograph(finding.box), (width, height) * 2, strict=True)
    return [round(min(max(side, 0), limit)) for side, limit in sides]


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


def print_summary(records: Sequence[Mapping[str, Any]]) -> None:
    """One row per image and target, from `as_record`."""
    table = Table(title=f"{len(records)} explanations", title_justify="left", box=None, pad_edge=False)
    table.add_column("folder", overflow="ellipsis", no_wrap=True)
    table.add_column("explained", overflow="ellipsis", no_wrap=True)
    table.add_column("strongest layer", overflow="ellipsis", no_wrap=True)
    for record in records:
        strongest = max(record["layers"], key=lambda layer: layer["weight"], default={"name": "-"})["name"]
        table.add_row(Path(record["files"]["overlay"]).parent.name, brief(record["named"]), strongest)
    console = Console(markup=False)
    console.print(table)
    places = {str(Path(record["files"]["overlay"]).parent.parent) for record in records}
    console.print(f"Written: a folder each in {', '.join(sorted(places))}", highlight=False, soft_wrap=True)
    for note in dict.fromkeys(f"{record['image']}: {note}" for record in records for note in record["notes"]):
        Console(markup=False).print(f"Note: {note}", highlight=False, soft_wrap=True)


def brief(named: str) -> str:
    """Each class by the first of its names."""
    return re.sub(r", .*?(?= rather than | \+ | [0-9.]+%$|$)", "", named)


def as_record(result: Result) -> dict[str, Any]:
    """The same facts as plain values for --json; sizes and boxes in pixels, boxes of the photograph."""
    return stored_record(result) | {"files": {name: str(result.folder / file) for name, file in FILES.items()}}


def stored_record(result: Result) -> dict[str, Any]:
    """`as_record` without the places of files, to lie beside them."""
    explanation, parts = result.explanation, result.explanation.completeness
    measure, finding = result.ranking.measure, result.aim.finding
    return {
        "image": str(result.image),
        "size": list(result.prediction.photograph.size),
        "seen": list(result.prediction.view.region),
        "model": result.network.name,
        "task": result.network.task,
        "classes": len(result.prediction.output.reshape(len(result.prediction.output), -1)),
        "method": result.method,
        "named": result.named,
        "target": {"index": result.aim.index, "label": result.aim.label, "classes": list(result.aim.classes)},
        measure: None if finding is None else finding.value,
        "top": [_as_entry(result, finding) for finding in result.ranking.findings[:CLASSES_SHOWN]],
        "score": float(explanation.score[0]),
        "parts": {
            "input": float(parts.input[0]),
            "bias": float(parts.bias[0]),
            "remainder": float(parts.remainder[0]),
        },
        "area_above_half": area(explanation),
        "guarded": int(explanation.clamped[0]),
        "layers": [layer.summary for layer in explanation.layers],
        "recipe": explanation.recipe and explanation.recipe.described(),
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


def _as_entry(result: Result, finding: Finding) -> dict[str, Any]:
    label = result.network.label(finding.index)
    entry = {"index": finding.index, "label": label, result.ranking.measure: finding.value}
    return entry if finding.box is None else entry | {"box": list(result.prediction.in_photograph(finding.box))}


def area(explanation: Explanation) -> float:
    """The share of the first image that holds more than half of the maximum."""
    return float((explanation.map[0] > 0.5).double().mean())
