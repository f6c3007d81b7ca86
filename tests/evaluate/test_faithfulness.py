"""Whether the score follows the map: by hand, against slow twins and against other libraries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from evaluated import IMAGE, MAP, Odds, drawn, few, probability, tensor, turns
from hypothesis import given
from hypothesis import strategies as st
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined, neighbors_weights
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from reference import metrics as reference
from torch import Tensor, nn

from integrative_cam.errors import InputError, OutputError
from integrative_cam.evaluate import (
    NoisyLinear,
    average_drop,
    blurred,
    deletion,
    deletion_curve,
    dimmed_probabilities,
    faithfulness_correlation,
    imputed,
    increase,
    insertion,
    insertion_curve,
    mean_of,
    road_combined,
    road_lerf,
    road_morf,
    single_cell,
    srg,
    zeros,
)

MEASURES: dict[str, Callable[..., Tensor]] = {
    "insertion": partial(insertion, steps=5),
    "deletion": partial(deletion, steps=5),
    "insertion_imputed": partial(insertion, steps=5, baseline=NoisyLinear()),
    "deletion_imputed": partial(deletion, steps=5, baseline=NoisyLinear()),
    "average_drop": average_drop,
    "increase": increase,
    "road_morf": road_morf,
    "road_lerf": road_lerf,
    "road_combined": road_combined,
    "srg": partial(srg, steps=5),
    "insertion_cells": partial(insertion, steps=3, cells=1),
    "deletion_cells": partial(deletion, steps=3, cells=1),
    "srg_cells": partial(srg, steps=3, cells=1),
    "road_cells": partial(road_combined, cells=1),
    "single_cell": partial(single_cell, cells=1),
    "faithfulness_correlation": partial(faithfulness_correlation, cells=1, sets=16),
}


def test_curves_by_hand() -> None:
    # Sums shown: 0, 4, 7, 9, 10.
    rising = [Fraction(1, 2), Fraction(5, 6), Fraction(8, 9), Fraction(10, 11), Fraction(11, 12)]
    falling = [Fraction(11, 12), Fraction(7, 8), Fraction(4, 5), Fraction(2, 3), Fraction(1, 2)]
    found = insertion_curve(Odds(), IMAGE, MAP, 0, 4, zeros)[0].tolist()
    assert found == pytest.approx([float(each) for each in rising], rel=1e-12)
    found = deletion_curve(Odds(), IMAGE, MAP, 0, 4, zeros)[0].tolist()
    assert found == pytest.approx([float(each) for each in falling], rel=1e-12)
    for measure, curve in ((insertion, rising), (deletion, falling)):
        by_hand = (sum(curve) - (curve[0] + curve[-1]) / 2) / 4
        assert measure(Odds(), IMAGE, MAP, 0, 4, zeros).item() == pytest.approx(float(by_hand), rel=1e-12)


def test_imputed_curves_by_hand() -> None:
    assert NoisyLinear() == NoisyLinear(noise=0.01, seed=0)
    # The one pixel to start from is the 8 or the 1; the others take over their neighbour's value.
    image, values = tensor([1, 2, 4, 8])[None, None], tensor([1, 2, 4, 8])[None]
    found = insertion_curve(Odds(), image, values, 0, 4, NoisyLinear(0.0))[0].tolist()
    assert found == pytest.approx([33 / 34, 33 / 34, 21 / 22, 17 / 18, 16 / 17], rel=1e-6)
    found = deletion_curve(Odds(), image, values, 0, 4, NoisyLinear(0.0))[0].tolist()
    assert found == pytest.approx([16 / 17, 12 / 13, 8 / 9, 5 / 6, 5 / 6], rel=1e-6)


@few
@given(st.integers(0, 1000), st.sampled_from([1, 4, 5]), st.sampled_from([0.0, 0.5]))
def test_imputed_curves_are_the_twins(seed: int, steps: int, noise: float) -> None:
    model, images, maps, index = drawn(seed)
    baseline = NoisyLinear(noise, seed=seed)
    field = noise * torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(seed)).double().numpy()
    for curve, insert in ((insertion_curve, True), (deletion_curve, False)):
        found = curve(model, images, maps, index, steps, baseline, batch_size=4)
        for sample in range(3):
            of, ties = probability(model, int(index[sample])), turns(7, 6)
            image, values = images[sample].numpy(), maps[sample].numpy()
            expected = reference.imputation_curve(of, image, field, values, ties, steps, insert)
            assert found[sample].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_uneven_steps_by_hand() -> None:
    # Three steps over four pixels: 0, 1, 3 and 4 of them, sums 0, 4, 9 and 10.
    widths, curve = (0.25, 0.5, 0.25), (1 / 2, 5 / 6, 10 / 11, 11 / 12)
    by_hand = sum(width * (curve[step] + curve[step + 1]) / 2 for step, width in enumerate(widths))
    assert insertion(Odds(), IMAGE, MAP, 0, 3, zeros).item() == pytest.approx(by_hand, rel=1e-12)


def test_drop_and_increase_by_hand() -> None:
    # Sum 10 -> 6.5: 11/12 -> 15/17.
    dimming = tensor([0, 0.5], [0.5, 1])[None]
    assert average_drop(Odds(), IMAGE, dimming, 0).item() == pytest.approx(7 / 187, rel=1e-12)
    assert increase(Odds(), IMAGE, dimming, 0).tolist() == [0]
    # Without the -1/2 the sum rises from 1/2 to 1: 3/5 -> 2/3.
    mixed, without = tensor([-0.5, 1], [0, 0])[None, None], tensor([0, 1], [1, 1])[None]
    assert average_drop(Odds(), mixed, without, 0).tolist() == [0]
    assert increase(Odds(), mixed, without, 0).tolist() == [1]
    both = [each.item() for each in dimmed_probabilities(Odds(), mixed, without, 0)]
    assert both == pytest.approx([3 / 5, 2 / 3], rel=1e-12)


def test_road_by_hand() -> None:
    # Half of [1 2 4 8] is removed. The brightest: both become 2, sum 7. The darkest: both become 4, sum 20.
    image, values = tensor([1, 2, 4, 8])[None, None], tensor([1, 2, 4, 8])[None]
    found = [each(Odds(), image, values, 0, shares=[0.5]).item() for each in (road_morf, road_lerf, road_combined)]
    assert found == pytest.approx([8 / 9, 21 / 22, (21 / 22 - 8 / 9) / 2], rel=1e-6)
    # 0.9 of four would be all of them: the darkest stays, and is everywhere.
    assert road_morf(Odds(), image, values, 0, shares=[0.9]).item() == pytest.approx(5 / 6, rel=1e-6)


@few
@given(st.integers(0, 1000), st.sampled_from([1, 4, 5, 50]))
def test_twins(seed: int, steps: int) -> None:
    model, images, maps, index = drawn(seed)
    shares = (0.2, 0.4, 0.6, 0.8)
    curves = (
        (insertion_curve(model, images, maps, index, steps, mean_of), insertion, True),
        (deletion_curve(model, images, maps, index, steps, mean_of), deletion, False),
    )
    scalars = {
        name: MEASURES[name](model, images, maps, index)
        for name in MEASURES
        if name in ("average_drop", "increase", "road_morf", "road_lerf", "road_combined")
    }
    for sample in range(3):
        image, values = images[sample].numpy(), maps[sample].numpy()
        of, ties = probability(model, int(index[sample])), turns(7, 6)
        background = mean_of(images)[sample].numpy()
        for curve, measure, insert in curves:
            widths, expected = reference.replacement_curve(of, image, background, values, ties, steps, insert)
            assert curve[sample].tolist() == pytest.approx(expected, rel=1e-9)
            below = measure(model, images, maps, index, steps, mean_of)[sample].item()
            assert below == pytest.approx(reference.area_under(widths, expected), rel=1e-9)
        most, least = (reference.road(of, image, values, ties, shares, most) for most in (True, False))
        by_loop = {
            "average_drop": reference.drop(of, image, values),
            "increase": reference.increase(of, image, values),
            "road_morf": most,
            "road_lerf": least,
            "road_combined": (least - most) / 2,
        }
        for name, expected_value in by_loop.items():
            assert scalars[name][sample].item() == pytest.approx(expected_value, rel=1e-4, abs=1e-5), name


class Extractor:
    """What torchcam asks of a method, for given maps."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *args: Any, **options: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, maps: list[Tensor]) -> Tensor:
        return maps[0]

    def _hooks_off(self) -> nullcontext[None]:
        return nullcontext()


@few
@given(st.integers(0, 1000))
def test_torchcam_agrees(seed: int) -> None:
    torchcam = pytest.importorskip("torchcam.metrics", reason="needs Python 3.11")
    model, images, _, index = drawn(seed, 4, (8, 8))
    # No ties: torchcam breaks them in reading order.
    generator = torch.Generator().manual_seed(seed)
    maps = torch.stack([torch.randperm(64, generator=generator) for _ in range(4)]).reshape(4, 8, 8).double() / 63
    drops = torchcam.ClassificationMetric(Extractor(model, maps), partial(torch.softmax, dim=-1))
    drops.update(images, index.tolist())
    # It adds 1e-7 to the probability it divides by.
    whole, dimmed = dimmed_probabilities(model, images, maps, index)
    shifted = ((whole - dimmed).relu() / (whole + 1e-7)).mean().item()
    assert drops.summary()["avg_drop"] == pytest.approx(shifted, rel=1e-9)
    assert drops.summary()["conf_increase"] == pytest.approx(increase(model, images, maps, index).mean().item())
    curves = torchcam.DeletionInsertionMetric(Extractor(model, maps), partial(torch.softmax, dim=-1), steps=8)
    curves.update(images, index.tolist())
    found = insertion(model, images, maps, index, 8, zeros).mean().item()
    assert curves.summary()["insertion_auc"] == pytest.approx(found, rel=1e-6)
    found = deletion(model, images, maps, index, 8, zeros).mean().item()
    assert curves.summary()["deletion_auc"] == pytest.approx(found, rel=1e-6)


def test_pytorch_grad_cam_agrees_on_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its percentiles 20 to 80 of 64 distinct values remove 51, 38, 26 and 13 of them, as ours do."""
    monkeypatch.setattr(NoisyLinearImputer.__init__, "__defaults__", (0.0, neighbors_weights))
    for seed in range(5):
        model, images, _, index = drawn(seed, 3, (8, 8))
        model, images = model.float(), images.float()
        generator = torch.Generator().manual_seed(seed)
        maps = torch.stack([torch.randperm(64, generator=generator) for _ in range(3)]).reshape(3, 8, 8).float() / 64
        targets = [ClassifierOutputSoftmaxTarget(each) for each in index.tolist()]
        peer = ROADCombined(percentiles=[20, 40, 60, 80])(images, maps.numpy(), targets, model)
        found = road_combined(model, images, maps, index)
        assert found.tolist() == pytest.approx(peer.tolist(), abs=1e-4)
        assert found.abs().max() > 1e-2


class Spot(nn.Module):
    """Evidence for class 0 lies in the four pixels in the middle of 8 x 8, and nowhere else."""

    def forward(self, images: Tensor) -> Tensor:
        middle = images[:, :, 3:5, 3:5].flatten(1).sum(1)
        return torch.stack([middle, torch.zeros_like(middle)], 1)


def test_a_perfect_map_beats_its_reverse() -> None:
    images = torch.zeros(1, 1, 8, 8)
    images[:, :, 3:5, 3:5] = 1
    perfect = images[:, 0].clone()
    reverse = 1 - perfect
    for measure, sign in (
        (insertion, 1),
        (deletion, -1),
        (average_drop, -1),
        (road_morf, -1),
        (road_lerf, 1),
        (road_combined, 1),
    ):
        better = sign * (measure(Spot(), images, perfect, 0) - measure(Spot(), images, reverse, 0)).item()
        assert better > 0.1, measure.__name__
    assert average_drop(Spot(), images, perfect, 0).tolist() == [0]
    # Reversed, the middle's sum of 4 becomes 0.
    whole = torch.tensor(4.0).sigmoid().item()
    assert average_drop(Spot(), images, reverse, 0).item() == pytest.approx((whole - 0.5) / whole, rel=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_images_are_measured_each_on_their_own(name: str) -> None:
    model, images, maps, index = drawn(5, 4)
    found = MEASURES[name](model, images, maps, index)
    for batch_size in (1, 3, 100):
        again = MEASURES[name](model, images, maps, index, batch_size=batch_size)
        torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-12)
    mixed = torch.tensor([2, 0, 3, 1])
    moved = MEASURES[name](model, images[mixed], maps[mixed], index[mixed])
    torch.testing.assert_close(moved, found[mixed], rtol=1e-9, atol=1e-12)
    assert len(set(found.tolist())) > 1


def test_a_model_that_views_its_input_is_measured_too() -> None:
    """`view` refuses images with their channels last; what such a model raises besides is not swallowed."""

    class Viewing(nn.Module):
        def __init__(self, fails: bool = False) -> None:
            super().__init__()
            self.fails = fails

        def forward(self, images: Tensor) -> Tensor:
            if self.fails:
                raise RuntimeError("no memory")
            total = images.view(len(images), -1).sum(1)
            return torch.stack([total, torch.zeros_like(total)], 1)

    class Reshaping(Viewing):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.contiguous())

    _, images, maps, _ = drawn(3)
    torch.testing.assert_close(deletion(Viewing(), images, maps, 0, 5), deletion(Reshaping(), images, maps, 0, 5))
    with pytest.raises(RuntimeError, match="no memory"):
        deletion(Viewing(fails=True), images, maps, 0, 5)


@pytest.mark.parametrize("name", MEASURES)
def test_the_model_never_sees_more_than_the_batch_size(name: str) -> None:
    seen: list[int] = []

    class Counting(Odds):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return super().forward(images)

    images, maps = IMAGE.abs().expand(3, 1, 2, 2), MAP.expand(3, 2, 2)
    MEASURES[name](Counting(), images, maps, 0, batch_size=4)
    assert max(seen) == 4


class Restless(nn.Module):
    """Draws numbers, overwrites its input, writes to one buffer, replaces another; fails when asked to."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.ones(1))
        self.linear, self.dropout = nn.Linear(4, 2), nn.Dropout()
        self.norm = nn.BatchNorm1d(4).eval()
        self.fails = fails

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.modules())
        self.calls += 1
        self.last = images.sum()[None]
        images.mul_(2).add_(torch.rand(1))
        if self.fails and self.calls > 1:
            raise KeyboardInterrupt
        return {"logits": self.linear(self.dropout(self.norm(images.flatten(1))))}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was(name: str, fails: bool) -> None:
    model, images, maps = Restless(fails).train(), IMAGE.float().repeat(2, 1, 1, 1), MAP.float().repeat(2, 1, 1)
    model.norm.eval()
    flags = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    buffers = list(model.buffers())
    copies, numbers = (images.clone(), maps.clone()), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        MEASURES[name](model, images, maps, [0, 1], batch_size=1)
    assert [module.training for module in model.modules()] == flags
    assert set(flags) == {True, False}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(now is before for now, before in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert torch.equal(images, copies[0])
    assert torch.equal(maps, copies[1])
    assert torch.is_grad_enabled()


def test_a_gradient_still_to_come_survives() -> None:
    """Writing back unchanged statistics would make it fail."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    loss = model(IMAGE).sum()
    insertion(model, IMAGE, MAP, 0, 2)
    loss.backward()
    assert model[2].weight.grad.abs().sum() > 0


def test_a_target_of_no_probability_drops_nothing() -> None:
    class Never(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, 1e6]]).expand(len(images), 2)

    assert average_drop(Never(), IMAGE, MAP, 0).tolist() == [0]


def one_logit(images: Tensor) -> Tensor:
    return images.flatten(1).sum(1)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": MAP[:, :1]}, r"maps must have shape .* = \(1, 2, 2\), as the images, but got \(1, 1, 2\); .*resize"),
        ({"maps": MAP.expand(2, 2, 2)}, r"but got \(2, 2, 2\)"),
        ({"maps": MAP / 0}, "maps hold NaN or infinite values, first in image 0"),
        ({"maps": MAP > 0}, "maps must be a floating-point tensor .* got torch.bool"),
        ({"images": IMAGE.long()}, "images must be a floating-point tensor"),
        ({"images": IMAGE[0, 0]}, "images must have shape"),
        ({"target_index": 2}, "target_index 2 is out of range: the model has 2 outputs, 0 to 1"),
        ({"target_index": -1}, "target_index -1 is out of range"),
        ({"target_index": [0, 1]}, "target_index must be .* but got 2 of them for 1 images"),
        ({"target_index": torch.tensor([0.0])}, "target_index must be .* but got torch.float32"),
        ({"target_index": True}, "target_index must be .* but got True"),
        ({"target_index": "cat"}, "target_index must be .* but got 'cat'"),
        ({"target_index": None}, "target_index must be .* but got None"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, but got 0"),
        ({"model": one_logit}, "model must be a torch.nn.Module, but got function"),
        ({"model": Function(one_logit)}, "model gives one value per image, whose softmax is always 1"),
    ],
)
def test_unusable_arguments_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    arguments = {"model": Odds(), "images": IMAGE, "maps": MAP, "target_index": 0, **changes}
    with pytest.raises(InputError, match=message):
        MEASURES[name](**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: insertion(Odds(), IMAGE, MAP, 0, steps=0), "steps must be a whole number of at least 1, but got 0"),
        (
            lambda: deletion(Odds(), IMAGE, MAP, 0, baseline=lambda x: x[:, :, :1]),
            r"baseline must give .* \(1, 1, 1, 2\)",
        ),
        (lambda: average_drop(Odds(), IMAGE, MAP * 2, 0), r"maps must lie in \[0, 1\] .* from 0.5 to 2"),
        (lambda: increase(Odds(), IMAGE, -MAP, 0), r"from -1 to -0.25"),
        (lambda: road_morf(Odds(), IMAGE, MAP, 0, shares=[]), "shares must hold"),
        (lambda: road_lerf(Odds(), IMAGE, MAP, 0, shares=[0.5, 1]), "above 0 and below 1"),
        (lambda: road_combined(Odds(), IMAGE, MAP, 0, noise=0.1), "noise=0.1 needs a generator"),
        (lambda: road_morf(Odds(), IMAGE[..., None], MAP[..., None], 0), r"shape \(batch, channel, height, width\)"),
        (lambda: imputed(IMAGE, torch.ones(1, 2, 2, dtype=torch.bool)), "takes every pixel of an image"),
        (lambda: imputed(IMAGE, torch.ones(1, 2, 2)), "removed must be boolean"),
        (
            lambda: insertion(Odds(), IMAGE[..., None], MAP[..., None], 0, baseline=NoisyLinear()),
            r"shape \(batch, channel, height, width\)",
        ),
        (lambda: blurred(IMAGE, 0), "sigma must be a finite number of pixels above 0, but got 0"),
    ],
)
def test_unusable_options_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.flatten(1) / 0, "NaN or infinite"),
        (lambda x: x.flatten(1)[:1].expand(3, 4), r"shape \(3, 4\) for 21 images"),
    ],
)
def test_unusable_outputs_are_refused(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        insertion(Function(function), IMAGE, MAP, 0)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_probabilities_that_the_model_makes_itself_are_taken_as_they_are(last: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), last).double()
    image, target = torch.rand(1, 1, 2, 2, dtype=torch.float64), 2
    curve = deletion_curve(model, image, image[:, 0], target, steps=1)
    with torch.no_grad():
        torch.testing.assert_close(curve[0], model(torch.cat([image, 0 * image]))[:, target])
