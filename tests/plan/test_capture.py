"""What one forward pass shows: taps by name, values as they were, constants that are added."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, explain, trace
from integrative_cam.errors import TapError


class Chain(nn.Module):
    """Runs a function of (module, x); `relu` and `conv` are there to be called."""

    def __init__(self, run) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.run = run
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.relu_in_place = nn.ReLU(inplace=True)
        self.register_buffer("mean", torch.tensor([0.25, -0.5]).reshape(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x).sum((2, 3))


IMAGES = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("activate", "name"),
    [
        (lambda m, x: m.relu(x), "relu"),
        (lambda m, x: m.relu_in_place(x), "relu_in_place"),
        (lambda m, x: F.relu(x), ":relu"),
        (lambda m, x: F.relu(x, True), ":relu"),
        (lambda m, x: F.relu_(x), ":relu"),
        (lambda m, x: torch.relu(x), ":relu"),
        (lambda m, x: torch.relu_(x), ":relu"),
        (lambda m, x: x.relu(), ":relu"),
        (lambda m, x: x.relu_(), ":relu"),
        (lambda m, x: x.clamp(min=0), ":clamp"),
        (lambda m, x: torch.clamp_min(x, 0), ":clamp_min"),
    ],
)
def test_every_way_to_call_relu_is_one_tap(activate, name: str) -> None:
    """The value is the activation's output, and the gradient that of this same tensor."""
    model = Chain(lambda m, x: 3 * activate(m, m.conv(x)))
    (tap,) = trace(model, IMAGES, target=1).taps
    assert (tap.name, tap.kind) == (name, "activation")
    assert torch.equal(tap.activation, model.conv(IMAGES).relu())
    expected = torch.zeros(2, 2, 6, 6)
    expected[:, 1] = 3
    assert torch.equal(tap.gradient, expected)


def test_bias_site_before_an_in_place_activation_keeps_its_own_gradient() -> None:
    """method.md, section 4: asked after the activation, the gradient would be that of the activation's output."""
    (site,) = trace(Chain(lambda m, x: m.relu_in_place(m.conv(x))), IMAGES, target=0).sites
    out = Chain(None).conv(IMAGES)
    expected = torch.zeros_like(out)
    expected[:, 0] = (out[:, 0] > 0).float()
    assert torch.equal(site.gradient, expected)


@pytest.mark.parametrize(
    "overwrite",
    [
        lambda y: y.add_(7),
        lambda y: y.mul_(2),
        lambda y: y.__setitem__((slice(None), 0), 9.0),
        lambda y: y[:, :1].add_(5),
        lambda y: torch.mul(y.detach(), 3, out=y.detach()),
        lambda y: F.dropout(y.detach(), 0.5, True, True),
    ],
    ids=["add_", "mul_", "setitem", "view", "out", "dropout"],
)
def test_a_value_overwritten_later_is_kept_as_it_was(overwrite) -> None:
    """SiLU does not save its output, so autograd lets a network write into it."""

    def run(m: Chain, x: Tensor) -> Tensor:
        y = F.silu(m.conv(x))
        overwrite(y)
        return y

    (tap,) = trace(Chain(run), IMAGES, target=0).taps
    assert torch.equal(tap.activation, F.silu(Chain(None).conv(IMAGES)))


def test_a_module_called_twice_is_two_taps_with_their_own_gradients() -> None:
    model = Chain(lambda m, x: 2 * m.relu(5 * m.relu(x)))
    first, second = trace(model, IMAGES, target=0).taps
    assert (first.name, second.name) == ("relu", "relu#2")
    assert torch.equal(second.activation, 5 * first.activation)
    assert first.gradient.unique().tolist() == [0, 10]
    assert second.gradient.unique().tolist() == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50", 49), ("vgg16", 13), ("googlenet", 57), ("densenet121", 121), ("efficientnet_b0", 33)],
)
def test_number_of_taps(name: str, count: int) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    taps = IntegrativeCAM(model).taps(torch.randn(1, 3, 64, 64))
    assert len(taps) == len({tap.name for tap in taps}) == count
    assert all(tap.kind == "activation" for tap in taps)


def test_functional_activations_are_named_after_their_module() -> None:
    model = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False).eval()
    names = [tap.name for tap in IntegrativeCAM(model).taps(torch.randn(1, 3, 64, 64))]
    assert names[:4] == ["conv1:relu", "conv2:relu", "conv3:relu", "inception3a.branch1:relu"]


def test_channels_last_features_of_convnext() -> None:
    model = torchvision.models.convnext_tiny(weights=None).eval()
    taps = IntegrativeCAM(model).taps(torch.randn(1, 3, 64, 64))
    assert len(taps) == 18
    assert [tap.shape for tap in taps[::6]] == [(384, 16, 16), (1536, 4, 4), (1536, 4, 4)]


class Added(nn.Module):
    """Constants that enter by other doors than a layer's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.25, -0.5]).reshape(2, 1, 1))
        self.offset = nn.Parameter(torch.tensor([1.5]))
        self.weight = nn.Parameter(torch.tensor([[-1.0, -2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 2 + 1
        x = 3 - x.relu()
        x += self.offset
        return torch.addmm(self.offset, x.mean((2, 3)), self.weight.T)


def test_constants_added_by_hand_are_bias_sites() -> None:
    images = IMAGES.double()
    found = explain(Added().double(), images, target=0).completeness
    torch.testing.assert_close(found.remainder, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (found.bias.abs() > 1).all()


def test_values_from_parameters_alone_are_no_bias_sites() -> None:
    """weight + 1 is computed on the side: it is no path from the input."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, (self.weight + 1) * 2 - 0.5, self.bias).relu()

    torch.manual_seed(0)
    model = nn.Sequential(Standardised(2, 3, 3), nn.Flatten(), nn.Linear(48, 2)).double()
    found = trace(model, IMAGES.double(), target=0)
    assert [site.name for site in found.sites] == ["0:conv2d", "2"]


def test_constants_added_to_a_number_shared_by_the_batch_go_to_the_remainder() -> None:
    """One value for all images belongs to none of them."""

    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.relu() * (x.mean() + 1)).sum((2, 3))

    found = trace(Gated(), IMAGES, target=0)
    assert found.sites == ()


def test_frozen_batch_norm_of_torchvision_is_complete() -> None:
    norm = torchvision.ops.FrozenBatchNorm2d(2)
    norm.bias.copy_(torch.tensor([0.5, -1.0]))
    norm.running_mean.copy_(torch.tensor([0.2, 0.4]))
    model = nn.Sequential(norm, nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).double()
    found = explain(model, IMAGES.double(), target=0).completeness
    torch.testing.assert_close(found.remainder, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_inputs_without_a_channel_axis() -> None:
    """A network that adds the channel itself: the map has the input's own axes."""

    class Mono(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 3, 5)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x[:, None]).relu().mean(2))

    torch.manual_seed(0)
    assert explain(Mono(), torch.randn(2, 40)).map.shape == (2, 40)


def test_no_feature_map_with_space() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(
        TapError,
        match=r"No feature map with space: of the network's nonlinearities \(2\), none has more than one position",
    ):
        explain(model, IMAGES)
    with pytest.raises(TapError, match="No feature map with space"):
        explain(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)), IMAGES)


def test_eight_threads_share_one_model() -> None:
    """50 calls each with their own targets: every map equals the one made alone; training mode comes back."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8),
    ).train()  # fmt: skip
    images = torch.randn(1, 3, 16, 16)
    cam = IntegrativeCAM(model)
    expected = [cam(images, target=index) for index in range(8)]

    def work(thread: int) -> int:
        wrong = 0
        for call in range(50):
            target = (thread + call) % 8
            found = cam(images, target=target)
            wrong += not torch.equal(found.map, expected[target].map)
            wrong += [layer.name for layer in found.layers] != [layer.name for layer in expected[target].layers]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8
    assert all(module.training for module in model.modules())
    assert not model[1].num_batches_tracked.item()


@pytest.mark.parametrize(
    ("activate", "is_positive"),
    [
        (F.relu, True),
        (nn.ReLU(inplace=True), True),
        (nn.ReLU6(), True),
        (F.relu6, True),
        (nn.Hardtanh(0, 1), True),
        (lambda values: F.hardtanh(values, 0.0, 2.0), True),
        (nn.Hardtanh(), False),
        (lambda values: F.hardtanh(values, -0.5), False),
        (nn.Sigmoid(), True),
        (nn.Softplus(), True),
        (nn.SiLU(), False),
        (nn.GELU(), False),
        (nn.LeakyReLU(), False),
        (nn.Hardswish(), False),
        (torch.tanh, False),
    ],
)
def test_activations_known_to_be_positive(activate, is_positive: bool) -> None:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return activate(images * 1).mean((2, 3))

    images = torch.linspace(-6, 6, 32, dtype=torch.float64).reshape(1, 2, 4, 4)
    (tap,) = trace(Network(), images, target=1).taps
    assert tap.is_positive == is_positive == bool((tap.activation >= 0).all())
