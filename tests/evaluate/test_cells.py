"""Metrics by cells: by hand on linear networks, whose exact attribution is known, and against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluated import IMAGE, MAP, Odds, drawn, few, logit, probability, tensor, turns
from hypothesis import given
from hypothesis import strategies as st
from networks import noise
from reference import metrics as reference
from torch import Tensor, nn

from integrative_cam.errors import InputError
from integrative_cam.evaluate import _cells as by_cells
from integrative_cam.evaluate import (
    deletion,
    deletion_curve,
    faithfulness_correlation,
    insertion,
    insertion_curve,
    mean_of,
    random_maps,
    road_combined,
    road_lerf,
    road_morf,
    single_cell,
    srg,
    zeros,
)

SIZES = ((12,), (8, 6), (4, 4, 6))


def linear(size: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network of two channels, two images, and the exact attribution of class 1 against zeros."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * torch.Size(size).numel(), 3)).double()
    weight = noise(generator, 3, 2, *size)
    model[1].weight.data = weight.flatten(1)
    images = noise(generator, 2, 2, *size)
    return model, images, (images * weight[1]).sum(1)


def test_curves_by_hand() -> None:
    # Cells of one column and two rows of the image [1 2 3 4; 5 6 7 8]: means .5, .6, .9, .1; sums 6, 8, 10, 12.
    image = tensor([1, 2, 3, 4], [5, 6, 7, 8])[None, None]
    values = tensor([1, 0.2, 0.9, 0], [0, 1, 0.9, 0.2])[None]
    wide = image.repeat_interleave(2, 3)
    # Doubled in width, cells of 2 x 2 are these columns; their pixels count twice.
    found = insertion_curve(Odds(), wide, values.repeat_interleave(2, 2), 0, 4, zeros, cells=2)[0].tolist()
    shown = [0, 20, 36, 48, 72]
    assert found == pytest.approx([(1 + total) / (2 + total) for total in shown], rel=1e-12)
    found = deletion_curve(Odds(), wide, values.repeat_interleave(2, 2), 0, 4, zeros, cells=2)[0].tolist()
    assert found == pytest.approx([(73 - total) / (74 - total) for total in shown], rel=1e-12)


def test_cells_of_one_pixel_are_pixels() -> None:
    model, images, maps, index = drawn(4)
    for measure in (insertion, srg, road_morf, road_lerf, road_combined):
        assert torch.equal(measure(model, images, maps, index, cells=1), measure(model, images, maps, index))
    by_cells_to_zero = deletion(model, images, maps, index, baseline=zeros, cells=1)
    assert torch.equal(by_cells_to_zero, deletion(model, images, maps, index))


@few
@given(st.integers(0, 1000), st.sampled_from([1, 4, 5]), st.sampled_from([2, 3, 4, 6]))
def test_perturbations_are_the_twins(seed: int, steps: int, side: int) -> None:
    """The cells at the right and at the bottom are smaller."""
    model, images, maps, index = drawn(seed)
    maps = (maps * 11).round() / 16  # exact in binary: sums are equal in any order
    shares = (0.2, 0.4, 0.6, 0.8)
    curves = [
        (curve(model, images, maps, index, steps, mean_of, cells=side), insert)
        for curve, insert in ((insertion_curve, True), (deletion_curve, False))
    ]
    areas = [measure(model, images, maps, index, steps, mean_of, cells=side) for measure in (insertion, deletion)]
    gains = srg(model, images, maps, index, steps, mean_of, cells=side)
    roads = [road(model, images, maps, index, shares, cells=side) for road in (road_morf, road_lerf)]
    for sample in range(3):
        image, values = images[sample].numpy(), maps[sample].numpy()
        of, ties = probability(model, int(index[sample])), turns(-(-7 // side), -(-6 // side))
        background = mean_of(images)[sample].numpy()
        for (curve, insert), area in zip(curves, areas, strict=True):
            expected = reference.replacement_curve(of, image, background, values, ties, steps, insert, side)
            assert curve[sample].tolist() == pytest.approx(expected[1], rel=1e-9)
            assert area[sample].item() == pytest.approx(reference.area_under(*expected), rel=1e-9)
        groups = reference.cell_ranking(values, ties, side)
        gain = reference.relevance_gain(of, image, background, groups, steps)
        assert gains[sample].item() == pytest.approx(gain, rel=1e-9, abs=1e-12)
        for road, most in zip(roads, (True, False), strict=True):
            expected_road = reference.road(of, image, values, ties, shares, most, side)
            assert road[sample].item() == pytest.approx(expected_road, rel=1e-4, abs=1e-5)


@few
@given(st.integers(0, 1000), st.sampled_from([1, 2, 3, 4]))
def test_answers_to_cells_are_the_twins(seed: int, side: int) -> None:
    model, images, maps, index = drawn(seed)
    maps = (maps * 11 - 5).round() / 16
    cells = -(-7 // side) * -(-6 // side)
    singles = single_cell(model, images, maps, index, side, mean_of, batch_size=5)
    correlations = faithfulness_correlation(model, images, maps, index, side, 12, seed, mean_of, batch_size=5)
    sets = by_cells._random_sets(12, cells, seed).numpy()
    for sample in range(3):
        image, values = images[sample].numpy(), maps[sample].numpy()
        of, background = logit(model, int(index[sample])), mean_of(images)[sample].numpy()
        expected = reference.single_cell(of, image, background, values, side)
        assert singles[sample].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        expected = reference.faithfulness_correlation(of, image, background, values, side, sets)
        assert correlations[sample].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_the_exact_attribution_of_a_linear_network_is_perfect(size: tuple[int, ...]) -> None:
    model, images, exact = linear(size)
    for maps, sign in ((exact, 1), (-exact, -1), (3 * exact, 1)):
        found = single_cell(model, images, maps, 1, 2, zeros)
        torch.testing.assert_close(found, torch.full_like(found, sign), rtol=1e-9, atol=1e-9)
        found = faithfulness_correlation(model, images, maps, 1, 2, 64, 0, zeros)
        torch.testing.assert_close(found, torch.full_like(found, sign), rtol=1e-9, atol=1e-9)
    # Cut at zero, the evidence against the class is lost.
    assert (single_cell(model, images, exact.relu(), 1, 2, zeros) < 1).all()
    # No other order of the cells is better than that of what they add.
    best = srg(model, images, exact, 1, 6, cells=2)
    assert (best >= srg(model, images, exact.flip(-1), 1, 6, cells=2)).all()
    assert (best > 0).all()


def test_the_number_of_cells_earns_nothing() -> None:
    """A network that sees only how much is kept: without the number taken out, any positive map would follow it."""
    images, model = torch.ones(1, 1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.constant_(model[1].weight, 1.0)
    maps = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    logits = by_cells.logits_of_sets(model, images, 0, 2, 64, 0, zeros)
    number = by_cells._random_sets(64, 16, 0).sum(1)
    torch.testing.assert_close(logits[0] - logits[0].mean(), 4 * (number - number.float().mean()), rtol=1e-4, atol=1e-4)
    exact = torch.zeros(1, 8, 8)
    assert faithfulness_correlation(model, images, exact, 0, 2, 64, 0, zeros).tolist() == [0]
    assert faithfulness_correlation(model, images, maps * 0 + 0.1, 0, 2, 64, 0, zeros).tolist() == [0]


def test_falls_by_cell_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    model[1].weight.data = tensor([1, -2, 3, 0.5], [0, 0, 0, 1])
    assert by_cells.falls_by_cell(model, IMAGE, 0, 1, zeros).tolist() == [[1, -4, 9, 2]]
    # Ranks of the map 1, 2, 3, 4; of the falls 2, 1, 4, 3: 1 - 6 (1 + 1 + 1 + 1) / (4 * 15).
    assert single_cell(model, IMAGE, MAP, 0, 1, zeros).item() == pytest.approx(0.6, rel=1e-12)


def test_only_the_order_of_cells_counts() -> None:
    """Any rising function of the cells' values leaves the metrics of ranks where they are."""
    model, images, _, index = drawn(7, size=(8, 6))
    values = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maps, others = (by_cells.cells_to_pixels(each, 2, (8, 6)) for each in (values, (5 * values).exp() - 2))
    for measure in (insertion, deletion, srg, road_combined, single_cell):
        before, after = (measure(model, images, each, index, cells=2) for each in (maps, others))
        assert torch.equal(before, after)
        assert not torch.equal(before, measure(model, images, -maps, index, cells=2))
    # Where within a cell the map is high does not matter.
    mixed = by_cells.cells_to_pixels(values, 2, (8, 6)) + torch.tensor([[0.0, 0.01], [0.02, 0.03]]).repeat(4, 3)
    assert torch.equal(insertion(model, images, mixed, index, cells=2), insertion(model, images, maps, index, cells=2))


def test_one_baseline_makes_the_gain_insertion_minus_deletion() -> None:
    model, images, maps, index = drawn(3, size=(8, 8))
    for cells in (None, 2):
        both = [measure(model, images, maps, index, 4, mean_of, cells=cells) for measure in (insertion, deletion)]
        gain = srg(model, images, maps, index, 4, mean_of, cells=cells)
        torch.testing.assert_close(gain, both[0] - both[1], rtol=1e-9, atol=1e-12)


def test_random_maps_earn_nothing() -> None:
    model, images, exact = linear((16, 16), 3)
    images, count = images[:1].expand(60, -1, -1, -1), 60
    maps = random_maps(count, (16, 16), torch.Generator().manual_seed(0)).double() - 0.5
    for measure in (single_cell, faithfulness_correlation):
        found = measure(model, images, maps, 1, cells=2, baseline=zeros)
        assert abs(found.mean().item()) < 4 * found.std().item() / count**0.5
        assert found.abs().max() < 0.7 < measure(model, images[:1], exact[:1], 1, cells=2, baseline=zeros).item()
    assert srg(model, images, maps, 1, 8, cells=2).mean().abs() < 0.1


def test_cells_turn_to_the_blurred_image_and_pixels_to_zero() -> None:
    model, images, maps, index = drawn(2)
    last = deletion_curve(model, images, maps, index, 1, cells=3)[:, 1]
    blurred_last = deletion_curve(model, images, maps, index, 1, by_cells.blurred)[:, 1]
    assert torch.equal(last, blurred_last)
    assert not torch.equal(last, deletion_curve(model, images, maps, index, 1)[:, 1])


def test_sets_are_those_of_the_seed_for_every_method() -> None:
    first, again, other = (by_cells._random_sets(256, 196, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_cells_by_hand() -> None:
    maps = tensor([1, 2, 4], [8, 16, 32], [64, 128, 256])[None]
    assert by_cells.cell_sums(maps, 2).tolist() == [[[27, 36], [192, 256]]]
    assert by_cells.cell_means(maps, 2).tolist() == [[[27 / 4, 18], [96, 256]]]
    spread = by_cells.cells_to_pixels(tensor([1, 2], [3, 4])[None], 2, (3, 3))
    assert spread.tolist() == [[[1, 1, 2], [1, 1, 2], [3, 3, 4]]]
    for size in SIZES:
        values = noise(torch.Generator().manual_seed(0), 1, *size)
        sums = reference.cell_sums(values[0].numpy(), 5)
        np.testing.assert_allclose(by_cells.cell_sums(values, 5)[0].flatten(), list(sums.values()), rtol=1e-12)


@pytest.mark.parametrize("cells", [0, -1, 2, 16, 1.5, True])
def test_unusable_cells_are_refused(cells: int) -> None:
    wanted = (
        "cells must be smaller than the image, 2 x 2 pixels" if cells in (2, 16) else "cells must be a whole number"
    )
    for measure in (insertion, deletion, srg, road_combined, single_cell, faithfulness_correlation):
        with pytest.raises(InputError, match=wanted):
            measure(Odds(), IMAGE, MAP, 0, cells=cells)
    with pytest.raises(InputError, match="sets must be at least 3"):
        faithfulness_correlation(Odds(), IMAGE, MAP, 0, cells=1, sets=2)
