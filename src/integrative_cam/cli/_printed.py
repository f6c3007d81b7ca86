"""What `icam explain` prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..explanation import Explanation
from ..query import Answer, RankedClass, area_above_half, short_name

CLASSES_SHOWN = 5
TITLES = {"probability": "Top classes", "area": "Classes by area", "value": "Values", "score": "Boxes found"}
LAYERS_SHOWN = 8
FILES = {
    "overlay": "overlay.png",
    "panel": "panel.png",
    "decomposition": "decomposition.png",
    "explanation": "explanation",
}


def print_answer(answer: Answer, folder: Path) -> None:
    """The network's prediction, the layers with the highest weights, how the score splits, and the files."""
    console = Console(markup=False)  # names of files and classes may hold anything
    network, explanation = answer.prediction.network, answer.explanation

    def line(text: str | Text) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    line(Text.assemble((answer.prediction.file, "bold"), f" seen by {network.name}"))
    if answer.prediction.ranking.classes:
        console.print(_ranking_table(answer))
    if explanation.layers:
        console.print(_layers_table(explanation))
    parts = explanation.completeness
    score = "logit" if answer.target.index is not None else answer.target.label
    line(
        f"\nScore ({score}) {float(parts.score[0]):.2f} = input {float(parts.input[0]):+.2f}, "
        f"biases {float(parts.bias[0]):+.2f}, remainder {float(parts.remainder[0]):+.2f} "
        "(clipping, gates, smooth activations)"
    )
    if explanation.layers:
        line(
            f"At {explanation.layers[-1].name}, the last layer: activations {float(parts.activation[0, -1]):+.2f}, "
            f"biases behind it {float(parts.tap_bias[0, -1]):+.2f}, rest {float(parts.bypass[0, -1]):+.2f}"
        )
    line(f"Map: {float(area_above_half(explanation.map)[0]):.0%} of the image holds more than half of the maximum")
    if int(explanation.clamped[0]):
        line(f"Pole guard: limited alpha at {int(explanation.clamped[0])} entries")
    for note in answer.notes:
        line(f"Note: {note}")
    line("Written:")
    for file in FILES.values():
        line(f"  {folder / file}")


def _ranking_table(answer: Answer) -> Table:
    ranking, network, target = answer.prediction.ranking, answer.prediction.network, answer.target
    has_boxes = ranking.measure == "score"
    table = Table(title=TITLES[ranking.measure], title_justify="left", box=None, pad_edge=False)
    table.add_column("index", justify="right")
    table.add_column("class")
    table.add_column(ranking.measure, justify="right")
    if has_boxes:
        table.add_column("box")
    for ranked in ranking.classes[:CLASSES_SHOWN]:
        # Of a detector's boxes of one class, one is explained.
        explained = ranked.box == target.outline if has_boxes else ranked.index in target.classes
        mark = "  <- explained" if explained else "  <- versus" if ranked.index in target.against else ""
        box = [_box_in_photograph(answer, ranked)] if has_boxes else []
        table.add_row(str(ranked.index), f"{network.label(ranked.index)}{mark}", ranking.as_text(ranked.value), *box)
    return table


def _box_in_photograph(answer: Answer, ranked: RankedClass) -> str:
    """LEFT,TOP,RIGHT,BOTTOM in whole pixels inside the photograph."""
    assert ranked.box is not None
    limits = answer.prediction.photograph.size * 2
    sides = zip(answer.prediction.to_photograph(ranked.box), limits, strict=True)
    return ",".join(str(round(min(max(side, 0), limit))) for side, limit in sides)


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
    """One row per image and target, from `record_with_files`."""
    table = Table(title=f"{len(records)} explanations", title_justify="left", box=None, pad_edge=False)
    for column in ("folder", "explained", "strongest layer"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for record in records:
        strongest = max(record["layers"], key=lambda layer: layer["weight"], default={"name": "-"})["name"]
        table.add_row(Path(record["files"]["overlay"]).parent.name, short_name(record["named"]), strongest)
    console = Console(markup=False)
    console.print(table)
    places = {str(Path(record["files"]["overlay"]).parent.parent) for record in records}
    console.print(f"Written: a folder each in {', '.join(sorted(places))}", highlight=False, soft_wrap=True)
    for note in dict.fromkeys(f"{record['image']}: {note}" for record in records for note in record["notes"]):
        console.print(f"Note: {note}", highlight=False, soft_wrap=True)


def record_with_files(answer: Answer, folder: Path) -> dict[str, Any]:
    """The answer's record for --json, with the places of its files."""
    return answer.record | {"files": {name: str(folder / file) for name, file in FILES.items()}}


def report_failures(failures: Sequence[tuple[Path, str]], attempted: int) -> int:
    """Name each image that failed, and why, on standard error; the exit code: 1 if any did, else 0."""
    for path, reason in failures:
        print(f"icam: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    if failures and attempted > 1:
        done = attempted - len(failures)
        print(f"icam: {len(failures)} of {attempted} images failed, {done} done.", file=sys.stderr)
    return 1 if failures else 0
