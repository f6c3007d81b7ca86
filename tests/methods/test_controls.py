"""Maps that know nothing of the network: who gets which."""

from __future__ import annotations

import math

import networks
import pytest
import torch

from integrative_cam import get_method
from integrative_cam.methods._controls import centre_map

SPACES = {1: (16,), 2: (9, 6), 3: (5, 4, 6)}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_random_maps_belong_to_the_image(dims: int) -> None:
    option = networks.Options(dims=dims, seed=5)
    model, images = networks.build("plain", option), networks.images(option, SPACES[dims], batch=3)
    random = get_method("random")
    found = random(model, images).map
    for sample in range(3):
        assert torch.equal(random(model, images[sample : sample + 1], 0).map[0], found[sample])
    assert torch.equal(random(networks.build("vgg", option), images).map, found)
    # Another image, if only by one value, by its order or its sign, is another map.
    others = [images.flip(-1), images.roll(1, 0), -images, images.clone()]
    others[-1].flatten(1)[:, 3] += 0.01
    for other in others:
        assert ((random(model, other).map - found).abs().flatten(1).mean(1) > 0.15).all()
    torch.testing.assert_close(random(model.float(), images.float()).map, found.float())


def test_random_maps_are_uniform_noise() -> None:
    option = networks.Options(seed=5)
    found = get_method("random")(networks.build("plain", option), networks.images(option, (64, 64))).map.flatten(1)
    # Standard errors over 4096 pixels: 0.0045 of the mean, 0.016 of correlations.
    assert found.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert found.std(1).tolist() == pytest.approx([12**-0.5] * 2, abs=0.01)
    assert abs(torch.corrcoef(found)[0, 1]) < 0.08
    assert abs(torch.corrcoef(torch.stack([found[0, 1:], found[0, :-1]]))[0, 1]) < 0.08


def test_random_numbers_of_the_process_are_left_alone() -> None:
    option = networks.Options(seed=5)
    before = torch.get_rng_state()
    get_method("random")(networks.build("plain", option), networks.images(option))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_centre_and_uniform(dims: int) -> None:
    option = networks.Options(dims=dims, seed=5)
    model, images = networks.build("plain", option), networks.images(option, SPACES[dims])
    centre, uniform = get_method("center")(model, images), get_method("uniform")(model, images)
    assert torch.equal(uniform.map, torch.ones(2, *SPACES[dims]).double())
    assert torch.equal(centre.map[0], centre.map[1])
    assert torch.equal(centre.map[0], centre_map(SPACES[dims]).double())
    for axis in range(dims):
        assert torch.equal(centre.map, centre.map.flip(axis + 1))
    assert centre.layers == uniform.layers == ()
    assert torch.equal(centre.score, model(images).amax(1).detach())


def test_the_centre_map_in_one_and_three_dimensions_by_hand() -> None:
    # Sigma 5/4: at distances of 1 and 2, exp(-8/25) and exp(-32/25).
    line = [math.exp(-32 / 25), math.exp(-8 / 25), 1, math.exp(-8 / 25), math.exp(-32 / 25)]
    assert centre_map((5,)).tolist() == pytest.approx(line)
    # Sigma 3/4 along the last axis: at a distance of 1, exp(-8/9).
    assert centre_map((5, 5, 3))[1, 0, 0].item() == pytest.approx(math.exp(-8 / 25 - 32 / 25 - 8 / 9))
