"""What removed pixels show, and which pixels go first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluated import IMAGE, drawn, few, tensor, turns
from hypothesis import given
from hypothesis import strategies as st
from networks import noise
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from reference import metrics as reference
from torch import Tensor

from integrative_cam.evaluate import _imputation as imputation
from integrative_cam.evaluate import blurred, imputed, mean_of, order, zeros


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
    torch.testing.assert_close(imputed(plane, removed), plane, rtol=0, atol=2e-5)


def around_and_inside(height: int, width: int) -> Tensor:
    """What is removed of two images: all but a small disc off the middle, and a large disc with scattered pixels."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    scattered = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.5
    return torch.stack([(y - 0.2) ** 2 + x**2 > 0.1, (y**2 + x**2 < 0.8) & ((y < 0) | scattered)])


@pytest.mark.parametrize("size", [(61, 50), (64, 37)])
def test_slow_modes_of_large_holes_are_the_peers_too(size: tuple[int, int]) -> None:
    images, removed = noise(torch.Generator().manual_seed(1), 2, 3, *size).float(), around_and_inside(*size)
    for image, mask, found in zip(images, removed, imputed(images, removed), strict=True):
        torch.testing.assert_close(found, NoisyLinearImputer(noise=0)(image, (~mask).float()), rtol=0, atol=2e-5)


def test_a_dozen_multigrid_cycles_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the hole. Conjugate gradients hide a wrong cycle: they still converge, in hundreds of steps."""
    depths: list[int] = []
    cycle = imputation._cycle

    def counting(levels: list[imputation._Level], residual: Tensor) -> Tensor:
        depths.append(len(levels))
        return cycle(levels, residual)

    monkeypatch.setattr(imputation, "_cycle", counting)
    for size in ((63, 50), (224, 224)):
        depths.clear()
        images = noise(torch.Generator().manual_seed(2), 2, 1, *size).float()
        imputed(images, around_and_inside(*size))
        assert 3 <= depths.count(max(depths)) <= 16, size


def test_coarser_is_the_transpose_of_finer() -> None:
    """Conjugate gradients want a symmetric cycle."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((6, 8), (5, 7), (1, 4)):
        fine = noise(generator, 1, 1, height, width)
        coarse = imputation._coarser(fine)
        other = noise(generator, *coarse.shape)
        back = imputation._finer(other)[..., :height, :width]
        torch.testing.assert_close((coarse * other).sum(), (fine * back).sum(), rtol=1e-12, atol=1e-12)
        # Ones stay ones: the sum over fine pixels of a coarse pixel's share is one each.
        torch.testing.assert_close(back + imputation._finer(1 - other)[..., :height, :width], torch.ones_like(fine))


def test_imputation_knows_no_unit() -> None:
    images, removed = noise(torch.Generator().manual_seed(4), 2, 1, 20, 17), around_and_inside(20, 17)
    expected = imputed(images, removed)
    for factor in (2.0**-500, 2.0**500):
        torch.testing.assert_close(imputed(images * factor, removed) / factor, expected, rtol=1e-12, atol=1e-12)
    flat = torch.full((2, 3, 20, 17), 0.1)
    assert torch.equal(imputed(flat, removed), flat)


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
