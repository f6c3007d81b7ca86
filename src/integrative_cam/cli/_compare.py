"""`icam compare` and `icam methods`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import RecipeError, TargetError
from ..integrations._libraries import named, peer, peers
from ..methods._registry import list_methods
from ..query import Question, answer_question, area_above_half, example_photograph, predict, resolve_targets, short_name
from ..render import comparison
from ._explain import network_of, outlined


def compare_methods(
    image: Path | None,
    names: Sequence[str],
    model: str,
    weights: Path | None,
    labels: Path | None,
    task: str | None,
    question: Question,
    out: Path,
    as_json: bool,
) -> None:
    """Draw one picture with the map of each method and print how much of the image each fills."""
    chosen = [named(name) for name in names]
    if not chosen:
        raise RecipeError(
            f"--methods names no method; there are {', '.join(method.name for method in list_methods())}."
        )
    image = image or example_photograph()
    network = network_of(model, weights, labels, task)
    question.check(network)
    prediction = predict(image, network, question.step)
    target, *others = resolve_targets(question, prediction)
    if others:
        raise TargetError(f"--target {question.target}: compare draws one; give top1, an index or a name.")
    maps, areas, notes = {}, {}, []
    for method in chosen:
        (answer,) = answer_question(question, prediction, method)
        maps[method.name] = answer.explanation.map[0]
        areas[method.name] = float(area_above_half(answer.explanation.map)[0])
        notes += [f"{method.name}: {note}" for note in answer.notes]
    for note in notes:
        print(f"icam: {note}", file=sys.stderr)

    picture = out / f"{image.stem}-comparison.png"
    title = f"{image.name} seen by {network.name}: why {short_name(target.label)}"
    out.mkdir(parents=True, exist_ok=True)
    photograph = outlined(prediction.photograph, prediction, target)
    comparison(maps, photograph, title, region=prediction.view.region).savefig(picture, dpi=110)
    if as_json:
        named_target = {"index": target.index, "label": target.label}
        print(
            json.dumps({"image": str(image), "target": named_target, "area_above_half": areas, "picture": str(picture)})
        )
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("area above half", justify="right")
    table.add_column("what it is")
    for method in chosen:
        table.add_row(method.name, f"{areas[method.name]:.0%}", method.description)
    Console(markup=False).print(table)
    print(f"Written:\n  {picture}")


def print_methods() -> None:
    """Name, description and source of every method, peers as far as they are installed."""
    table = Table(box=None, pad_edge=False)
    for column in ("method", "what it is", "source"):
        table.add_column(column, overflow="fold")
    for method in list_methods():
        table.add_row(method.name, method.description, method.source)
    taps: dict[str, list[str]] = {}
    for name in peers():
        taps.setdefault(name.partition("@")[0], []).append(name)
    for name, variants in taps.items():
        choices = ", ".join(variant.partition("@")[2] for variant in variants)
        shipped = f"as shipped; TAPS: {choices}" if choices else "as shipped"
        table.add_row(f"{name}@TAPS" if choices else name, shipped, peer(variants[0]).source)
    Console(markup=False).print(table)
