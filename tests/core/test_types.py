"""Tensors of any type: subclasses, and another default for floats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networks
import pytest
import torch
from networks import Options
from torch import Tensor, nn

from integrative_cam import Explanation, Recipe, explain, get_method, list_methods, targets

OPTION = Options(seed=3, norm="affine", stride=2)


class Meta(torch.Tensor):
    """As MONAI's MetaTensor and fastai's TensorImage: whatever is computed from it is one, too."""


def model_and_images() -> tuple[nn.Module, Tensor]:
    return networks.build("resnet", OPTION).float(), networks.images(OPTION).float()


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("name", [method.name for method in list_methods()])
def test_images_may_be_of_a_subclass(name: str) -> None:
    model, images = model_and_images()
    expected, found = get_method(name)(model, images, 1), get_method(name)(model, images.as_subclass(Meta), 1)
    assert torch.equal(found.map, expected.map)
    assert type(found.map) is type(found.score) is type(found.output) is Tensor


def test_all_inputs_and_gradients_of_a_subclass() -> None:
    model, images = model_and_images()
    expected = explain(model, images)
    assert torch.equal(
        explain(model, {"x": images.as_subclass(Meta)} if takes_x(model) else [images.as_subclass(Meta)]).map,
        expected.map,
    )
    leaf = images.as_subclass(Meta).requires_grad_()
    explain(model, leaf, 1, differentiable=True).map.sum().backward()
    plain = images.clone().requires_grad_()
    explain(model, plain, 1, differentiable=True).map.sum().backward()
    assert plain.grad is not None
    assert leaf.grad is not None
    assert plain.grad.any()
    torch.testing.assert_close(leaf.grad.as_subclass(Tensor), plain.grad)


def takes_x(model: nn.Module) -> bool:
    return "x" in model.forward.__code__.co_varnames[:2]


@pytest.fixture
def double_by_default() -> Iterator[None]:
    """As a program of numerics sets it."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


RECIPES = (
    Recipe(),
    Recipe(bias="complete", readout="softplus"),
    Recipe(bias="residual", readout="identity", fusion="geometric", weighting="uniform"),
    Recipe(fusion="product", weighting="product", bias="none"),
    Recipe(fusion="max", signed=False, taps="stages"),
)


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.usefixtures("double_by_default")
def test_another_default_dtype_changes_nothing() -> None:
    """Networks and images in float32: all maps are the same, and stay in float32."""
    model, images = model_and_images()
    dense = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1))
    pictures = torch.rand(2, 1, 16, 16)
    of_classes = (None, targets.contrast(1, 2), targets.probability(1), targets.value(1))
    of_pixels = (targets.segmentation(1, (1, 1, 9, 9)), targets.region((1, 1, 9, 9)))
    runs: list[tuple[Any, ...]] = [
        *((explain, model, images, target, recipe) for target in of_classes for recipe in RECIPES),
        *((get_method(method.name), model, images, 1) for method in list_methods()),
        *((explain, dense, pictures, target) for target in of_pixels),
        (explain, nn.Sequential(dense, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)), pictures),
    ]
    expected = [run(*arguments) for run, *arguments in runs]
    torch.set_default_dtype(torch.float64)
    for (run, *arguments), wanted in zip(runs, expected, strict=True):
        found: Explanation = run(*arguments)
        assert found.map.dtype is found.score.dtype is torch.float32
        torch.testing.assert_close(found.map, wanted.map, atol=1e-5, rtol=0)
