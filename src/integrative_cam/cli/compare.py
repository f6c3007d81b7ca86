"""`icam compare` and `icam methods`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import RecipeError
from ..evaluate.peers import named, peer, peers
from ..methods import methods
from ..models import read_image
from ..render import comparison
from .explain import TOP, network_of, photograph, target_of
from .report import area


def compare_methods(
    image: Path | None,
    names: Sequence[str],
    model: str,
    weights: Path | None,
    labels: Path | None,
    target: str,
    out: Path,
    as_json: bool,
) -> None:
    """Draw one picture with the map of each method and print how much of the image each fills."""
    chosen = [named(name) for name in names]
    if not chosen:
        raise RecipeError(f"--methods names no method; there are {', '.join(each.name for each in methods())}.")
    if TOP.fullmatch(target) and target != "top1":
        raise RecipeError(f"--target {target}: compare draws one class; give top1, an index or a name.")
    image = image or photograph()
    network = network_of(model, weights, labels)
    view = network.preprocessing(read_image(image))
    index = target_of(target, network)
    maps, areas = {}, {}
    for each in chosen:
        explanation = each(network.model, view.tensor, index)
        index = int(explanation.target_names[0])
        maps[each.name] = explanation.map[0]
        areas[each.name] = area(explanation)

    picture = out / f"{image.stem}-comparison.png"
    title = f"{image.name} seen by {network.name}: why {network.label(index or 0)}"
    out.mkdir(parents=True, exist_ok=True)
    comparison(maps, view.picture, title).savefig(picture, dpi=110)
    if as_json:
        print(json.dumps({"image": str(image), "target": index, "area_above_half": areas, "picture": str(picture)}))
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("area above half", justify="right")
    table.add_column("what it is")
    for each in chosen:
        table.add_row(each.name, f"{areas[each.name]:.0%}", each.description)
    Console().print(table)
    print(f"Written:\n  {picture}")


def print_methods() -> None:
    """Name, description and source of every method, peers as far as they are installed."""
    table = Table(box=None, pad_edge=False)
    for column in ("method", "what it is", "source"):
        table.add_column(column, overflow="fold")
    for each in methods():
        table.add_row(each.name, each.description, each.source)
    taps: dict[str, list[str]] = {}
    for name in peers():
        taps.setdefault(name.partition("@")[0], []).append(name)
    for name, variants in taps.items():
        choices = ", ".join(variant.partition("@")[2] for variant in variants)
        shipped = f"as shipped; TAPS: {choices}" if choices else "as shipped"
        table.add_row(f"{name}@TAPS" if choices else name, shipped, peer(variants[0]).source)
    Console().print(table)
