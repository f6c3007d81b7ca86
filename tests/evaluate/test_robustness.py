"""Infidelity and max-sensitivity against loops over samples, and what they must be on networks by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import Options, build, images
from torch import Tensor, nn

from integrative_cam import MissingExtraError, explain, get_method
from integrative_cam.errors import InputError, OutputError, TargetError
from integrative_cam.evaluate._robustness import Perturbation, infidelity, max_sensitivity, noise, removed_square

HIRES = get_method("hirescam")
pytestmark = pytest.mark.filterwarnings("ignore:The map of image")


class Linear(nn.Module):
    """Score 0 is the sum of positive pixels, the last column counting against it; score 1 its negative."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.ones(x.shape[1:]).to(x)
        weights[..., -1] = -1
        score = (x.relu() * weights).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


def network(seed: int) -> tuple[nn.Module, Tensor]:
    option = Options(seed=seed, norm="affine")
    return build("resnet", option), images(option, (9, 6), batch=3)


def by_loop(
    model: nn.Module, seen: Tensor, index: list[int], perturbation: Perturbation, samples: int, seed: int
) -> list[float]:
    """The definition, one draw at a time: the factor that fits best, then the mean squared miss."""
    found = []
    maps = explain(model, seen, index, HIRES.recipe).signed_map.numpy()
    for at, image in enumerate(seen):
        generator = torch.Generator().manual_seed(seed)
        told, done = [], []
        with torch.no_grad():
            whole = model(image[None])[0, index[at]].item()
            for _ in range(samples):
                taken = perturbation(image, generator)
                told.append(sum(float((taken[channel].numpy() * maps[at]).sum()) / 2 for channel in range(2)))
                done.append(whole - model((image - taken)[None])[0, index[at]].item())
        factor = sum(one * other for one, other in zip(told, done, strict=True)) / sum(one**2 for one in told)
        found.append(sum((factor * one - other) ** 2 for one, other in zip(told, done, strict=True)) / samples)
    return found


@pytest.mark.parametrize("perturbation", [removed_square, noise])
@pytest.mark.parametrize("seed", [0, 3])
def test_infidelity_is_its_definition(perturbation: Perturbation, seed: int) -> None:
    model, seen = network(11)
    index = [3, 0, 2]
    found = infidelity(model, seen, HIRES, index, perturbation, samples=7, seed=seed, batch_size=3)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, by_loop(model, seen, index, perturbation, 7, seed), rtol=1e-8)


def test_max_sensitivity_is_its_definition() -> None:
    model, seen = network(12)
    index = [1, 1, 0]
    found = max_sensitivity(model, seen, HIRES, index, radius=0.3, samples=5, seed=2, batch_size=2)
    for at, image in enumerate(seen):
        generator = torch.Generator().manual_seed(2)
        still = explain(model, image[None], index[at], HIRES.recipe).signed_map.numpy()
        moved = []
        for _ in range(5):
            drawn = (2 * torch.rand(image.shape, generator=generator).double() - 1) * 0.3
            other = explain(model, (image + drawn)[None], index[at], HIRES.recipe).signed_map.numpy()
            moved.append(np.sqrt(((other - still) ** 2).sum() / (still**2).sum()))
        assert found[at].item() == pytest.approx(max(moved), rel=1e-8)
        assert max(moved) > 1.2 * min(moved)


def test_a_linear_network_is_explained_without_infidelity() -> None:
    """Of equal channels, gradient times activation is the score's change up to one factor, whatever its sign."""
    seen = torch.full((2, 2, 8, 8), 2.0, dtype=torch.float64)
    seen[1] = 3
    for index in (0, [1, 0], torch.tensor([0, 1])):
        found = infidelity(Linear(), seen, HIRES, index, samples=9)
        assert found.abs().max() < 1e-9
        assert infidelity(Linear(), seen, get_method("uniform"), index, seed=1).min() > 1e-3


def test_a_linear_networks_map_stays() -> None:
    seen = torch.rand(2, 2, 8, 8, dtype=torch.float64) + 1
    scaled = lambda model, images, target: HIRES(model, images.sign(), target)  # noqa: E731
    assert not max_sensitivity(Linear(), seen, scaled, 0).any()
    assert max_sensitivity(Linear(), seen, HIRES, 0).min() > 0


def test_the_removed_square() -> None:
    image = torch.arange(1, 2 * 8 * 13 + 1, dtype=torch.float64).reshape(2, 8, 13)
    generator = torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(600):
        taken = removed_square(image, generator)
        rows, columns = taken[0].nonzero().T
        assert taken.count_nonzero() == 2 * 2 * 2
        row, column = rows.min().item(), columns.min().item()
        assert torch.equal(taken[taken != 0], image[:, row : row + 2, column : column + 2].flatten())
        corners.add((row, column))
    assert corners == {(row, column) for row in range(7) for column in range(12)}
    assert removed_square(torch.ones(1, 3, 3), generator).sum() == 1
    assert removed_square(torch.ones(2, 8, 9, 12), generator).sum() == 2 * 2**3


def test_the_noise() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.float64)
    drawn = noise(image, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float64
    assert drawn.std().item() == pytest.approx(0.2, rel=0.02)
    assert drawn.mean().item() == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("measure", [infidelity, max_sensitivity])
def test_no_image_depends_on_the_batch(measure: Callable[..., Tensor]) -> None:
    model, seen = network(13)
    together = measure(model, seen, HIRES, [0, 1, 2], samples=6, batch_size=4)
    alone = [measure(model, seen[at : at + 1], HIRES, at, samples=6, batch_size=1) for at in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(together, measure(model, seen, HIRES, [0, 1, 2], samples=6, seed=1))


@pytest.mark.parametrize("measure", [infidelity, max_sensitivity])
def test_the_model_and_the_random_numbers_stay(measure: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(96, 3)
    )
    seen = torch.randn(2, 2, 8, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    in_training = measure(model.train(), seen, HIRES, 1, samples=4)
    assert all(each.training for each in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(in_training, measure(model.eval(), seen, HIRES, 1, samples=4))


def test_a_blank_map() -> None:
    """No factor fits nothing: the miss is the change itself; and no norm divides a sensitivity."""
    seen = torch.rand(1, 2, 8, 8, dtype=torch.float64) + 1
    blank = lambda model, images, target: explain(Linear(), -images, target, HIRES.recipe)  # noqa: E731
    with pytest.warns(UserWarning, match="is blank"):
        found = infidelity(Linear(), seen, blank, 0, samples=5)
    generator = torch.Generator().manual_seed(0)
    changes = []
    for _ in range(5):
        taken = removed_square(seen[0], generator)
        changes.append((Linear()(seen) - Linear()(seen - taken))[0, 0].item() ** 2)
    assert found.item() == pytest.approx(sum(changes) / 5)
    with pytest.warns(UserWarning, match="is blank"):
        assert max_sensitivity(Linear(), seen, blank, 0, samples=3).item() == 0


@pytest.mark.parametrize("measure", [infidelity, max_sensitivity])
def test_errors(measure: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = network(14)
    with pytest.raises(InputError, match="samples must be a whole number of at least 1, but got 0"):
        measure(model, seen, HIRES, 0, samples=0)
    with pytest.raises(InputError, match="batch_size must be"):
        measure(model, seen, HIRES, 0, batch_size=0)
    with pytest.raises(InputError, match=r"images must .* \(batch, channel, \*space\)"):
        measure(model, seen[0, 0], HIRES, 0)
    with pytest.raises(TargetError, match="out of range"):
        measure(model, seen, HIRES, 9)
    with pytest.raises(InputError, match="target_index must be one class index"):
        measure(model, seen, HIRES, lambda output: output[0])
    monkeypatch.setitem(sys.modules, "captum.metrics", None)
    with pytest.raises(MissingExtraError, match=r"needs the package .*integrative-cam\[peers\]"):
        measure(model, seen, HIRES, 0)


def test_radius_and_scores_that_are_not_finite() -> None:
    model, seen = network(14)
    for radius in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="radius must be a finite number above 0"):
            max_sensitivity(model, seen, HIRES, 0, radius=radius)
    with pytest.raises(OutputError, match="score of a perturbed image is NaN"):
        infidelity(model, seen, HIRES, 0, perturbation=lambda image, _: image * float("nan"), samples=2)
