"""From one row per image, method and metric to means, paired differences, win rates and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._benchmark import ALL, MAX_BOX
from ._localisation import THRESHOLDS, max_box_accuracy
from ._statistics import Interval, bootstrap_mean, mean_rank, paired_difference, win_rate

if TYPE_CHECKING:
    import polars as pl

SCHEMA: Mapping[str, type] = {
    "model": str,
    "image": str,
    "object": str,
    "target": int,
    "method": str,
    "metric": str,
    "value": float,
}


@dataclass(frozen=True)
class MethodScore:
    """How a method does under one metric.

    Attributes:
        model: the network; None for all networks, where each image counts with its mean over them, since values of
            one image are not independent.
        metric: the metric's name.
        method: the method's name.
        mean: over images.
        difference: the reference's value minus the method's, image by image; None for the reference itself.
        win_rate: share of the images on which the reference is better, ties counted half; None where neither side of
            the metric is better.
    """

    model: str | None
    metric: str
    method: str
    mean: Interval
    difference: Interval | None
    win_rate: Interval | None


def tidy(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per network, image, object, method and metric.

    The hits of `maxboxacc` become 1 or 0 at the threshold that is best for that network and method over the data
    set, so that their mean is MaxBoxAcc.
    """
    import polars

    plain: list[Mapping[str, Any]] = []
    boxed: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["metric"] == MAX_BOX:
            boxed.setdefault((row["model"], row["method"]), []).append(row)
        else:
            plain.append(row)
    for group in boxed.values():
        hits = torch.zeros(len(group), THRESHOLDS, dtype=torch.bool)
        for number, row in enumerate(group):
            hits[number, row["hits"]] = True
        _, best = max_box_accuracy(hits)
        plain += [{**row, "value": float(hit)} for row, hit in zip(group, hits[:, best].tolist(), strict=True)]
    return polars.DataFrame(plain, schema=dict(SCHEMA), orient="row").sort(
        "model", "image", "object", maintain_order=True
    )


def summarise(frame: pl.DataFrame, reference: str, seed: int = 0) -> list[MethodScore]:
    """A score per network, metric and method, and per metric and method over all networks if there are several.

    In the order in which the frame names them; a method without the reference's metrics has no differences.
    """
    models = _unique(frame, "model")
    scores = []
    for model in [*models, None] if len(models) > 1 else models:
        values = _values(frame, model)
        for metric in _unique(frame, "metric"):
            ours = values.get((reference, metric))
            for method in _unique(frame, "method"):
                if (theirs := values.get((method, metric))) is None:
                    continue
                difference = wins = None
                if ours is not None and method != reference:
                    difference = paired_difference(ours, theirs, seed=seed)
                    if (higher := ALL[metric].higher_is_better) is not None:
                        sign = 1 if higher else -1
                        wins = win_rate(sign * ours, sign * theirs, seed=seed)
                scores.append(MethodScore(model, metric, method, bootstrap_mean(theirs, seed=seed), difference, wins))
    return scores


def mean_ranks(scores: Sequence[MethodScore], model: str | None) -> dict[str, float]:
    """Each method's rank by its mean under a metric, averaged over the metrics that have a better side.

    Methods that lack one of these metrics have no rank.
    """
    means = {(score.metric, score.method): score.mean.mean for score in scores if score.model == model}
    metrics = [name for name in dict.fromkeys(metric for metric, _ in means) if ALL[name].higher_is_better is not None]
    ranked = [
        method
        for method in dict.fromkeys(method for _, method in means)
        if all((metric, method) in means for metric in metrics)
    ]
    if not metrics or not ranked:
        return {}
    signs = {metric: 1 if ALL[metric].higher_is_better else -1 for metric in metrics}
    table = torch.tensor([[signs[metric] * means[metric, method] for method in ranked] for metric in metrics])
    return dict(zip(ranked, mean_rank(table).tolist(), strict=True))


def _values(frame: pl.DataFrame, model: str | None) -> dict[tuple[str, str], Tensor]:
    """(method, metric) -> one value per image and object, in one order for all of them."""
    import polars

    if model is None:
        key = ["image", "object", "method", "metric"]
        frame = frame.group_by(key, maintain_order=True).agg(polars.col("value").mean())
    else:
        frame = frame.filter(polars.col("model") == model)
    frame = frame.sort("image", "object", maintain_order=True)
    return {
        (str(method), str(metric)): torch.tensor(group["value"].to_list(), dtype=torch.float64)
        for (method, metric), group in frame.group_by("method", "metric", maintain_order=True)
    }


def _unique(frame: pl.DataFrame, column: str) -> list[str]:
    names: list[str] = frame[column].unique(maintain_order=True).to_list()
    return names
