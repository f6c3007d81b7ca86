"""What biases contribute, as numbers and as maps: by hand, against the twins, and site by site in real networks."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import noise, trace_of
from reference import bias as reference
from reference import measure, whole
from torch import Tensor, nn

from integrative_cam import explain, trace
from integrative_cam._maps.completeness import complete_bias, completeness, residual_bias
from integrative_cam._maps.evidence import saturated_shift

few = networks.examples(25)


def tensor(*values: object) -> Tensor:
    """float64."""
    return torch.tensor(values, dtype=torch.float64)


def test_completeness_by_hand() -> None:
    # <g, A> = 1*2 + 3*(-1) = -1 and 4*0.5 = 2; sites 2*1 + 2*3 = 8 behind the first tap only, 5*2 = 10 behind both.
    made = trace_of(
        taps=[(tensor([[1, 3]]), tensor([[2, -1]])), (tensor([[4, 7]]), tensor([[0.5, 0]]))],
        sites=[(tensor([[2, 2]]), tensor([[1, 3]])), (tensor([5]), tensor([2]))],
        behind=torch.tensor([[True, True], [False, True]]),
        score=tensor(20),
    )
    split = completeness(made)
    assert split.activation.tolist() == [[-1, 2]]
    assert split.bias.tolist() == [18]
    assert split.tap_bias.tolist() == [[18, 10]]
    assert split.bypass.tolist() == [[3, 8]]
    assert split.remainder.tolist() == [2]


def test_residual_bias_by_hand() -> None:
    # S - <g, A> = 7 - (-1) = 8, halved, over two positions.
    made = trace_of([(tensor([[1, 3]]), tensor([[2, -1]]))], score=tensor(7))
    assert residual_bias(made, completeness(made), 0).tolist() == [[2, 2]]


def test_complete_bias_by_hand() -> None:
    # Twice as fine and half as high: 4, 8 -> 2, 2.5, 3.5, 4 ; a site without space: 2 -> 1/2 each; not behind: nothing.
    made = trace_of(
        taps=[(torch.zeros(1, 1, 4).double(), torch.zeros(1, 1, 4).double())],
        sites=[(tensor([[0, 0]]), tensor([[0, 0]]))] * 3,
        behind=torch.tensor([[True, True, False]]),
    )
    found = complete_bias(made, [tensor([4, 8]), tensor(2), tensor([100, 100])], 0)
    assert found.tolist() == [[2.5, 3, 4, 4.5]]


@few
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.integers(0, 2**31),
    st.floats(-3, 3),
    st.sampled_from([0.0, 0.4, 1.0]),
)
def test_twins_of_site_maps(shape: list[int], seed: int, rho: float, negative_share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shift, gradient = noise(generator, *shape), noise(generator, *shape)
    each_rho = torch.full((shape[0],), rho, dtype=torch.float64)
    found, _, _ = saturated_shift(gradient, shift, each_rho, negative_share)
    for sample in range(shape[0]):
        expected = reference.site_map(gradient[sample].numpy(), shift[sample].numpy(), rho, negative_share)
        np.testing.assert_allclose(found[sample], expected, rtol=1e-10, atol=1e-12)


@few
@given(st.integers(1, 3), st.integers(0, 2**31), st.lists(st.booleans(), min_size=4, max_size=4))
def test_twins_of_complete_bias(dims: int, seed: int, is_behind: list[bool]) -> None:
    generator = torch.Generator().manual_seed(seed)
    space = (8, 4, 5)[:dims]
    sizes = [space, tuple(size // 2 for size in space), tuple(size + 1 for size in space), ()]
    maps = [noise(generator, 2, *size) for size in sizes]
    made = trace_of(
        taps=[(noise(generator, 2, 3, *space), noise(generator, 2, 3, *space))],
        sites=[(noise(generator, 2, 1), noise(generator, 2, 1))] * len(maps),
        behind=torch.tensor([is_behind]),
    )
    found = complete_bias(made, maps, 0)
    for sample in range(2):
        expected = reference.complete([each[sample].numpy() for each in maps], is_behind, space)
        np.testing.assert_allclose(found[sample], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("site", "tap"),
    [
        *(((4,), (8,)), ((3,), (9,)), ((3,), (5,)), ((6,), (13,)), ((1,), (7,)), ((8,), (2,)), ((9,), (2,))),
        *(((2, 3), (5, 4)), ((5, 4), (2, 3)), ((2, 2, 3), (3, 5, 7)), ((), (4, 4))),
    ],
)
def test_a_bias_map_keeps_its_sum_at_any_resolution(site: tuple[int, ...], tap: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    found = noise(generator, 2, *site)
    made = trace_of([(noise(generator, 2, 1, *tap),) * 2], [(noise(generator, 2, 1), noise(generator, 2, 1))])
    spread = complete_bias(made, [found], 0)
    assert spread.shape == (2, *tap)
    torch.testing.assert_close(spread.flatten(1).sum(1), found.reshape(2, -1).sum(1))


@few
@given(networks.options(), st.sampled_from(sorted(networks.BUILDERS)))
def test_every_site_of_a_network(option: networks.Options, kind: str) -> None:
    """Constants, gradients and what lies behind which tap, against hooks that add zeros and hooks that return NaN."""
    model, images = networks.build(kind, option), networks.images(option)
    found, measured = trace(model, images), measure.measure(model, images)
    sites = measured.sites()
    assert [site.name for site in found.sites] == [measured.calls[at].name for at in sites]
    for site, at in zip(found.sites, sites, strict=True):
        call = measured.calls[at]
        torch.testing.assert_close(site.shift, call.shift, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(site.gradient, call.gradient, rtol=1e-12, atol=1e-14)
    taps = measured.of(nn.ReLU)
    expected = [[measure.behind(model, images, tap)[at] for at in sites] for tap in taps]
    assert found.behind.tolist() == expected
    samples = measure.samples(model, images, measured, taps)
    split = completeness(found)
    for index, sample in enumerate(samples):
        assert split.bias[index].item() == pytest.approx(whole.split(sample).bias, rel=1e-10, abs=1e-12)
        assert split.tap_bias[index].tolist() == pytest.approx(whole.split(sample).tap_bias, rel=1e-10, abs=1e-12)
        assert split.activation[index].tolist() == pytest.approx(whole.split(sample).activation, rel=1e-10, abs=1e-12)


def test_a_site_is_not_behind_the_tap_that_contains_it() -> None:
    option = networks.Options(seed=5, norm="affine")
    model, images = networks.build("plain", option), networks.images(option)
    convs = trace(model, images, taps="*.0")
    assert [tap.kind for tap in convs.taps] == ["conv"] * 3
    at = {site.name: index for index, site in enumerate(convs.sites)}
    for row, tap in zip(convs.behind, convs.taps, strict=True):
        assert not row[at[tap.name]]
        assert row[at[tap.name.removesuffix("0") + "1"]]
    torch.testing.assert_close(completeness(convs).bypass, torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("spaces", [networks.SPACES, networks.ODD_SPACES], ids=["halving", "odd"])
@few
@given(option=networks.options(), kind=st.sampled_from(sorted(networks.BUILDERS)))
def test_unsaturated_maps_with_complete_bias_sum_to_half_the_score(
    spaces: dict[int, tuple[int, ...]], option: networks.Options, kind: str
) -> None:
    """alpha = 1/2 at every position and for every bias: a cut tap's map holds all of the score."""
    found = explain(
        networks.build(kind, option),
        networks.images(option, spaces[option.dims]),
        1,
        readout="identity",
        negative_share=1.0,
        bias="complete",
        weighting="uniform",
        signed=True,
        fusion="sum",
        **networks.AS_THEY_ARE,
    )
    cuts = found.completeness.is_cut.tolist()
    assert any(cuts)
    for layer, is_cut in zip(found.layers, cuts, strict=True):
        if is_cut:
            torch.testing.assert_close(layer.map.flatten(1).sum(1), found.score / 2, rtol=1e-10, atol=1e-12)


def test_the_residual_makes_any_map_sum_to_half_the_score() -> None:
    option = networks.Options(seed=6, norm="affine", stride=2)
    found = explain(
        networks.build("resnet", option),
        networks.images(option),
        readout="identity",
        negative_share=1.0,
        bias="residual",
        **networks.AS_THEY_ARE,
    )
    assert not found.completeness.is_cut.all()
    for layer in found.layers:
        torch.testing.assert_close(layer.map.flatten(1).sum(1), found.score / 2, rtol=1e-10, atol=1e-12)


def test_unsaturated_shifts_may_be_split_over_channels() -> None:
    shift, gradient = tensor([[1, 1]]), tensor([[3, -2]])
    halves, _, _ = saturated_shift(gradient.expand(1, 2, 2), (shift / 2).expand(1, 2, 2), tensor(0), 1)
    assert halves.tolist() == saturated_shift(gradient, shift, tensor(0), 1)[0].tolist() == [[1.5, -1]]
