"""Winsor-CAM: importances by hand and against the twin, and the whole map."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples, trace_of
from reference import fusion, measure
from reference import methods as reference
from reference.arrays import relu, total
from torch import nn

from integrative_cam import get_method
from integrative_cam.methods._gradients import PERCENTILE, importances, winsorised


def test_by_hand() -> None:
    # Of 1, 2, 3, 4 and 105 the percentile 75 is 4: from 1 to 4 in steps of 0.3.
    values = torch.tensor([[3.0, 1, 0, 105, 2, 4]])
    assert winsorised(values, 0.75)[0].tolist() == pytest.approx([0.7, 0.1, 0, 1, 0.4, 1])
    # Percentile 90: 4 + 0.6 x 101.
    assert winsorised(values)[0, 5].item() == pytest.approx(0.1 + 0.9 * 3 / 63.6)


def test_equal_single_and_missing_importances() -> None:
    rows = torch.tensor([[2.0, 0, 2], [0, 5, 0], [0, 0, 0]])
    assert winsorised(rows).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@examples(60)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(1, 9))
def test_the_twin(seed: int, percentile: float, layers: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(4, layers, generator=generator, dtype=torch.float64) * 3).relu()
    values[0] = values[0].round()  # ties
    found = winsorised(values, percentile)
    for row, expected in zip(found.tolist(), values.tolist(), strict=True):
        assert row == pytest.approx(reference.winsorised(expected, percentile))


def test_importances_are_signed_means_cut_at_zero() -> None:
    ones = torch.ones(1, 2, 1, 2).double()
    first, second = torch.tensor([[[[3.0, -1]], [[1, 1]]]]).double(), torch.tensor([[[[3.0, -1]], [[-9, 1]]]]).double()
    assert importances(trace_of([(ones, first), (ones, second)])).tolist() == [[1, 0]]


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize(("kind", "seed"), [("vgg", 41), ("resnet", 44), ("inception", 41)])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_map_is_the_twins(kind: str, seed: int, inplace: bool) -> None:
    option = networks.Options(dims=2, seed=seed, norm="affine", stride=2, inplace=inplace)
    model, images = networks.build(kind, option), networks.images(option)
    measured = measure.measure(model, images)
    convs = [measured.calls[at] for at in measured.of(nn.Conv2d)]
    found = get_method("winsorcam")(model, images)
    assert [layer.kind for layer in found.layers] == ["conv"] * len(convs)
    assert found.recipe is None
    mixed = set()
    for sample in range(len(images)):
        values = [conv.value[sample].numpy() for conv in convs]
        slopes = [conv.gradient[sample].numpy() for conv in convs]
        means = [total(slope) / slope.size for slope in slopes]
        weights = reference.winsorised(means, PERCENTILE)
        mixed |= {weight > 0 for weight in weights}
        maps = [reference.grad_cam(value, slope) for value, slope in zip(values, slopes, strict=True)]
        expected = fusion.fuse([relu(each) for each in maps], weights, tuple(images.shape[2:]), "sum")
        np.testing.assert_allclose(found.map[sample], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.weights[sample], np.array(weights) / sum(weights), rtol=1e-9)
    assert mixed == {True, False}


def test_without_positive_importance_all_weigh_alike() -> None:
    option = networks.Options(dims=2, seed=41, norm="affine")
    model, images = networks.build("plain", option), networks.images(option)
    with torch.no_grad():
        model[-1][-1].weight.copy_(-model[-1][-1].weight.abs())
        for layer in (model[1][0], model[2][0]):
            layer.weight.abs_()
    found = get_method("winsorcam")(model, images, 0)
    assert all((layer.gradient_score > 0).all() for layer in found.layers)
    assert found.weights.tolist() == [[pytest.approx(1 / 3)] * 3] * 2
