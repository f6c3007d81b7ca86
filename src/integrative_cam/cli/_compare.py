"""`icam compare` and `icam methods`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..errors import RecipeError, TargetError
from ..integrations._libraries import named, peer, peers
from ..methods._registry import list_methods
from ..render import comparison
from ._aims import Asked, aims, check
from ._explain import marked, network_of, photograph
from ._printed import area, brief
from ._sight import predict, ranking_of


def compare_methods(
    image: Path | None,
    names: Sequence[str],
    model: str,
    weights: Path | None,
    labels: Path | None,
    task: str | None,
    asked: Asked,
    out: Path,
    as_json: bool,
) -> None:
    """Draw one picture with the map of each method and print how much of the image each fills."""
    chosen = [named(name) for name in names]
    if not chosen:
        raise RecipeError(f"--methods names no method; there are {', '.join(each.name for each in list_methods())}.")
    image = image or photograph()
    network = network_of(model, weights, labels, task)
    check(asked, network)
    with warnings.catch_warnings():
        # Of onnx2torch's layers, about their own code.
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
        prediction = predict(image, network, asked.step)
        found = aims(asked, prediction, ranking_of(prediction))
        if len(found) > 1:
            raise TargetError(f"--target {asked.target}: compare draws one; give top1, an index or a name.")
        aim = found[0]
        maps, areas = {}, {}
        for each in chosen:
            explanation = each(network.model, prediction.view.tensor, aim.target)
            maps[each.name] = explanation.map[0]
            areas[each.name] = area(explanation)

    picture = out / f"{image.stem}-comparison.png"
    title = f"{image.name} seen by {network.name}: why {brief(aim.label)}"
    out.mkdir(parents=True, exist_ok=True)
    figure = comparison(maps, marked(prediction.photograph, prediction, aim), title, region=prediction.view.region)
    figure.savefig(picture, dpi=110)
    if as_json:
        target = {"index": aim.index, "label": aim.label}
        print(json.dumps({"image": str(image), "target": target, "area_above_half": areas, "picture": str(picture)}))
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("method")
    table.add_column("area above half", justify="right")
    table.add_column("what it is")
    for each in chosen:
        table.add_row(each.name, f"{areas[each.name]:.0%}", each.description)
    Console(markup=False).print(table)
    print(f"Written:\n  {picture}")


def print_methods() -> None:
    """Name, description and source of every method, peers as far as they are installed."""
    table = Table(box=None, pad_edge=False)
    for column in ("method", "what it is", "source"):
        table.add_column(column, overflow="fold")
    for each in list_methods():
        table.add_row(each.name, each.description, each.source)
    taps: dict[str, list[str]] = {}
    for name in peers():
        taps.setdefault(name.partition("@")[0], []).append(name)
    for name, variants in taps.items():
        choices = ", ".join(variant.partition("@")[2] for variant in variants)
        shipped = f"as shipped; TAPS: {choices}" if choices else "as shipped"
        table.add_row(f"{name}@TAPS" if choices else name, shipped, peer(variants[0]).source)
    Console(markup=False).print(table)
