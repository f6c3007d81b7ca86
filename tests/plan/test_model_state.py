"""A call leaves all buffers and other tensors of a model as they were, whatever writes to them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization

from integrative_cam import IntegrativeCAM, explain
from integrative_cam._plan.model_state import preserved_buffers

IMAGES = 3 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


class Adapting(nn.Module):
    """Normalises by the batch's statistics, and keeps them, whatever its flag says; torch counts no write to them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        x = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
        return x.relu().mean((2, 3))


def quantised() -> nn.Module:
    """Prepared for quantisation-aware training: its observers write to several buffers in one fused function."""
    model = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.train().qconfig = quantization.get_default_qat_qconfig("x86")
    model = quantization.prepare_qat(model)
    model(IMAGES / 5)
    return model


class Listed(nn.Module):
    """Keeps a module with state where `modules` does not see it."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.inner, self.head = keep(Adapting()), nn.Linear(4, 2)

    @property
    def hidden(self) -> Adapting:
        return self.inner[0] if isinstance(self.inner, list | tuple) else self.inner["net"]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [Adapting, quantised], ids=["batch norm", "observers"])
def test_buffers_are_given_back(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before = tensors_of(model)
    model(IMAGES)
    assert any(not torch.equal(each, before[name]) for name, each in model.state_dict().items())
    model.load_state_dict(before)
    cam = IntegrativeCAM(model)
    for _ in range(2):  # planned, and on the plan
        cam(IMAGES, 0)
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep", [lambda net: [net], lambda net: (net,), lambda net: {"net": net}])
def test_buffers_of_modules_in_plain_containers_are_given_back(keep: Any) -> None:
    model = Listed(keep).eval()
    before = tensors_of(model.hidden)
    explain(model, IMAGES, 0)
    assert all(torch.equal(each, before[name]) for name, each in model.hidden.state_dict().items())


class Spiking(nn.Module):
    """Leaky neurons, whose membrane is an attribute, an entry of a dict, of a list, or a tensor written in place."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.conv, self.head, self.kept = nn.Conv2d(1, 4, 3), nn.Linear(4, 2), kept
        self.membrane: Any = 0.0
        self.memories, self.states = {"v": torch.zeros(1)}, [torch.zeros(1)]
        self.written = torch.zeros(2, 4, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        old = {"attribute": self.membrane, "dict": self.memories["v"], "list": self.states[0]}.get(
            self.kept, self.written
        )
        x = x + old / 2
        if self.kept == "attribute":
            self.membrane = x
        elif self.kept == "new":
            self.extra = x
        elif self.kept == "dict":
            self.memories["v"] = x
        elif self.kept == "list":
            self.states[0] = x
        else:
            self.written.copy_(x.detach())
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("kept", ["attribute", "new", "dict", "list", "written"])
def test_states_of_spiking_networks_are_given_back(kept: str) -> None:
    torch.manual_seed(0)
    model = Spiking(kept).eval()
    first, again = explain(model, IMAGES, 0), explain(model, IMAGES, 0)
    assert torch.equal(first.score, again.score)
    assert model.membrane == 0.0
    assert not hasattr(model, "extra")
    assert not any(each.any() for each in (model.memories["v"], model.states[0], model.written))


def test_a_graph_of_the_caller_stays_valid() -> None:
    """Giving a buffer back counts as no write to it."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    model[0].running_mean.fill_(0.5)
    loss = model(IMAGES).sum()
    with preserved_buffers(model.modules()):
        model[0].running_mean.data.add_(1)
    assert model[0].running_mean.item() == 0.5
    loss.backward()


def test_a_buffer_of_another_shape_is_given_back() -> None:
    model = nn.BatchNorm2d(2)
    with preserved_buffers([model]):
        model.running_mean.resize_(5).fill_(3)
    assert model.running_mean.tolist() == [0, 0]


class Dropping(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm, self.kind = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        if self.kind == "dropout":
            x = F.dropout(x, 0.1)
        elif self.kind == "norm":
            x = self.norm(x)
        elif self.kind == "off":
            x = F.dropout(x, 0.1, self.training)
        elif self.kind == "attention":
            tokens = x.flatten(2).mT[:, None]
            x = F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.1)[:, 0].mT.reshape(x.shape)
        return x.relu().mean((2, 3))


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Adapting(), "norm"),
        (Dropping("dropout"), "dropout behind :relu"),
        (Dropping("norm"), "norm"),
        (Dropping("attention"), "scaled_dot_product_attention behind :relu"),
    ],
)
def test_what_runs_as_in_training_is_named(model: nn.Module, named: str) -> None:
    cam = IntegrativeCAM(model.eval())
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"In evaluation mode the model runs .*{named} as in training"):
            cam(IMAGES, 0)


def test_nothing_is_named_where_all_is_in_evaluation_mode() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "In evaluation")
        explain(Dropping("off").train(), IMAGES, 0)
        explain(Dropping("norm"), IMAGES[:1], 0)
        explain(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)), IMAGES
        )
