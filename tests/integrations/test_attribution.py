"""Maps as captum and Quantus want them: signed, of the images' shape, equal to what the explanation holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.metrics import infidelity, sensitivity_max
from hypothesis import given
from networks import Options, build, examples, images, options
from reference import fusion
from torch import Tensor, nn

from integrative_cam import Recipe, explain, get_method
from integrative_cam.errors import InputError
from integrative_cam.integrations import Attribution, explain_func
from integrative_cam.integrations._attribution import spread_over_channels

few = examples(15)


class Signed(nn.Module):
    """Score 0 is x0 + x1 of the first position minus twice the second's; score 1 is its negative."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.relu().flatten(2).sum(1) @ torch.tensor([1.0, -2.0])
        return torch.stack([score, -score], 1)


PAIR = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
"""One image, two channels, two positions: (1, 3) and (2, 0); gradient times activation is 4 and -4."""


def test_by_hand() -> None:
    found = explain(Signed(), PAIR, 0, get_method("hirescam").recipe)
    assert found.signed_map.tolist() == [[[1, -1]]]
    assert found.map.tolist() == [[[1, 0]]]
    attribution = Attribution(Signed(), get_method("hirescam"))
    assert attribution.attribute(PAIR, 0).tolist() == [[[[0.5, -0.5]], [[0.5, -0.5]]]]
    assert attribution.attribute(PAIR * torch.tensor([1.0, 0.25]), 1).tolist() == [[[[-0.5, 0.125]], [[-0.5, 0.125]]]]


@few
@given(options())
def test_signed_maps_are_the_maps_before_the_cut(option: Options) -> None:
    model, seen = build("resnet", option), images(option)
    found = explain(model, seen, gamma=0.85)
    signed = found.signed_map
    cut = signed.relu()
    space = tuple(range(1, signed.ndim))
    torch.testing.assert_close((cut / cut.amax(space, keepdim=True).clamp_min(1e-300)) ** 0.85, found.map)
    torch.testing.assert_close(signed.abs().amax(space), torch.ones(len(seen), dtype=torch.float64))
    for sample in range(len(seen)):
        total = np.zeros(found.map.shape[1:])
        for layer in found.layers:
            total += 0.8 * layer.weight[sample].item() * _scaled(layer.map[sample], total.shape)
        for bias in found.bias_layers:
            total += bias.weight[sample].item() * _scaled(bias.map[sample], total.shape)
        np.testing.assert_allclose(signed[sample], total / np.abs(total).max(), rtol=1e-9, atol=1e-12)


def _scaled(values: Tensor, space: tuple[int, ...]) -> np.ndarray:
    return fusion.interpolate(values.numpy() / (np.abs(values.numpy()).max() or 1), space)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(signed=False), Recipe(fusion="max"), get_method("layercam-fused").recipe],
    ids=["cut per layer", "max", "layercam-fused"],
)
def test_maps_without_evidence_against_are_themselves(recipe: Recipe) -> None:
    option = Options(seed=4)
    found = explain(build("plain", option), images(option), recipe=recipe)
    assert torch.equal(found.signed_map, found.map)


def test_methods_that_are_no_recipes() -> None:
    option = Options(seed=4)
    model, seen = build("plain", option), images(option)
    found = get_method("uniform")(model, seen)
    assert torch.equal(found.signed_map, found.map)
    assert torch.equal(Attribution(model, get_method("uniform")).attribute(seen), torch.full_like(seen, 0.5))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_channels_of_an_attribution_add_up_to_the_map(dims: int) -> None:
    option = Options(dims=dims, seed=6)
    model, seen = build("vgg", option), images(option)
    found = Attribution(model).attribute(seen, target=2)
    assert found.shape == seen.shape
    assert torch.equal(found[:, 0], found[:, 1])
    torch.testing.assert_close(found.sum(1), explain(model, seen, 2).signed_map)


def test_images_without_channels() -> None:
    maps = torch.rand(2, 3, 4)
    assert torch.equal(spread_over_channels(maps, torch.rand(2, 3, 4)), maps)


def test_tuples_as_captum_hands_them_over() -> None:
    attribution = Attribution(Signed(), get_method("hirescam"))
    (found,) = attribution.attribute((PAIR,), target=0)
    assert torch.equal(found, attribution.attribute(PAIR, target=0))
    with pytest.raises(InputError, match="inputs must be one tensor or a tuple of one, but got 2"):
        attribution.attribute((PAIR, PAIR), target=0)


def test_captum_accepts_attributions() -> None:
    attribution = Attribution(Signed(), get_method("hirescam"))
    seen = PAIR.repeat(2, 1, 1, 1) + 5
    found = attribution.attribute(seen, target=torch.tensor([0, 1]))

    def halves(copies: Tensor) -> tuple[Tensor, Tensor]:
        taken = torch.zeros_like(copies)
        taken[..., 0] = copies[..., 0] / 2
        return taken, copies - taken

    values = infidelity(Signed(), halves, seen, found, target=torch.tensor([0, 1]), n_perturb_samples=3)
    # First position: (6 + 8) / 2 = 7 of the score; position maps (14, -24) / 24, half of it per channel.
    torch.testing.assert_close(values, torch.full((2,), (14 / 24 / 2 * 7 - 7) ** 2))
    assert not sensitivity_max(attribution.attribute, seen, lambda copies: copies * 2, target=0).any()


def test_quantus_form() -> None:
    option = Options(seed=8)
    model, seen = build("resnet", option).float(), images(option)
    found = explain_func(model=model, inputs=seen.numpy(), targets=np.array([1, 3]), device="cpu", method="any")
    assert isinstance(found, np.ndarray)
    assert found.shape == (2, 1, *seen.shape[2:])
    expected = explain(model, seen.float(), [1, 3]).signed_map
    assert np.array_equal(found[:, 0], expected.numpy())
    for one in (2, np.int64(2)):
        assert np.array_equal(explain_func(model, seen.numpy(), one), explain_func(model, seen.numpy(), [2, 2]))
    other = explain_func(model, seen.numpy(), None, explainer=get_method("layercam"))
    assert np.array_equal(other[:, 0], get_method("layercam")(model, seen.float()).signed_map.numpy())


def test_quantus_itself() -> None:
    quantus = pytest.importorskip("quantus")
    option = Options(seed=8)
    model, seen = build("plain", option).float(), images(option).float().numpy()
    targets, chosen = np.array([1, 3]), {"explainer": get_method("gradcam")}
    metric = quantus.Complexity(disable_warnings=True, abs=True, normalise=False)
    found = metric(model, seen, targets, explain_func=explain_func, explain_func_kwargs=chosen)
    for value, attribution in zip(found, explain_func(model, seen, targets, **chosen), strict=True):
        shares = np.abs(attribution).ravel() / np.abs(attribution).sum()
        assert value == pytest.approx(-sum(share * np.log(share) for share in shares if share > 0), rel=1e-4)
    metric = quantus.MaxSensitivity(nr_samples=3, disable_warnings=True)
    assert np.isfinite(metric(model, seen, targets, explain_func=explain_func, explain_func_kwargs=chosen)).all()
