"""Maps where the place of the evidence, or its class, is known: by hand, against slow twins, and controls."""

from __future__ import annotations

import pytest
import torch
from evaluated import drawn, few, tensor
from hypothesis import given
from hypothesis import strategies as st
from networks import noise
from reference import metrics as reference
from torch import Tensor, nn

from integrative_cam import explain, get_method
from integrative_cam.errors import InputError, RecipeError
from integrative_cam.evaluate import class_dependence, energy, grid_pointing, planted_patch, pointing
from integrative_cam.evaluate._ground_truth import OnePatch, _mosaic
from integrative_cam.evaluate._randomisation import other_class
from integrative_cam.explanation import Explanation
from integrative_cam.integrations import named

pytestmark = pytest.mark.filterwarnings("ignore:The map of image")  # a blank map's metrics are tested too

HIRESCAM = get_method("hirescam")


class Channels(nn.Module):
    """The logit of class k is the mean of channel k where it is positive: HiResCAM's map of it is that channel."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(images).mean((2, 3))


def coloured(*channels: int) -> Tensor:
    """Images of 4 x 6, each 1 in one of four channels."""
    return torch.eye(4, dtype=torch.float64)[list(channels)][:, :, None, None].expand(-1, -1, 4, 6)


def test_grid_pointing_by_hand() -> None:
    images, companions = coloured(0, 2), torch.stack([coloured(1, 2, 3), coloured(0, 1, 3)])
    assert grid_pointing(Channels(), images, companions, HIRESCAM, [0, 2]).tolist() == [1, 1]
    # The class of one of the companions is never in the image's quadrant.
    assert grid_pointing(Channels(), images, companions, HIRESCAM, [1, 1]).tolist() == [0, 0]
    # Where two of the four show the class, one with half the brightness, two thirds lie right.
    companions[0, 2] = coloured(0)[0] / 2
    assert grid_pointing(Channels(), images, companions, HIRESCAM, [0, 2]).tolist() == pytest.approx([2 / 3, 1])


@few
@given(st.integers(0, 1000))
def test_grid_pointing_is_the_twins(seed: int) -> None:
    model, images, _, index = drawn(seed, 8, (8, 6))
    parts = images.reshape(2, 4, 2, 8, 6)
    gradcam = get_method("layercam")
    found = grid_pointing(model, parts[:, 0], parts[:, 1:], gradcam, index[:2])
    for sample in range(2):
        shares = []
        for place in range(4):
            # The image at that place, its companions after it, from the first place on again.
            ordered = [parts[sample, (at - place) % 4].numpy() for at in range(4)]
            mosaic = torch.from_numpy(reference.mosaic(ordered))[None]
            values = gradcam(model, mosaic, int(index[sample])).map[0]
            shares.append(reference.energy(values.numpy(), reference.quadrant((8, 6), place)))
        assert found[sample].item() == pytest.approx(sum(shares) / 4, rel=1e-6, abs=1e-9)


def test_mosaics_of_odd_sizes_keep_the_size() -> None:
    parts = noise(torch.Generator().manual_seed(0), 2, 4, 3, 7, 5)
    mosaic = _mosaic(parts)
    assert mosaic.shape == (2, 3, 7, 5)
    constant = _mosaic(torch.arange(4.0).reshape(1, 4, 1, 1, 1).expand(1, 4, 1, 7, 5))[0, 0]
    assert constant[:3, :2].unique().tolist() == [0]
    assert constant[3:, 2:].unique().tolist() == [3]


def test_maps_that_know_nothing_have_a_quarter() -> None:
    model, images, _, index = drawn(1, 8, (8, 6))
    parts = images.reshape(2, 4, 2, 8, 6)
    for name in ("uniform", "center"):
        found = grid_pointing(model, parts[:, 0], parts[:, 1:], get_method(name), index[:2])
        assert found.tolist() == pytest.approx([0.25, 0.25])
        assert planted_patch(model, images[:2], get_method(name)).tolist() == pytest.approx([0.25, 0.25])
    large = noise(torch.Generator().manual_seed(0), 1, 2, 64, 64)
    assert planted_patch(Channels(), large, get_method("random")).item() == pytest.approx(0.25, abs=0.01)


def test_a_planted_patch_by_hand() -> None:
    images = noise(torch.Generator().manual_seed(0), 3, 4, 6, 6).abs()
    assert planted_patch(Channels(), images, HIRESCAM).tolist() == [1, 1, 1]
    assert planted_patch(Channels(), images, HIRESCAM, pointing).tolist() == [1, 1, 1]


@few
@given(st.integers(0, 1000))
def test_planted_patches_are_the_twins(seed: int) -> None:
    model, images, _, _ = drawn(seed, 2, (8, 6))
    layercam = get_method("layercam")
    found = {measure: planted_patch(model, images, layercam, measure) for measure in (energy, pointing)}
    for sample in range(2):
        shares, hits = [], []
        for place in range(4):
            mask = reference.quadrant((8, 6), place)
            seen = images[sample].numpy().copy()
            seen[:, ~mask] = 0
            values = layercam(model, torch.from_numpy(seen)[None]).map[0].numpy()
            shares.append(reference.energy(values, mask))
            hits.append(reference.pointing(values, mask))
        assert found[energy][sample].item() == pytest.approx(sum(shares) / 4, rel=1e-6, abs=1e-9)
        assert found[pointing][sample].item() == pytest.approx(sum(hits) / 4, rel=1e-6, abs=1e-9)


def test_a_planted_network_is_blind_outside_of_its_patch() -> None:
    model, images, _, _ = drawn(3, 2, (8, 6))
    mask = torch.from_numpy(reference.quadrant((8, 6), 1))
    blind, others = OnePatch(model, mask), torch.where(mask, images, images.flip(0) + 1)
    assert torch.equal(blind(images), blind(others))
    assert not torch.equal(model(images), model(others))


def test_class_dependence_by_hand() -> None:
    # Means 4, 3, 2, 1 of channels that are each in one place of four: disjoint maps have a correlation of -1/3.
    image = torch.diag_embed(tensor([16, 12, 8, 4])).reshape(1, 4, 2, 2)
    for other in ("second", "unrelated"):
        assert class_dependence(Channels(), image, HIRESCAM, 0, other).item() == pytest.approx(-1 / 3)
    # Channels in the same place have the same map, whatever their strength; the second class of 1 is 0.
    image[:, 0] = image[:, 1] * 2
    assert class_dependence(Channels(), image, HIRESCAM, 0, "second").item() == pytest.approx(1)
    assert class_dependence(Channels(), image, HIRESCAM, 1, "second").item() == pytest.approx(1)
    assert class_dependence(Channels(), image, HIRESCAM, 0).item() == pytest.approx(-1 / 3)
    for control, expected in (("uniform", 0), ("random", 1)):
        assert class_dependence(Channels(), image, get_method(control), 0).item() == pytest.approx(expected)


def test_other_classes_by_hand() -> None:
    logits, index = tensor([5, 1, 3, 2, 4], [5, 1, 3, 2, 4]), torch.tensor([0, 2])
    assert other_class(logits, index, "second").tolist() == [4, 0]
    # Without the target: 4, 2, 3, 1 and 0, 4, 3, 1 by rank; the third of four.
    assert other_class(logits, index, "unrelated").tolist() == [3, 3]
    for other in ("second", "unrelated"):
        assert other_class(tensor([1, 2]), torch.tensor([1]), other).tolist() == [0]
    with pytest.raises(RecipeError, match="other must be one of second, unrelated, but got 'third'"):
        other_class(logits, index, "third")
    with pytest.raises(InputError, match="model has one class"):
        other_class(tensor([1]), torch.tensor([0]), "second")


@few
@given(st.integers(0, 1000), st.sampled_from(["second", "unrelated"]))
def test_class_dependence_is_the_twins(seed: int, other: str) -> None:
    model, images, _, index = drawn(seed)
    integrative = get_method("integrative")
    found = class_dependence(model, images, integrative, index, other)
    for sample in range(3):
        target, image = int(index[sample]), images[sample : sample + 1]
        logits = model(image)[0].tolist()
        ranked = sorted((place for place in range(4) if place != target), key=lambda place: -logits[place])
        left, right = (explain(model, image, each).map[0].numpy() for each in (target, ranked[other == "unrelated"]))
        expected = 2 * reference.coherency(left, right) - 1
        assert found[sample].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_unusable_companions_are_refused() -> None:
    model, images, _, index = drawn(1)
    with pytest.raises(InputError, match=r"companions must be .* \(3, 3, 2, 7, 6\), but got \(3, 2, 2, 7, 6\)"):
        grid_pointing(model, images, images[:, None].expand(-1, 2, -1, -1, -1), HIRESCAM, index)


def test_a_method_times_noise_is_a_control() -> None:
    model, images, _, index = drawn(1)
    control = named("layercam-times-noise")
    assert (control.name, control.source) == ("layercam-times-noise", "control")
    found: Explanation = control(model, images, index)
    product = get_method("layercam")(model, images, index).map * get_method("random")(model, images).map
    torch.testing.assert_close(found.map, product / product.amax((1, 2), keepdim=True))
    assert torch.equal(found.signed_map, found.map)
    assert torch.equal(control(model, images[1:2], index[1:2]).map, found.map[1:2])
    with pytest.raises(RecipeError, match="method must be one of"):
        named("nothing-times-noise")


@pytest.mark.parametrize("task", ["multi-label", "classification"])
def test_a_control_explains_what_its_method_does(task: str) -> None:
    model, images, _, index = drawn(1)
    found = named("integrative-times-noise").for_task(task)(model, images, index)
    expected = get_method("integrative").for_task(task)(model, images, index)
    assert torch.equal(found.score, expected.score)
    product = expected.map * get_method("random")(model, images).map
    torch.testing.assert_close(found.map, product / product.amax((1, 2), keepdim=True))
    of_logits = explain(model, images, index, score="logit").score
    assert torch.equal(found.score, of_logits) == (task == "multi-label")


def test_other_libraries_methods_have_controls_too() -> None:
    pytest.importorskip("pytorch_grad_cam")
    model, images, _, index = drawn(1)
    product = named("grad-cam:LayerCAM@last")(model, images, index).map * get_method("random")(model, images).map
    found = named("grad-cam:LayerCAM@last-times-noise")(model, images, index).map
    torch.testing.assert_close(found, product / product.amax((1, 2), keepdim=True))
