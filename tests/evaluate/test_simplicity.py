"""How much of the image a map covers, how rough it is, how it holds up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from evaluated import MAP, drawn, few, tensor
from hypothesis import given
from hypothesis import strategies as st
from networks import noise
from pytorch_grad_cam.metrics import arcc as peer_arcc
from pytorch_grad_cam.metrics import road as peer_road
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from reference import metrics as reference
from torch import Tensor

from integrative_cam.errors import InputError
from integrative_cam.evaluate import (
    adcc,
    arcc,
    area,
    average_drop,
    coherency,
    complexity,
    dimmed_probabilities,
    increase,
    road_combined,
    total_variation,
)


def test_simplicity_by_hand() -> None:
    values = torch.stack([tensor([0.25, 0.5], [0.75, 1]), tensor([0, 0], [0, 0]), tensor([1, 1], [1, 1])])
    assert complexity(values).tolist() == [0.625, 0, 1]
    assert area(values).tolist() == [0.5, 0, 1]
    # 1/4 twice to the right, 1/2 twice downwards.
    assert total_variation(values).tolist() == [0.375, 0, 0]
    assert complexity(-values).tolist() == [0.625, 0, 1]
    assert area(-values).tolist() == [0, 0, 0]
    assert total_variation(torch.ones(1, 1, 1)).tolist() == [0]
    # One step of 1 among the three pairs of a row.
    assert total_variation(tensor([0, 0, 1, 1])[None]).item() == pytest.approx(1 / 3)


def test_a_map_of_ones_drops_nothing_and_covers_everything() -> None:
    model, images, _, index = drawn(1)
    ones = torch.ones(3, 7, 6, dtype=torch.float64)
    assert average_drop(model, images, ones, index).tolist() == [0, 0, 0]
    assert increase(model, images, ones, index).tolist() == [0, 0, 0]
    assert area(ones).tolist() == [1, 1, 1]


def test_coherency_by_hand() -> None:
    rising, other = tensor([0, 1, 2, 3]), tensor([1, 0, 3, 2])
    maps = torch.stack([rising, rising, rising, rising])
    again = torch.stack([rising * 5 + 1, -rising, other, torch.full_like(rising, 0.1)])
    # Covariance 3, both variances 5: r = 3/5.
    torch.testing.assert_close(coherency(maps, again), torch.tensor([1, 0, 0.8, 0.5]).double())


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.0])
def test_a_constant_map_is_neither_coherent_nor_incoherent(constant: float) -> None:
    """The mean of equal float32 numbers may miss them; what is left must not correlate with anything."""
    flat, other = torch.full((1, 28, 28), constant), noise(torch.Generator().manual_seed(0), 1, 28, 28).float()
    assert coherency(flat, other).tolist() == [0.5]
    assert coherency(other, flat).tolist() == [0.5]
    assert coherency(flat, flat).tolist() == [0.5]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_coherency_does_not_depend_on_the_scale(scale: float) -> None:
    maps = noise(torch.Generator().manual_seed(0), 2, 3, 4, 5).float()
    torch.testing.assert_close(coherency(maps[0] * scale, maps[1]), coherency(maps[0], maps[1]))


@few
@given(st.integers(0, 1000))
def test_simplicity_twins(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = drawn(seed)[2], torch.rand(3, 7, 6, generator=generator).double()
    drop, road = right[:, 0, 0], right[:, 1, 1] - 0.5
    both = coherency(left, right)
    found = {
        "complexity": complexity(left),
        "area": area(left),
        "total_variation": total_variation(left),
        "coherency": both,
        "adcc": adcc(drop, both, complexity(left)),
        "arcc": arcc(road, both, complexity(left)),
    }
    for sample in range(3):
        values, other = left[sample].numpy(), right[sample].numpy()
        plain, agreement = reference.complexity(values), reference.coherency(values, other)
        scaled = min(max(2 * road[sample].item(), 0), 1)
        expected = {
            "complexity": plain,
            "area": reference.area(values),
            "total_variation": reference.total_variation(values),
            "coherency": agreement,
            "adcc": reference.harmonic_mean([agreement, 1 - plain, 1 - drop[sample].item()]),
            "arcc": reference.harmonic_mean([agreement, 1 - plain, scaled]),
        }
        for name, value in expected.items():
            assert found[name][sample].item() == pytest.approx(value, rel=1e-10), name


def test_rounding_makes_no_map_more_than_coherent() -> None:
    maps = noise(torch.Generator().manual_seed(0), 200, 14, 14).float()
    assert coherency(maps, maps).max().item() == 1
    assert coherency(maps, -maps).min().item() == 0


def test_pytorch_grad_cam_agrees_on_complexity_and_coherency() -> None:
    left, right = noise(torch.Generator().manual_seed(0), 2, 3, 6, 5)
    peer = (peer_arcc.batch_pearson_coherency(left.numpy(), right.numpy()) + 1) / 2
    assert coherency(left, right).tolist() == pytest.approx(peer.tolist(), abs=1e-6)
    assert complexity(left).tolist() == pytest.approx(peer_arcc.Complexity()(left.numpy()).tolist())


def explained(images: Tensor) -> Tensor:
    """A map of 64 values without ties that changes when its image is dimmed."""
    ranks = (images[:, 0] + images[:, 1] ** 2).flatten(1).argsort(1).argsort(1)
    return ((ranks + 1) / 64).reshape(-1, 8, 8)


def test_pytorch_grad_cam_agrees_on_arcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class runs the method on the masked images itself; maps without ties, whose percentiles are our shares."""
    monkeypatch.setattr(peer_road.NoisyLinearImputer.__init__, "__defaults__", (0.0, peer_road.neighbors_weights))
    positive = 0
    for seed in range(6):
        model, images, _, index = drawn(seed, 3, (8, 8))
        model, images = model.float(), images.float()
        maps = explained(images)
        targets = [ClassifierOutputSoftmaxTarget(each) for each in index.tolist()]
        peer = peer_arcc.ARCC(lambda input_tensor, targets: explained(input_tensor).numpy())(
            images, maps.numpy(), targets, model
        )
        both = coherency(maps, explained(images * maps[:, None]))
        found = arcc(road_combined(model, images, maps, index), both, complexity(maps))
        assert found.tolist() == pytest.approx(peer.tolist(), abs=1e-4)
        positive += int((found > 1e-2).sum())
    assert positive > 3


def test_pytorch_grad_cam_agrees_on_drop_and_increase() -> None:
    """Its drop is the probability lost, not the share of it."""
    for seed in range(3):
        model, images, maps, index = drawn(seed)
        targets = [ClassifierOutputSoftmaxTarget(each) for each in index.tolist()]
        whole, _ = dimmed_probabilities(model, images, maps, index)
        lost = (average_drop(model, images, maps, index) * whole).tolist()
        assert lost == pytest.approx(DropInConfidence()(images, maps.numpy(), targets, model).tolist(), abs=1e-6)
        gains = IncreaseInConfidence()(images, maps.numpy(), targets, model).tolist()
        assert increase(model, images, maps, index).tolist() == gains


def test_harmonic_means_by_hand() -> None:
    # 3 / (1/0.5 + 1/0.25 + 1/0.5) = 3/8; a part of 0 leaves nothing; three ones are 1.
    half, zero, one = (torch.tensor([value]) for value in (0.5, 0.0, 1.0))
    assert adcc(half, half, torch.tensor([0.75])).item() == pytest.approx(3 / 8)
    assert arcc(half / 2, half, torch.tensor([0.75])).item() == pytest.approx(3 / 8)
    assert adcc(zero, one, zero).item() == arcc(half, one, zero).item() == 1
    assert adcc(one, one, zero).item() == adcc(zero, zero, zero).item() == adcc(zero, one, one).item() == 0
    assert arcc(-half, one, zero).item() == arcc(zero, one, zero).item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: complexity(MAP / 0), "maps hold NaN"),
        (lambda: coherency(MAP, MAP[:, :1]), r"must have one shape, but have \(1, 2, 2\) and \(1, 1, 2\)"),
        (lambda: adcc(torch.ones(2), torch.ones(1), torch.ones(2)), "coherency must have one shape"),
        (lambda: adcc(torch.ones(1), torch.ones(1), torch.full((1,), 1.5)), r"complexity must lie in \[0, 1\]"),
        (lambda: arcc(torch.ones(1), torch.ones(1), torch.ones(1)), r"road must lie in \[-0.5, 0.5\]"),
        (lambda: adcc(torch.full((1,), torch.nan), torch.ones(1), torch.ones(1)), "drop must lie in"),
    ],
)
def test_unusable_parts_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
