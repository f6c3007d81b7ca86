"""Fusion of maps: numbers by hand, the twins, and what no fusion may do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples, noise, trace_of
from reference import fusion as reference
from torch import Tensor

from integrative_cam import Recipe, explain_trace
from integrative_cam._choices import FUSIONS
from integrative_cam._maps.fusion import by_magnitude, fuse, resize
from integrative_cam._maps.weighting import shares
from integrative_cam.recipe import PLAIN

few = examples(30)


def tensor(*values: object) -> Tensor:
    """float64; one image unless the values are nested."""
    return torch.tensor(values, dtype=torch.float64)


def test_interpolation_by_hand() -> None:
    torch.testing.assert_close(resize(tensor([0, 1]), (4,)), tensor([0, 0.25, 0.75, 1]))
    torch.testing.assert_close(resize(tensor([0, 3, 6]), (2,)), tensor([0.75, 5.25]))
    torch.testing.assert_close(resize(tensor([0, 6]), (3,)), tensor([0, 3, 6]))
    torch.testing.assert_close(resize(tensor([[0, 4], [8, 12]]), (2, 4)), tensor([[0, 1, 3, 4], [8, 9, 11, 12]]))
    torch.testing.assert_close(resize(tensor([[[1]]]), (2, 1, 2)), tensor([[[1, 1]], [[1, 1]]]))


@few
@given(
    st.integers(1, 3).flatmap(
        lambda dims: st.tuples(*[st.lists(st.integers(1, 6), min_size=dims, max_size=dims).map(tuple)] * 2)
    ),
    st.integers(0, 2**31),
)
def test_twins_of_interpolation(sizes: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    old, new = sizes
    values = noise(torch.Generator().manual_seed(seed), 2, *old)
    found = resize(values, new)
    for sample in range(2):
        np.testing.assert_allclose(
            found[sample], reference.interpolate(values[sample].numpy(), new), rtol=1e-12, atol=1e-13
        )


def test_by_magnitude_by_hand() -> None:
    assert by_magnitude(tensor([1, -4, 2], [0, 0, 0])).tolist() == [[0.25, -1, 0.5], [0, 0, 0]]


# By magnitude: 1, 1/2, -1/2 and 1/4, -1, 1; with weights 3/4 and 1/4.
MAPS = [tensor([2, 1, -1]), tensor([10, -40, 40])]
WEIGHTS = tensor([0.75, 0.25])


def test_gamma_by_hand() -> None:
    found = fuse([tensor([-4, 1, 4])], tensor([1]), (3,), "sum", 0.5)
    assert found.tolist() == [[0, 0.5, 1]]
    torch.testing.assert_close(fuse([tensor([2, 1, 4])], tensor([1]), (3,), "max", 2), tensor([0.25, 0.0625, 1]))


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        # 13/16, 1/8, -1/8
        ("sum", [1, 2 / 13, 0]),
        # max(3/4, 1/16), 3/8, 1/4
        ("max", [1, 0.5, 1 / 3]),
        # Only the first position is positive in both.
        ("geometric", [1, 0, 0]),
        ("product", [1, 0, 0]),
    ],
)
def test_fusion_by_hand(fusion: str, expected: list[float]) -> None:
    torch.testing.assert_close(fuse(MAPS, WEIGHTS, (3,), fusion), tensor(expected))


def test_geometric_mean_and_product_by_hand() -> None:
    # 1, 1/4, 1/16 and 1, 1, 1/16, weights 1/2: 1, 1/2, 1/16; the product: 1, 1/4, 1/256.
    maps = [tensor([16, 4, 1]), tensor([32, 32, 2])]
    torch.testing.assert_close(fuse(maps, tensor([0.5, 0.5]), (3,), "geometric"), tensor([1, 1 / 2, 1 / 16]))
    torch.testing.assert_close(fuse(maps, tensor([0.5, 0.5]), (3,), "product"), tensor([1, 1 / 4, 1 / 256]))
    # weights 1 and 0: a layer without weight has no say, even where it is zero.
    vetoes = [maps[0], tensor([1, 0, 0])]
    torch.testing.assert_close(fuse(vetoes, tensor([1, 0]), (3,), "geometric"), tensor([1, 1 / 4, 1 / 16]))


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Tensor], Tensor, tuple[int, ...]]:
    """Signed or positive maps of several resolutions, for two images, their weights and the final size."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dims = draw(st.integers(1, 3))
    space = tuple(draw(st.integers(1, 5)) for _ in range(dims))
    positive = draw(st.booleans())
    maps = []
    for _ in range(draw(st.integers(1, 4))):
        size = space if draw(st.booleans()) else tuple(draw(st.integers(1, 4)) for _ in range(dims))
        found = noise(generator, 2, *size) * 10.0 ** draw(st.integers(-3, 3))
        maps.append(found.abs() if positive else found)
    return maps, shares(noise(generator, 2, len(maps)).abs()), space


@pytest.mark.parametrize("fusion", FUSIONS)
@few
@given(given_layers=layers())
def test_twins_of_fusion(fusion: str, given_layers: tuple[list[Tensor], Tensor, tuple[int, ...]]) -> None:
    maps, weights, space = given_layers
    found = fuse(maps, weights, space, fusion)
    assert found.shape == (2, *space)
    for sample in range(2):
        expected = reference.fuse([each[sample].numpy() for each in maps], weights[sample].tolist(), space, fusion)
        np.testing.assert_allclose(found[sample], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("fusion", FUSIONS)
@few
@given(given_layers=layers(), factor=st.floats(1e-5, 1e5))
def test_the_scale_of_one_layer_does_not_matter(
    fusion: str, given_layers: tuple[list[Tensor], Tensor, tuple[int, ...]], factor: float
) -> None:
    maps, weights, space = given_layers
    scaled = [maps[0] * factor, *maps[1:]]
    torch.testing.assert_close(
        fuse(scaled, weights, space, fusion), fuse(maps, weights, space, fusion), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("fusion", FUSIONS)
@few
@given(given_layers=layers())
def test_a_map_reaches_one_or_is_blank(fusion: str, given_layers: tuple[list[Tensor], Tensor, tuple[int, ...]]) -> None:
    found = fuse(*given_layers, fusion).flatten(1)
    assert (found >= 0).all()
    assert all(largest in (0, 1) for largest in found.amax(1).tolist())


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("space", [(7,), (4, 6), (3, 4, 5)])
def test_constant_positive_maps_stay_one_everywhere(fusion: str, space: tuple[int, ...]) -> None:
    sizes = [space, tuple(size // 2 for size in space), (1,) * len(space)]
    maps = [
        torch.full((2, *size), value, dtype=torch.float64) for size, value in zip(sizes, (3e-4, 1, 70), strict=True)
    ]
    found = fuse(maps, tensor([0.2, 0.5, 0.3], [0.6, 0.4, 0]), space, fusion)
    torch.testing.assert_close(found, torch.ones(2, *space, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_minimum_is_subtracted(fusion: str) -> None:
    torch.testing.assert_close(fuse([tensor([6, 4, 8])], tensor([1]), (3,), fusion), tensor([0.75, 0.5, 1]))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_speaks_against_the_target_everywhere_is_blank(fusion: str) -> None:
    assert fuse([tensor([-6, -4, -8])], tensor([1]), (3,), fusion).tolist() == [[0, 0, 0]]
    assert fuse([tensor([0, 0, 0])], tensor([1]), (3,), fusion).tolist() == [[0, 0, 0]]


def test_each_image_is_scaled_alone() -> None:
    found = fuse([tensor([1, 2], [50, 25])], tensor([1], [1]), (2,), "sum")
    assert found.tolist() == [[0.5, 1], [1, 0.5]]


@few
@given(layers())
def test_the_product_is_the_geometric_mean_to_the_number_of_layers(
    given_layers: tuple[list[Tensor], Tensor, tuple[int, ...]],
) -> None:
    maps, weights, space = given_layers
    mean = fuse(maps, weights, space, "geometric")
    torch.testing.assert_close(fuse(maps, weights, space, "product"), mean ** len(maps), rtol=1e-8, atol=1e-10)


def test_with_equal_weights_the_product_multiplies() -> None:
    generator = torch.Generator().manual_seed(3)
    maps = [noise(generator, 1, 4, 5).abs() for _ in range(3)]
    product = maps[0] * maps[1] * maps[2]
    found = fuse(maps, torch.full((1, 3), 1 / 3, dtype=torch.float64), (4, 5), "product")
    torch.testing.assert_close(found, product / product.max(), rtol=1e-9, atol=1e-12)


def test_signed_layers_cancel_and_cut_layers_do_not() -> None:
    """Evidence -1 in one layer against +1 in another: 0 if cut after fusion, 1/2 of the peak if cut before."""
    at_taps = [
        (tensor([[1, 1, 1]]), tensor([[1, 0.5, 0]])),
        (tensor([[1, 1, 1]]), tensor([[-0.5, 0.5, 1]])),
    ]
    recipe = {**PLAIN, "readout": "identity", "negative_share": 1.0, "bias": "none", "weighting": "uniform"}
    signed = explain_trace(trace_of(at_taps), Recipe(**recipe, signed=True)).map
    cut = explain_trace(trace_of(at_taps), Recipe(**recipe, signed=False)).map
    assert signed.tolist() == [[0.5, 1, 1]]
    assert cut.tolist() == [[1, 1, 1]]
