"""Perturbations, faithfulness and simplicity: by hand, against the twins, against the peers where they are right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Options, build, examples, noise
from pytorch_grad_cam.metrics import arcc as peer_arcc
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined, neighbors_weights
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from reference import metrics as reference
from torch import Tensor, nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from integrative_cam import InputError, OutputError
from integrative_cam.evaluate import (
    adcc,
    arcc,
    area,
    average_drop,
    blurred,
    coherency,
    complexity,
    deletion,
    deletion_curve,
    dimmed_probabilities,
    imputed,
    increase,
    insertion,
    insertion_curve,
    mean_of,
    order,
    road_combined,
    road_lerf,
    road_morf,
    total_variation,
    zeros,
)

few = examples(15)
MEASURES: dict[str, Callable[..., Tensor]] = {
    "insertion": partial(insertion, steps=5),
    "deletion": partial(deletion, steps=5),
    "average_drop": average_drop,
    "increase": increase,
    "road_morf": road_morf,
    "road_lerf": road_lerf,
    "road_combined": road_combined,
}


class Odds(nn.Module):
    """Probability (1 + s) / (2 + s) of class 0 for an image of sum s: fractions by hand."""

    def forward(self, images: Tensor) -> Tensor:
        odds = images.flatten(1).sum(1).log1p()
        return torch.stack([odds, torch.zeros_like(odds)], 1)


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


IMAGE = tensor([1, 2], [3, 4])[None, None]
MAP = tensor([0.25, 0.5], [0.75, 1])[None]


def drawn(seed: int, batch: int = 3, size: tuple[int, int] = (7, 6)) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, its images, maps in [0, 1] with ties, and targets."""
    generator = torch.Generator().manual_seed(seed)
    model = build("vgg", Options(seed=seed, norm="affine"))
    images = noise(generator, batch, 2, *size) * 2
    with torch.no_grad():
        # Logits around 0 that differ by about 2: no probability is 0 or 1.
        logits, last = model(images), model[-1]
        factor = 2 / (logits - logits.mean(0)).std()
        last.weight *= factor
        last.bias.copy_((last.bias - logits.mean(0)) * factor)
    maps = torch.randint(0, 12, (batch, *size), generator=generator).double() / 11
    return model, images, maps, torch.randint(0, 4, (batch,), generator=generator)


def probability(model: nn.Module, index: int) -> reference.Probability:
    def of(image: np.ndarray) -> float:
        with torch.no_grad():
            return model(torch.from_numpy(image)[None]).softmax(1)[0, index].item()

    return of


def turns(*size: int) -> list[int]:
    """Each flat position's turn among equals."""
    return order(torch.zeros(1, *size)).argsort(1)[0].tolist()


# --- perturbation


@few
@given(st.integers(0, 1000), st.sampled_from([0.4, 1.0, 2.5]))
def test_blur_is_the_twins(seed: int, sigma: float) -> None:
    images = noise(torch.Generator().manual_seed(seed), 2, 2, 5, 4)
    for image, found in zip(images, blurred(images, sigma), strict=True):
        np.testing.assert_allclose(found.numpy(), reference.blurred(image.numpy(), sigma), rtol=1e-12, atol=1e-12)


def test_baselines_by_hand() -> None:
    assert zeros(IMAGE).tolist() == [[[[0, 0], [0, 0]]]]
    assert mean_of(IMAGE).tolist() == [[[[2.5, 2.5], [2.5, 2.5]]]]
    two = torch.cat([IMAGE, -IMAGE], 1)
    assert mean_of(two)[0, :, 0, 0].tolist() == [2.5, -2.5]
    torch.testing.assert_close(blurred(torch.full((1, 1, 3, 40), 7.0)), torch.full((1, 1, 3, 40), 7.0))


def test_half_precision_blurs_as_float32_does() -> None:
    images = noise(torch.Generator().manual_seed(0), 1, 1, 12, 12).half()
    assert torch.equal(blurred(images, 2), blurred(images.float(), 2).half())
    assert torch.equal(mean_of(images), images.float().mean().half().expand(1, 1, 12, 12))


@st.composite
def holes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Images and what is removed of them: from nothing to all but one pixel."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([(1, 5), (4, 4), (6, 9)]))
    share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    removed = torch.rand(3, *size, generator=generator) < share
    removed.flatten(1)[:, draw(st.integers(0, size[0] * size[1] - 1))] = False
    return noise(generator, 3, 2, *size) * 3 + 100, removed


@few
@given(holes())
def test_imputation_solves_the_twins_equations(given_holes: tuple[Tensor, Tensor]) -> None:
    images, removed = given_holes
    for image, mask, found in zip(images, removed, imputed(images, removed), strict=True):
        expected = reference.imputed(image.numpy(), mask.numpy())
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
        assert torch.equal(found[:, ~mask], image[:, ~mask])


@few
@given(st.integers(0, 1000))
def test_imputation_is_the_peers_without_noise(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, removed = noise(generator, 2, 3, 14, 11).float(), torch.rand(2, 14, 11, generator=generator) < 0.7
    for image, mask, found in zip(images, removed, imputed(images, removed), strict=True):
        peer = NoisyLinearImputer(noise=0)(image, (~mask).float())
        torch.testing.assert_close(found, peer, rtol=0, atol=1e-4)


def test_imputation_by_hand() -> None:
    # The middle of a row sees only its two ends; the middle of a square 4 direct and 4 diagonal neighbours.
    row = imputed(tensor([1, 0, 5])[None, None], torch.tensor([[[False, True, False]]]))
    torch.testing.assert_close(row, tensor([1, 3, 5])[None, None])
    square = tensor([12, 6, 0], [0, 99, 0], [0, 0, 0])[None, None]
    middle = torch.zeros(1, 3, 3, dtype=torch.bool)
    middle[0, 1, 1] = True
    torch.testing.assert_close(imputed(square, middle)[0, 0, 1, 1], tensor([2])[0, 0])


def test_a_large_hole_in_a_photograph_sized_image_is_filled_in_float32() -> None:
    """A plane is the mean of its neighbours everywhere, so that it must come back from its frame."""
    y, x = torch.meshgrid(torch.linspace(-2, 2, 96), torch.linspace(-1, 1, 80), indexing="ij")
    plane, removed = (y + x)[None, None], torch.zeros(1, 96, 80, dtype=torch.bool)
    removed[:, 1:-1, 1:-1] = True
    torch.testing.assert_close(imputed(plane, removed), plane, rtol=0, atol=2e-3)


def test_imputation_does_not_depend_on_the_rest_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    images, removed = noise(generator, 2, 2, 24, 24), torch.rand(2, 24, 24, generator=generator) < 0.3
    # The second image needs far more steps than the first.
    removed[1, :, 1:] = True
    torch.testing.assert_close(imputed(images, removed)[:1], imputed(images[:1], removed[:1]), rtol=1e-12, atol=1e-12)


def test_noise_is_added_to_imputed_pixels_alone_and_can_be_repeated() -> None:
    images = noise(torch.Generator().manual_seed(0), 1, 3, 60, 60)
    removed = torch.rand(1, 60, 60, generator=torch.Generator().manual_seed(1)) < 0.5
    noisy = [imputed(images, removed, 0.01, torch.Generator().manual_seed(seed)) for seed in (2, 2, 3)]
    added = (noisy[0] - imputed(images, removed))[:, :, removed[0]]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    assert torch.equal(noisy[0][:, :, ~removed[0]], images[:, :, ~removed[0]])
    assert added.std().item() == pytest.approx(0.01, rel=0.05)
    assert abs(added.mean().item()) < 5e-4


def test_order_by_hand() -> None:
    assert order(tensor([3, -1], [7, 5])[None]).tolist() == [[2, 3, 0, 1]]


def test_ties_favour_no_part_of_the_image() -> None:
    """In reading order, the first half of a flat map would be its upper half, whose mean row is 9.5."""
    first = order(torch.ones(1, 40, 40))[0][:800]
    assert (first // 40).double().mean().item() == pytest.approx(19.5, abs=1.5)
    assert (first % 40).double().mean().item() == pytest.approx(19.5, abs=1.5)
    assert sorted(order(torch.ones(1, 5, 5))[0].tolist()) == list(range(25))
    assert torch.equal(order(torch.ones(2, 5, 5, dtype=torch.half)), order(torch.zeros(2, 5, 5)))


@few
@given(st.integers(0, 1000))
def test_order_is_the_twins(seed: int) -> None:
    maps = drawn(seed)[2]
    for values, found in zip(maps, order(maps), strict=True):
        expected = reference.ranking(values.numpy(), turns(7, 6))
        assert [divmod(position, 6) for position in found.tolist()] == expected


# --- faithfulness


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
        name: MEASURES[name](model, images, maps, index) for name in MEASURES if name not in ("insertion", "deletion")
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
    model, images, _, index = drawn(seed, 4, (8, 8))
    # No ties: torchcam breaks them in reading order.
    generator = torch.Generator().manual_seed(seed)
    maps = torch.stack([torch.randperm(64, generator=generator) for _ in range(4)]).reshape(4, 8, 8).double() / 63
    drops = ClassificationMetric(Extractor(model, maps), partial(torch.softmax, dim=-1))
    drops.update(images, index.tolist())
    # It adds 1e-7 to the probability it divides by.
    whole, dimmed = dimmed_probabilities(model, images, maps, index)
    shifted = ((whole - dimmed).relu() / (whole + 1e-7)).mean().item()
    assert drops.summary()["avg_drop"] == pytest.approx(shifted, rel=1e-9)
    assert drops.summary()["conf_increase"] == pytest.approx(increase(model, images, maps, index).mean().item())
    curves = DeletionInsertionMetric(Extractor(model, maps), partial(torch.softmax, dim=-1), steps=8)
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
        (lambda x: x.flatten(1)[:1].expand(3, 4), "3 rows for"),
    ],
)
def test_unusable_outputs_are_refused(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        insertion(Function(function), IMAGE, MAP, 0)


# --- simplicity


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
