"""`icam compare` and `icam methods`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError, TargetError
from ..integrations._libraries import named, peer, peers
from ..methods._registry import list_methods
from ..query import Question, answer_question, area_above_half, example_photograph, predict, resolve_targets, short_name
from ..render import comparison
from ..render._sheet import png
from ._explain import DPI, NetworkOptions, network_of, outlined
from ._printed import print_line, print_table


def compare_methods(
    image: Path | None, names: Sequence[str], options: NetworkOptions, question: Question, out: Path, as_json: bool
) -> None:
    """Draw one picture with the map of each method and print how much of the image each fills."""
    methods = [named(name) for name in names]
    if not methods:
        known = ", ".join(method.name for method in list_methods())
        raise RecipeError(f"--methods names no method; there are {known}.")
    image = image or example_photograph()
    network = network_of(*options)
    question.check(network)
    prediction = predict(image, network, question.step)
    target, *others = resolve_targets(question, prediction)
    if others:
        raise TargetError(f"--target {question.target}: compare draws one; give top1, an index or a name.")
    maps, areas = {}, {}
    for method in methods:
        (answer,) = answer_question(question, prediction, method)
        maps[method.name] = answer.explanation.map[0]
        areas[method.name] = float(area_above_half(answer.explanation.map)[0])
        for note in answer.notes:
            print(f"icam: {method.name}: {note}", file=sys.stderr)

    picture = out / f"{image.stem}-comparison.png"
    title = f"{image.name} seen by {network.name}: why {short_name(target.label)}"
    out.mkdir(parents=True, exist_ok=True)
    photograph = outlined(prediction.photograph, prediction, target)
    picture.write_bytes(png(comparison(maps, photograph, title, region=prediction.view.region), DPI))
    if as_json:
        explained = {"index": target.index, "label": target.label}
        print(json.dumps({"image": str(image), "target": explained, "area_above_half": areas, "picture": str(picture)}))
        return
    rows = [(method.name, f"{areas[method.name]:.0%}", method.description) for method in methods]
    print_table(title, ("method", ">area above half", "what it is"), rows)
    print_line(f"Written:\n  {picture}")


def print_methods() -> None:
    """Print the name, description and source of every method, those of other libraries if they are installed."""
    rows = [(method.name, method.description, method.source) for method in list_methods()]
    variants: dict[str, list[str]] = {}
    for name in peers():
        variants.setdefault(name.partition("@")[0], []).append(name)
    for name, full_names in variants.items():
        taps = ", ".join(filter(None, (full_name.partition("@")[2] for full_name in full_names)))
        shipped = f"as shipped; TAPS: {taps}" if taps else "as shipped"
        rows.append((f"{name}@TAPS" if taps else name, shipped, peer(full_names[0]).source))
    print_table(None, ("method", "what it is", "source"), rows)
