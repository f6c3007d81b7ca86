"""FullGrad: by hand, against the authors' formula in loops, and where pytorch-grad-cam differs."""

from __future__ import annotations

from typing import Any

import networks
import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from reference import fusion, measure
from reference import methods as reference
from reference.arrays import Array
from torch import Tensor, nn

from integrative_cam import get_method
from integrative_cam.methods._gradients import full_grad


def test_by_hand() -> None:
    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([[[1.0]], [[-1]]]).double())

        def forward(self, x: Tensor) -> Tensor:
            x = (x + self.bias).relu() * torch.tensor([[[2.0]], [[3]]]).double()
            return torch.stack([x.sum((1, 2, 3)) + 7, x.sum((1, 2, 3)) * 0], 1)

    # x + bias = [2, 3, -3] and [0.5, -3, 4]: gradients [2, 2, 0] and [3, 0, 3].
    images = torch.tensor([[[[1.0, 2, -4]], [[1.5, -2, 5]]]]).double()
    # |g x| = [2, 4, 0] and [4.5, 0, 15], over 15; |g b| = [2, 2, 0] and [3, 0, 3], over 3.
    expected = torch.tensor([[2 + 4.5, 4, 15]]) / 15 + torch.tensor([[2 + 3, 2, 3]]) / 3
    found = full_grad(Hand(), images, 0)
    torch.testing.assert_close(found.map[0], (expected / expected.max()).double())
    # Input 2 + 4 + 4.5 + 15, biases 2 + 2 - 3 - 3 + 7.
    parts = found.completeness
    assert (parts.score.item(), parts.input.item(), parts.bias.item()) == (30.5, 25.5, 5)


def test_the_minimum_is_taken_off_each_layers_magnitudes() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * torch.tensor([1.0, 2, 4]).double()).relu().sum((2, 3)).repeat(1, 2)

    found = full_grad(Shifted(), torch.tensor([[[[3.0, 2, 5]]]]).double(), 0)
    assert found.map.flatten().tolist() == [0, 1 / 17, 1]  # of 3, 4, 20


def products(measured: measure.Measured, images: Tensor, gradient: Tensor, sample: int) -> list[Array]:
    """Gradient times value at the input and at every site with space."""
    sites = [measured.calls[at] for at in measured.sites()]
    found = [(gradient * images)[sample].numpy()]
    for site in sites:
        if site.value.ndim == images.ndim and site.value[0, 0].numel() > 1:
            assert site.shift is not None
            found.append((site.gradient * site.shift)[sample].numpy())
    return found


def input_gradient(model: nn.Module, images: Tensor, index: list[int]) -> Tensor:
    leaf = images.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(leaf).gather(1, torch.tensor(index)[:, None]).sum(), leaf)
    return found


@pytest.mark.parametrize(("kind", "dims"), [("plain", 1), ("resnet", 2), ("inception", 2), ("vgg", 3)])
def test_the_twin(kind: str, dims: int) -> None:
    option = networks.Options(dims=dims, seed=51, norm="affine", stride=2)
    model, images = networks.build(kind, option), networks.images(option)
    index = [2, 1]
    measured = measure.measure(model, images, torch.tensor(index))
    found = get_method("fullgrad")(model, images, index)
    gradient = input_gradient(model, images, index)
    for sample in range(len(images)):
        expected = reference.full_grad(products(measured, images, gradient, sample), tuple(images.shape[2:]))
        np.testing.assert_allclose(found.map[sample], expected / expected.max(), rtol=1e-9, atol=1e-12)
    parts = found.completeness
    torch.testing.assert_close(parts.input + parts.bias, parts.score, rtol=1e-12, atol=1e-12)
    assert (parts.bias.abs() > 0.1).any()
    assert found.layers == ()


def test_a_site_of_one_position_is_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    images = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    measured = measure.measure(model, images, torch.tensor([1]))
    found = products(measured, images, input_gradient(model, images, [1]), 0)
    assert len(found) == 2
    expected = reference.full_grad(found, (6, 6))
    np.testing.assert_allclose(full_grad(model, images, 1).map[0], expected / expected.max(), rtol=1e-9, atol=1e-12)


def test_images_without_a_channel_axis() -> None:
    class Unsqueezes(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x[:, None])

    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).double()
    images = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    found = full_grad(Unsqueezes(model), images, 0)
    assert torch.equal(found.map, full_grad(model, images[:, None], 0).map)


def peer(model: nn.Module, images: Tensor) -> Tensor:
    cam: Any = pytorch_grad_cam.FullGrad(model=model, target_layers=[])
    return torch.from_numpy(cam(images, [ClassifierOutputTarget(1)] * len(images)))


def one_to_one(channels: int) -> nn.Module:
    """Features as large as the image; `channels` of them, in the image and everywhere."""
    torch.manual_seed(9)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Tanh(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(channels * 100, 3),
    ).eval()  # fmt: skip


def stretched(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def test_pytorch_grad_cam_says_the_same_of_single_channels() -> None:
    model, images = networks.perturbed(one_to_one(1), 3), torch.randn(2, 1, 10, 10)
    torch.testing.assert_close(stretched(full_grad(model, images, 1).map), peer(model, images), atol=2e-4, rtol=0)


def test_pytorch_grad_cam_scales_each_channel_on_its_own() -> None:
    """Its map is the twin's of the channels one by one; the authors' code and ours scale a layer as a whole."""
    model, images = networks.perturbed(one_to_one(4), 3), torch.randn(1, 4, 10, 10)
    measured = measure.measure(model, images, torch.tensor([1]))
    gradient = input_gradient(model, images, [1])
    found = products(measured, images, gradient, 0)
    by_channel = [each[channel][None] for each in found for channel in range(4)]
    theirs = peer(model, images)
    expected = torch.from_numpy(reference.full_grad(by_channel, (10, 10)))[None].float()
    torch.testing.assert_close(stretched(expected), theirs, atol=2e-4, rtol=0)
    ours = stretched(full_grad(model, images, 1).map)
    assert (ours - theirs).abs().max() > 0.1
    assert fusion.largest_magnitude(ours[0].numpy()) == 1
