"""Metrics over many batches."""

from __future__ import annotations

import copy
import doctest
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrative_cam import get_method
from integrative_cam.errors import InputError, RecipeError
from integrative_cam.evaluate import Accumulator, Interval, accumulator, bootstrap_mean, complexity
from integrative_cam.evaluate import _accumulate as accumulate
from integrative_cam.evaluate._benchmark import LOCALISATION, METRICS, Regions, evaluate


def test_the_example_in_the_docstring() -> None:
    (example,) = doctest.DocTestFinder().find(accumulate.Accumulator, "Accumulator", globs={})[:1]
    assert len(example.examples) > 4
    assert doctest.DocTestRunner().run(example).failed == 0


def one_plus(values: Tensor, times: int = 1) -> Tensor:
    return (values + 1) * times


def test_batches_of_any_size_are_one_sample() -> None:
    metric = Accumulator(one_plus, higher_is_better=True)
    metric.update(torch.tensor([0.0]))
    metric.update(torch.tensor([1.0, 9.0], requires_grad=True), times=2)
    metric.update(torch.zeros(0))
    assert metric.values.tolist() == [1, 4, 20]
    assert not metric.values.requires_grad
    assert metric.values.dtype == torch.float64
    # Not the mean of the batches' means, 6.5.
    assert metric.compute().mean == pytest.approx(25 / 3)
    assert metric.compute() == bootstrap_mean(torch.tensor([1.0, 4, 20]))
    assert metric.compute().n == 3
    metric.reset()
    assert metric.values.tolist() == []
    metric.update(torch.tensor([2.0]))
    assert metric.compute() == Interval(3.0, 3.0, 3.0, 1)


def test_values_do_not_follow_the_tensor_they_came_in() -> None:
    metric, values = Accumulator(lambda each: each, True), torch.tensor([1.0]).double()
    metric.update(values)
    values.zero_()
    assert metric.values.tolist() == [1]


def test_merging_appends_and_shares_nothing_afterwards() -> None:
    left, right = Accumulator(one_plus, None), Accumulator(one_plus, None)
    left.update(torch.tensor([0.0]))
    right.update(torch.tensor([1.0], dtype=torch.half))
    right = pickle.loads(pickle.dumps(right))
    left.merge(right)
    left.update(torch.tensor([2.0]))
    right.update(torch.tensor([5.0]))
    assert left.values.tolist() == [1, 2, 3]
    assert right.values.tolist() == [2, 6]
    twice = copy.deepcopy(right)
    twice.merge(twice)
    assert twice.values.tolist() == [2, 6, 2, 6]
    left.merge(Accumulator(one_plus, None))
    assert left.values.tolist() == [1, 2, 3]


torch.manual_seed(0)
MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
IMAGES = torch.randn(3, 3, 8, 8)


@pytest.mark.filterwarnings("ignore:The map of image")
def test_every_named_metric_accumulates_its_values_and_knows_which_way_is_better() -> None:
    gradcam = get_method("gradcam")
    for name in METRICS:
        metric = pickle.loads(pickle.dumps(accumulator(name)))
        assert metric.higher_is_better is METRICS[name].higher_is_better
        parts = []
        for batch in IMAGES.split(2):
            settings = {"steps": 3, "seed": 4, "cells": 4, "companions": batch[:, None].flip(3).repeat(1, 3, 1, 1, 1)}
            metric.update(MODEL, batch, gradcam, **settings)
            parts.append(evaluate(MODEL, batch, gradcam, [name], **settings)[name])
        assert torch.equal(metric.values, torch.cat(parts).double())


def test_metrics_of_localisation_take_their_regions() -> None:
    metric, masks = accumulator("energy"), torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, :4] = True
    metric.update(MODEL, IMAGES, get_method("gradcam"), target=1, regions=Regions(masks))
    maps = get_method("gradcam")(MODEL, IMAGES, 1).map
    assert metric.values.tolist() == pytest.approx((maps[:, :4].sum((1, 2)) / maps.sum((1, 2))).tolist())
    assert metric.higher_is_better is LOCALISATION["energy"].higher_is_better


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Accumulator(complexity, False).compute(), "compute needs at least one image; call update first"),
        (lambda: Accumulator(lambda: torch.tensor(1.0), True).update(), r"shape \(batch,\), but gave shape \(\)"),
        (lambda: Accumulator(lambda: torch.ones(2, 2), True).update(), r"but gave shape \(2, 2\)"),
        (lambda: Accumulator(lambda: [1.0], True).update(), "but gave list"),
        (
            lambda: Accumulator(complexity, True).merge(Accumulator(complexity, False)),
            "other must accumulate the same metric, but higher_is_better is True here and False there",
        ),
    ],
)
def test_misuse_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_failing_batch_leaves_the_values_alone() -> None:
    metric = Accumulator(complexity, False)
    metric.update(torch.ones(2, 3, 3))
    with pytest.raises(InputError):
        metric.update(torch.full((1, 3, 3), torch.nan))
    assert metric.values.tolist() == [1, 1]


def test_values_that_are_no_numbers_are_reported() -> None:
    metric = Accumulator(lambda: torch.tensor([1.0, torch.nan]), True)
    metric.update()
    with pytest.raises(InputError, match="NaN or infinite values; leave such images out"):
        metric.compute()


def test_unknown_metrics() -> None:
    with pytest.raises(RecipeError, match=r"metric must be one of .* Did you mean 'insertion'"):
        accumulator("insrtion")
