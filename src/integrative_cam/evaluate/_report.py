"""What an evaluation shows: plots as files, and one HTML page with tables, plots, examples and settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..integrations._libraries import named
from ..models import load, read_image
from ..render._colours import INK
from ..render._plots import Dot, dot_plot, svg
from ..render._sheet import png
from ..render._templates import data_uri, environment
from ._benchmark import ALL
from ._measure import CONTROLS
from ._summary import MethodScore, mean_ranks

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..run._store import Store
    from ._dataset import Sample
    from ._evaluation import Evaluation

EXAMPLES = 3
"""At either end of the differences; each is explained again, so that an evaluation of thousands keeps no pictures."""
SIDE = 240
"""Of an example's pictures, in pixels."""


@dataclass(frozen=True)
class Example:
    """One photograph: a caption, and pictures by title as data URIs."""

    caption: str
    pictures: Mapping[str, str]


def write_report(evaluation: Evaluation, store: Store, samples: Sequence[Sample]) -> None:
    """Write plots/ and report.html."""
    plots = _write_plots(evaluation, store)
    title, examples = _examples(evaluation, samples)
    store.write("report.html", html(evaluation, plots, examples, title).encode())


def html(evaluation: Evaluation, plots: Mapping[str, str], examples: Sequence[Example], examples_title: str) -> str:
    """The page, which loads nothing: styles, script, `plots` (SVG by title) and pictures are inside."""
    pages = environment("integrative_cam.evaluate")
    pages.filters["interval"] = lambda interval: f"[{interval.low:.3f}, {interval.high:.3f}]"
    networks = [f"{name} ({weights})" if weights else name for name, weights in evaluation.settings["models"].items()]
    return pages.get_template("report.html.jinja").render(
        evaluation=evaluation,
        settings={**evaluation.settings, "models": networks},
        name=PurePath(str(evaluation.settings["dataset"])).name,
        unit="object" if evaluation.settings["target"] == "object" else "photograph",
        networks=_tables(evaluation.scores),
        meanings={name: ALL[name].meaning for name in dict.fromkeys(score.metric for score in evaluation.scores)},
        plots=[(title, _inlined(drawing)) for title, drawing in plots.items()],
        examples=examples,
        examples_title=examples_title,
        failures=[reason if str(path) in reason else f"{path}: {reason}" for path, reason in evaluation.failures],
    )


def _tables(all_scores: Sequence[MethodScore]) -> list[dict[str, Any]]:
    """Per network, all of them first: the metrics, and a row of cells per method."""
    models = dict.fromkeys(score.model for score in all_scores)
    tables = []
    for model in sorted(models, key=lambda name: name is not None):
        scores = [score for score in all_scores if score.model == model]
        metrics = list(dict.fromkeys(score.metric for score in scores))
        cells = {(score.method, score.metric): score for score in scores}
        ranks = mean_ranks(all_scores, model)
        rows = [
            {"method": method, "rank": ranks.get(method), "cells": [cells.get((method, metric)) for metric in metrics]}
            for method in dict.fromkeys(score.method for score in scores)
        ]
        tables.append(
            {
                "name": model or "all networks",
                "count": max(score.mean.n for score in scores),
                "metrics": [ALL[metric].title(metric) for metric in metrics],
                "rows": sorted(rows, key=lambda row: (row["rank"] is None, row["rank"])),
                "verdicts": {(score.method, score.metric): verdict(score) for score in scores},
            }
        )
    return tables


def verdict(score: MethodScore) -> str:
    """Is the reference "ahead" of the method or "behind" it, with an interval that leaves 0 out? Else ""."""
    higher = ALL[score.metric].higher_is_better
    if score.difference is None or higher is None or score.difference.low <= 0 <= score.difference.high:
        return ""
    return "ahead" if (score.difference.low > 0) is higher else "behind"


def _inlined(drawing: str) -> Any:
    from markupsafe import Markup

    # In the reader's own text colour, light or dark; the declaration before <svg> is for files only.
    return Markup(drawing[drawing.index("<svg") :].replace(INK, "currentColor"))


def _write_plots(evaluation: Evaluation, store: Store) -> dict[str, str]:
    """Per metric the means and the differences, as PNG and SVG in plots/; for the page as SVG by title."""
    plots = {}
    for metric in dict.fromkeys(score.metric for score in evaluation.scores):
        title = ALL[metric].title(metric)
        for kind, label in (("mean", title), ("difference", f"{title}: {evaluation.reference} minus the method")):
            dots = [
                Dot(score.method, score.model, interval.mean, interval.low, interval.high)
                for score in evaluation.scores
                if score.metric == metric and (interval := getattr(score, kind))
            ]
            if dots:
                figure = dot_plot(dots, label, zero=kind == "difference")
                store.write(f"plots/{metric}-{kind}.png", png(figure, 150))
                store.write(f"plots/{metric}-{kind}.svg", svg(figure).encode())
                plots[label] = svg(figure, transparent=True)
    return plots


def _examples(evaluation: Evaluation, samples: Sequence[Sample]) -> tuple[str, list[Example]]:
    """Where the reference is furthest ahead of and behind its strongest rival, by the first metric and network."""
    settings, reference = evaluation.settings, evaluation.reference
    model, weights = next(iter(settings["models"].items()))
    metric = next((name for name in settings["metrics"] if ALL[name].higher_is_better is not None), None)
    rivals = [
        score
        for score in evaluation.scores
        if (score.model, score.metric) == (model, metric) and score.method not in (reference, *CONTROLS)
    ]
    if metric is None or not rivals:
        return "", []
    sign = 1 if ALL[metric].higher_is_better else -1
    rival = max(rivals, key=lambda score: sign * score.mean.mean).method
    ranked = _by_difference(evaluation, model, metric, rival, sign)
    network = load(model, Path(weights) if weights else None)
    by_name = {sample.name: sample for sample in samples}
    examples = []
    for row in ranked[:EXAMPLES] + ranked[max(EXAMPLES, len(ranked) - EXAMPLES) :]:
        view = network.preprocessing(read_image(by_name[row["image"]].path))
        pictures = {"photograph": view.picture}
        for method in (reference, rival):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The map of image")
                explanation = named(method).for_task(network.task)(network.model, view.tensor, row["target"])
            pictures[f"{method} {row[method]:.3f}"] = explanation.overlay(view.picture)[0]
        assert explanation.target is not None
        what = f"{row['object']}, as " if row["object"] else ""
        caption = f"{row['image']}: {what}{network.label(int(explanation.target[0]))}"
        examples.append(Example(caption, {title: _uri(picture) for title, picture in pictures.items()}))
    title = (
        f"{ALL[metric].title(metric)} under {model}: where {reference} is furthest ahead of {rival}, the strongest "
        "other method, then where it is furthest behind."
    )
    return title, examples


def _by_difference(evaluation: Evaluation, model: str, metric: str, rival: str, sign: int) -> list[dict[str, Any]]:
    """The photographs' image, object, target and both methods' values, where the reference is furthest ahead first."""
    import polars

    chosen = evaluation.rows.filter((polars.col("model") == model) & (polars.col("metric") == metric))
    key = ["image", "object", "target"]
    ours, theirs = (
        chosen.filter(polars.col("method") == method).select(*key, polars.col("value").alias(method))
        for method in (evaluation.reference, rival)
    )
    both = ours.join(theirs, on=key, nulls_equal=True, maintain_order="left")
    advantage = sign * (polars.col(rival) - polars.col(evaluation.reference))
    return both.sort(advantage, maintain_order=True).rows(named=True)


def _uri(picture: Image) -> str:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    return data_uri(small, "jpeg", quality=80)
