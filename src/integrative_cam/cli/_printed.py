"""What the commands print, and their bar while they work through many images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.bar import Bar
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from ..query import Answer, RankedClass, area_above_half, score_parts, short_name
from ..render._parts import layer_facts

if TYPE_CHECKING:
    from ..run import Progress

CLASSES_SHOWN = 5
TITLES = {"probability": "Top classes", "area": "Classes by area", "value": "Values", "score": "Boxes found"}
LAYERS_SHOWN = 8
FILES = {
    "overlay": "overlay.png",
    "panel": "panel.png",
    "decomposition": "decomposition.png",
    "explanation": "explanation",
}


def print_line(text: str) -> None:
    """Print a text as it is, however long: names of files and classes may hold anything."""
    Console(markup=False).print(text, highlight=False, soft_wrap=True)


def print_table(title: str | None, headings: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> None:
    """Print a table without lines; columns whose heading starts with ">" are set to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        justify: Literal["left", "right"] = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)


def print_answer(answer: Answer, folder: Path) -> None:
    """The network's prediction, the layers with the highest weights, how the score splits, and the files."""
    network, ranking, explanation = answer.prediction.network, answer.prediction.ranking, answer.explanation
    print_line(f"{answer.prediction.file} seen by {network.name}")
    if ranking.classes:
        headings = [">index", "class", f">{ranking.measure}", *(["box"] if ranking.measure == "score" else [])]
        print_table(
            TITLES[ranking.measure], headings, [_row(answer, entry) for entry in ranking.classes[:CLASSES_SHOWN]]
        )
    if explanation.layers:
        layers = [layer_facts(explanation, index, 0) for index in range(len(explanation.layers))]
        layers.sort(key=lambda facts: -facts[2])
        rows = [
            (name, size, f"{weight:.1%}", Bar(1, 0, weight / (layers[0][2] or 1), width=30, color="dark_orange"))
            for name, size, weight in layers[:LAYERS_SHOWN]
        ]
        print_table(f"\nLayers that weigh most, of {len(layers)}", ("layer", ">size", ">weight", ""), rows)
    score, image, biases, remainder = (values[0] for values in score_parts(explanation).values())
    kind = answer.target.label
    if answer.target.index is not None:
        contrast = explanation.recipe is not None and explanation.recipe.score == "contrast"
        kind = "logit, less those of the other classes" if contrast else "logit"
    print_line(
        f"\nScore ({kind}) {score:.2f} = "
        f"input {image:+.2f}, biases {biases:+.2f}, remainder {remainder:+.2f} (clipping, gates, smooth activations)"
    )
    if explanation.layers:
        parts = explanation.completeness
        print_line(
            f"At {explanation.layers[-1].name}, the last layer: activations {float(parts.activation[0, -1]):+.2f}, "
            f"biases behind it {float(parts.tap_bias[0, -1]):+.2f}, rest {float(parts.bypass[0, -1]):+.2f}"
        )
    area = float(area_above_half(explanation.map)[0])
    print_line(f"Map: {area:.0%} of the image holds more than half of the maximum")
    if int(explanation.clamped[0]):
        print_line(f"Pole guard: limited alpha at {int(explanation.clamped[0])} entries")
    for note in answer.notes:
        print_line(f"Note: {note}")
    print_line("\n".join(["Written:", *(f"  {folder / file}" for file in FILES.values())]))


def _row(answer: Answer, entry: RankedClass) -> list[str]:
    """A class of the ranking, marked if it is explained; a box in whole pixels inside the photograph."""
    prediction, target = answer.prediction, answer.target
    # Of a detector's boxes of one class, one is explained.
    explained = entry.index in target.classes if entry.box is None else entry.box == target.outline
    mark = "  <- explained" if explained else "  <- versus" if entry.index in target.against else ""
    row = [str(entry.index), f"{prediction.network.label(entry.index)}{mark}", prediction.ranking.as_text(entry.value)]
    if entry.box is None:
        return row
    sides = zip(prediction.to_photograph(entry.box), prediction.photograph.size * 2, strict=True)
    return [*row, ",".join(str(round(min(max(side, 0), limit))) for side, limit in sides)]


def print_summary(records: Sequence[Mapping[str, Any]]) -> None:
    """One row per image and target, from `record_with_files`."""
    folders = [Path(record["files"]["overlay"]).parent for record in records]
    rows = []
    for folder, record in zip(folders, records, strict=True):
        strongest = max(record["layers"], key=lambda layer: layer["weight"], default={"name": "-"})
        rows.append((folder.name, short_name(record["named"]), strongest["name"]))
    print_table(f"{len(records)} explanations", ("folder", "explained", "strongest layer"), rows)
    print_line(f"Written: a folder each in {', '.join(sorted({str(folder.parent) for folder in folders}))}")
    for note in dict.fromkeys(f"{record['image']}: {note}" for record in records for note in record["notes"]):
        print_line(f"Note: {note}")


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


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "- images/s")


@contextmanager
def progress_bar(verb: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error, which starts with the first call: an error before it is printed alone.

    What an earlier run has done is in the first call, so that it does not count as speed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    bars = Bars(*columns, console=Console(stderr=True))

    def report(progress: Progress) -> None:
        if not bars.task_ids:
            bars.start()
            bars.add_task(verb, completed=progress.done, total=progress.total)
        failed = f", {progress.failed} failed" if progress.failed else ""
        (bar,) = bars.task_ids
        bars.update(bar, completed=progress.done, total=progress.total, description=f"{verb}{failed}")

    try:
        yield report
    finally:
        if bars.task_ids:
            bars.stop()
