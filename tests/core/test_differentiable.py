"""Maps that train: their gradients against differences and fractions by hand, and what must stay as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import trace_of
from test_call import Busy, assert_same, state_of
from torch import Tensor, nn

from integrative_cam import Explanation, Recipe, explain, explain_trace, trace
from integrative_cam._choices import FUSIONS
from integrative_cam._maps.fusion import by_magnitude, fuse
from integrative_cam._maps.readout import RHO_LIMIT, rho_of
from integrative_cam._maps.weighting import WEIGHTINGS, LayerScores, layer_weights, shares
from integrative_cam.errors import InputError
from integrative_cam.recipe import OF_0_1_0


class Small(nn.Module):
    """Two convolutions, a batch norm, a linear layer; any activation, also in place."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.head = nn.Conv2d(3, 3, 3, stride=2), nn.Linear(3, 4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first(x)))
        return self.head(self.activation(self.second(x)).mean((2, 3)))


def small(activation: Callable[[Tensor], Tensor] = torch.tanh, seed: int = 1) -> nn.Module:
    return networks.build(lambda _: Small(activation), networks.Options(seed=seed))


def images(seed: int = 1) -> Tensor:
    return networks.images(networks.Options(seed=seed), (6, 5)).requires_grad_()


def gradcheck(found: Callable[[], Any], towards: list[Tensor]) -> None:
    """Against central differences; every parameter is changed in place."""
    assert torch.autograd.gradcheck(lambda *_: found(), towards, fast_mode=True)


def shifted(score: Tensor) -> Tensor:
    """A read-out whose rho moves with the score."""
    return (score / 3).exp() + score**4 / 10


def _named(recipe: dict[str, Any]) -> str:
    # Functions by name: an address differs from one test process to the next.
    return " ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in recipe.items()) or "default"


RECIPES: list[dict[str, Any]] = [
    {},
    {"regions": 2},
    OF_0_1_0,
    {"bias": "complete"},
    {"bias": "residual", "readout": "sigmoid"},
    {"readout": "softmax"},
    {"readout": "softplus", "bias": "none", "signed": False},
    {"readout": shifted},
    {"fusion": "max", "weighting": "average"},
    {"fusion": "geometric", "weighting": "product"},
    {"fusion": "product", "aggregation": "channel"},
    {"aggregation": "active", "weighting": "geometric", "weight_exponent": 1.0},
    {"negative_share": 1.0, "weighting": lambda scores: scores.joint * scores.gradient},
]


def not_blank(make: Callable[[int], tuple[nn.Module, Tensor]], target: Any, recipe: dict[str, Any]) -> Any:
    """The first network whose maps have something to differentiate."""
    for seed in range(1, 60):
        model, x = make(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if ((explain(model, x, target, **recipe).map > 0).flatten(1).sum(1) > 1).all():
                return model, x
    raise AssertionError("every map is blank")


@pytest.mark.parametrize("activation", [torch.tanh, F.softplus, F.silu, torch.relu])
@pytest.mark.parametrize("recipe", RECIPES, ids=_named)
def test_gradients_of_the_map_are_its_differences(
    activation: Callable[[Tensor], Tensor], recipe: dict[str, Any]
) -> None:
    model, x = not_blank(lambda seed: (small(activation, seed), images(seed)), [1, 2], recipe)
    gradcheck(lambda: explain(model, x, [1, 2], differentiable=True, **recipe).map, [x, *model.parameters()])


def every_part(found: Explanation) -> list[Tensor]:
    """All tensors with floats that may depend on anything."""
    layers = [
        part
        for layer in found.layers
        for part in (layer.map, layer.weight, layer.gradient_score, layer.activation_score, layer.joint_score)
    ]
    biases = [part for layer in found.bias_layers for part in (layer.map, layer.weight)]
    split = found.completeness
    parts = [split.input, split.bias, split.activation, split.tap_bias, split.remainder, split.bypass]
    streams = found.streams
    if streams is not None:
        parts += [*(each for each in streams.maps if each is not None), streams.share, streams.evidence, streams.shared]
    return [found.score, found.output, found.weights, *layers, *biases, *parts]


def test_every_part_of_the_explanation_keeps_its_graph() -> None:
    model, x = small(), images()
    assert all(each.requires_grad for each in every_part(explain(model, x, 1, differentiable=True)))
    gradcheck(lambda: tuple(every_part(explain(model, x, 1, differentiable=True))), [x, *model.parameters()])
    assert not any(each.requires_grad for each in every_part(explain(model, x, 1)))


@pytest.mark.parametrize("kind", networks.BUILDERS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_on_every_kind_of_network(kind: str, dims: int) -> None:
    def make(seed: int) -> tuple[nn.Module, Tensor]:
        option = networks.Options(dims=dims, seed=seed, norm="affine", stride=2, inplace=True)
        return networks.build(kind, option), networks.images(option).requires_grad_()

    model, x = not_blank(make, 1, {})
    gradcheck(lambda: explain(model, x, 1, differentiable=True).map, [x, *model.parameters()])


def test_gradients_with_several_inputs() -> None:
    option = networks.Options(seed=5)
    model = networks.build(lambda each: networks.Fusing(each, "middle"), option)
    first, second = networks.images(option).requires_grad_(), networks.images(networks.Options(seed=6)).requires_grad_()
    found = explain(model, (first, second), 1, differentiable=True)
    assert found.streams is not None
    assert found.streams.share.requires_grad
    gradcheck(
        lambda: tuple(every_part(explain(model, (first, second), 1, differentiable=True))),
        [first, second, *model.parameters()],
    )


def test_only_the_images_that_ask_for_it_get_a_gradient() -> None:
    option = networks.Options(seed=5)
    model = networks.build(lambda each: networks.Fusing(each, "late"), option)
    first, second = networks.images(option), networks.images(networks.Options(seed=6)).requires_grad_()
    explain(model, (first, second), 1, differentiable=True).score.sum().backward()
    assert first.grad is None
    assert second.grad is not None
    assert second.grad.any()


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("recipe", RECIPES, ids=_named)
def test_the_graph_changes_no_value(recipe: dict[str, Any]) -> None:
    option = networks.Options(seed=7, norm="affine", stride=2, inplace=True)
    model, x = networks.build("resnet", option), networks.images(option)
    kept, plain = explain(model, x, 1, differentiable=True, **recipe), explain(model, x, 1, **recipe)
    assert torch.equal(kept.map, plain.map)
    for one, other in zip(every_part(kept), every_part(plain), strict=True):
        assert torch.equal(one, other)


def by_hand() -> tuple[nn.Module, Tensor]:
    """x = 1, 3; A = relu(w x + b) = 2, 4 with w = b = 1; S = mean(A) + 1/2."""
    model = nn.Sequential(
        nn.Conv1d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(1, 1)
    ).double()
    with torch.no_grad():
        for layer, bias in ((model[0], 1.0), (model[4], 0.5)):
            layer.weight.fill_(1)
            layer.bias.fill_(bias)
    return model.eval(), torch.tensor([[[1.0, 3.0]]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("bias", "share"), [("none", 1.0), ("layers", 0.8)])
def test_gradients_by_hand(bias: str, share: float) -> None:
    """One channel: alpha and g are the same everywhere, so the map is A0 / A1 and 1.

    A0 / A1 = (w x0 + b) / (w x1 + b): by x0 1/4, by x1 -2/16, by w (1*4 - 2*3)/16, by b (4 - 2)/16. The bias layer,
    1 everywhere with a weight of 0.2, does not move.
    """
    model, x = by_hand()
    explain(model, x, differentiable=True, bias=bias, **networks.AS_THEY_ARE).map[0, 0].backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, 0], share * torch.tensor([1 / 4, -1 / 8], dtype=torch.float64))
    torch.testing.assert_close(model[0].weight.grad.item(), share * -1 / 8)
    torch.testing.assert_close(model[0].bias.grad.item(), share * 1 / 8)
    assert model[4].weight.grad.item() == pytest.approx(0, abs=1e-15)


def test_the_second_derivative_reaches_alpha_by_hand() -> None:
    """e_0 = alpha g A_0, g = v/2, sum(A) = 6, alpha = 1/(2 + 3v); so e_0 = v/(2 + 3v), and de_0/dv = 2/(2 + 3v)^2."""
    model, x = by_hand()
    explain(model, x, differentiable=True, bias="none", **networks.AS_THEY_ARE).layers[0].map[0, 0].backward()
    torch.testing.assert_close(model[4].weight.grad.item(), 2 / 25)


def test_nothing_changes_until_the_loss_goes_backward() -> None:
    torch.manual_seed(0)
    model = Busy().train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    before = state_of(model)
    explain(model, x, differentiable=True)
    assert_same(before, state_of(model))
    assert x.grad is None


def test_a_model_in_training_mode_explains_and_learns_in_evaluation_mode() -> None:
    """Batch norm with its running statistics and no dropout, in the map and in its gradient; statistics stay."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 3)
    )
    twin, x = copy.deepcopy(model).eval(), torch.randn(2, 3, 8, 8)
    for each in (model.train(), twin):
        explain(each, x, 1, differentiable=True).map.square().sum().backward()
    assert all(module.training for module in model.modules())
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert model[0].weight.grad.any()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_where_autograd_is_off_it_says_so(off: Callable[[], Any]) -> None:
    model, x = small(), images().detach()
    with off(), pytest.raises(InputError, match=r"differentiable=True .*torch\.no_grad"):
        explain(model, x, differentiable=True)
    found = trace(model, x, differentiable=True)
    assert found.is_differentiable
    with off():
        assert not explain_trace(found, Recipe()).map.requires_grad


def test_one_trace_serves_several_losses() -> None:
    model, x = small(), images()
    found = trace(model, x, 1, differentiable=True, contrast=True)
    maps = [explain_trace(found, Recipe(**recipe)).map[:, 0, 0].sum() for recipe in ({}, {"bias": "none"})]
    together = torch.autograd.grad(maps[0] + maps[1], x)[0]
    alone = [
        torch.autograd.grad(explain(model, x, 1, differentiable=True, **recipe).map[:, 0, 0].sum(), x)[0]
        for recipe in ({}, {"bias": "none"})
    ]
    torch.testing.assert_close(together, alone[0] + alone[1])


def test_images_made_of_parameters_are_no_constant() -> None:
    """A patch that is learned is the input all the same, not a bias of the network."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small(torch.relu)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x - 0.25)

    patch = nn.Parameter(images().detach())
    kept, plain = explain(Centred(), patch * 1, 1, differentiable=True), explain(Centred(), patch.detach(), 1)
    assert [each.name for each in kept.bias_layers] == [each.name for each in plain.bias_layers]
    assert torch.equal(kept.completeness.bias, plain.completeness.bias)
    direct = explain(Centred(), patch, 1, differentiable=True)
    assert torch.equal(direct.completeness.bias, plain.completeness.bias)


def finite(model: nn.Module, x: Tensor, **recipe: Any) -> None:
    """Every gradient of the map is a number."""
    found = explain(model, x, 1, differentiable=True, **recipe)
    found.map.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())


@pytest.mark.filterwarnings("ignore:The map of image")
@pytest.mark.parametrize("recipe", RECIPES, ids=_named)
def test_a_dead_layer_gives_no_nan(recipe: dict[str, Any]) -> None:
    """The second convolution never fires: its scores, map and gradients are zero, of which no root may be taken."""
    model, x = small(torch.relu), images()
    with torch.no_grad():
        model.second.bias.fill_(-100)  # type: ignore[union-attr, operator]
    finite(model, x, **recipe)
    model, x = networks.build("resnet", networks.Options(seed=7)), networks.images(networks.Options(seed=7))
    with torch.no_grad():
        model[1].first[0].bias.fill_(-100)  # one branch is dead, its skip is not
    finite(model, x.requires_grad_(), **recipe)


@pytest.mark.filterwarnings("ignore:The map of image")
def test_a_blank_map_has_no_gradient() -> None:
    model, x = small(torch.relu), images()
    with torch.no_grad():
        model.head.weight[1] = -1  # type: ignore[union-attr, index, operator]
        model.head.bias[1] = 0  # type: ignore[union-attr, index, operator]
    found = explain(model, x, 1, differentiable=True, bias="none", taps="last", **OF_0_1_0)
    assert not found.map.any()
    gradients = torch.autograd.grad(found.map.sum(), [x, *model.parameters()], allow_unused=True)
    assert not any(each.any() for each in gradients if each is not None)


def test_zeros_by_magnitude_have_no_gradient_and_a_maximum_has_none_either() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    by_magnitude(values).sum().backward()
    # v0 / v1: 1/2 and -1/4; v1 / v1 does not move.
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 0], [0.5, -0.25]]


def test_equal_maxima_share_the_gradient() -> None:
    values = torch.tensor([[4.0, 4.0, 1.0]], dtype=torch.float64, requires_grad=True)
    by_magnitude(values)[0, 2].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[-1 / 32, -1 / 32, 1 / 4]]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusing_zeros_gives_no_nan(fusion: str) -> None:
    maps = [torch.tensor([each], dtype=torch.float64, requires_grad=True) for each in ([1.0, 0, -1, 2], [0, 0, 0, 1.0])]
    weights = torch.tensor([[0.75, 0.25]], dtype=torch.float64, requires_grad=True)
    fuse(maps, weights, (4,), fusion).square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in (*maps, weights))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("row", [[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
def test_weights_of_layers_without_a_score_give_no_nan(weighting: str, row: list[float]) -> None:
    values = torch.tensor([row], dtype=torch.float64, requires_grad=True)
    scores = LayerScores(shares(values), shares(values), values, torch.ones(3, dtype=torch.float64))
    weights = layer_weights(scores, weighting, 0.25, 4.0)
    assert weights.sum().item() == pytest.approx(1)
    if weights.requires_grad:
        (gradient,) = torch.autograd.grad(weights[0, 1], values)
        assert gradient.isfinite().all()


def test_the_pole_of_a_probability_gives_no_nan() -> None:
    """Softmax has f'' = 0 at p = 1/2: rho is cut there and does not move."""
    score = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    rho, _ = rho_of("sigmoid", score, None)
    assert rho.item() == -RHO_LIMIT
    assert torch.autograd.grad(rho.sum(), score)[0].item() == 0


def test_rho_of_a_callable_moves_with_the_score() -> None:
    """f = S^4: rho = 24 S / 12 S^2 = 2 / S, and its slope -2 / S^2."""
    score = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    rho, _ = rho_of(lambda s: s**4, score, None)
    torch.testing.assert_close(rho.item(), 1.0)
    torch.testing.assert_close(torch.autograd.grad(rho.sum(), score)[0].item(), -0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    """Of the direction that float32 has."""
    model, x = small(F.softplus).float(), images().detach().float()
    wanted = torch.autograd.grad(explain(model, x, 1, differentiable=True).map[:, 0].sum(), model.first.weight)[0]
    half = copy.deepcopy(model).to(dtype)
    of_half = torch.autograd.grad(explain(half, x.to(dtype), 1, differentiable=True).map[:, 0].sum(), half.first.weight)
    with torch.autocast("cpu", dtype):
        found = explain(model, x, 1, differentiable=True).map[:, 0].sum()
    of_autocast = torch.autograd.grad(found, model.first.weight)
    for each in (of_half[0], of_autocast[0]):
        assert F.cosine_similarity(each.float().flatten(), wanted.flatten(), dim=0) > 0.98


def test_a_differentiable_explanation_can_be_saved(tmp_path: Path) -> None:
    found = explain(small(), images(), 1, differentiable=True)
    loaded = Explanation.load(found.save(tmp_path / "kept"))
    assert torch.equal(loaded.map, found.map)
    assert not loaded.map.requires_grad


def test_a_trace_without_network_still_has_no_graph() -> None:
    pair = (torch.eye(2).reshape(1, 1, 2, 2).requires_grad_(), torch.ones(1, 1, 2, 2))
    assert not explain_trace(trace_of([pair]), Recipe(bias="none")).map.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "gain", "most"),
    [({}, 0.1, 0.2), ({**OF_0_1_0, "negative_share": 0.5}, 0.1, 0.05)],
    ids=["default", "0.1.0"],
)
def test_a_penalty_on_the_map_removes_a_shortcut(recipe: dict[str, Any], gain: float, most: float) -> None:
    """Signals hold one of four patterns, and in training a mark at the start that gives the class away."""
    generator = torch.Generator().manual_seed(0)
    patterns = 1.2 * torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, 1], [-1, 1, -1]])

    def data(marked: bool) -> tuple[Tensor, Tensor]:
        label = torch.randint(4, (256,), generator=generator)
        signals = torch.randn(256, 1, 32, generator=generator) / 3
        for signal, kind in zip(signals[:, 0], label.tolist(), strict=True):
            start = int(torch.randint(8, 29, (), generator=generator))
            signal[start : start + 3] += patterns[kind]
            signal[kind] += 5 * marked
        return signals, label

    (signals, label), (unmarked, their_label) = data(True), data(False)

    def trained(strength: float) -> tuple[float, float]:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv1d(1, 16, 5, padding=2), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 4)
        )
        optimiser = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(150):
            batch = torch.randint(256, (64,))
            found = explain(model, signals[batch], label[batch], differentiable=True, **recipe)
            share = found.map[:, :6].sum(1) / found.map.sum(1).clamp_min(1e-6)
            optimiser.zero_grad()
            (F.cross_entropy(found.output, label[batch]) + strength * share.mean()).backward()
            optimiser.step()
        maps = explain(model, signals, label, **recipe).map
        accuracy = (model(unmarked).argmax(1) == their_label).float().mean().item()
        return accuracy, (maps[:, :6].sum() / maps.sum()).item()

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (before, map_before), (after, map_after) = trained(0.0), trained(3.0)
    assert after > before + gain
    assert map_before > 0.4
    assert map_after < most
