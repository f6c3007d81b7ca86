"""Networks that forgot their top layers, and whether maps notice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluated import MAP, few
from hypothesis import given
from hypothesis import strategies as st
from networks import Options, build, images, noise
from reference import metrics as reference
from scipy import stats
from torch import Tensor, nn

from integrative_cam import Explanation, explain, get_method
from integrative_cam.errors import InputError
from integrative_cam.evaluate import randomisation, randomisation_curve, randomised, rank_correlation
from integrative_cam.targets import Target


def test_rank_correlation_by_hand() -> None:
    # Of five ranks, rho = 1 - 6 sum(d^2) / (5 * 24): differences 0, 1, 1, 1, 1, so 1 - 24/120.
    first = torch.tensor([[1.0, 2, 3, 4, 5]]).double()
    cases = {
        (10.0, 30, 20, 50, 40): 0.8,
        (5.0, 4, 3, 2, 1): -1,
        (0.0, 1e-9, 2e-9, 1, 1e9): 1,
        # Ranks 2, 2, 2, 4.5, 4.5: covariance 7.5, variances 10 and 7.5.
        (0.0, 0, 0, 1, 1): 7.5 / 75**0.5,
        (0.0, 0, 0, 0, 0): 0,
        (0.1, 0.1, 0.1, 0.1, 0.1): 0,
    }
    others = torch.tensor(list(cases)).double()
    found = rank_correlation(first.expand(len(cases), 5), others)
    assert found.tolist() == pytest.approx(list(cases.values()), abs=1e-12)
    assert rank_correlation(others, first.expand(len(cases), 5)).tolist() == pytest.approx(found.tolist(), abs=1e-12)


@few
@given(st.integers(0, 1000), st.sampled_from([(5,), (7, 6), (3, 4, 2)]), st.integers(2, 40))
def test_scipy_and_the_twin_agree(seed: int, space: tuple[int, ...], levels: int) -> None:
    """Few levels make many ties; each image is ranked on its own."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randint(0, levels, (2, 4, *space), generator=generator).double() / 7
    # Images of different range: ranks across them would differ.
    left = left * torch.tensor([1.0, 100, 0.01, -1]).reshape(-1, *[1] * len(space))
    left[0] = left[0] + torch.arange(left[0].numel()).reshape(space) * 1e-3
    right[0] = right[0] + torch.arange(left[0].numel()).reshape(space) * 1e-3
    found = rank_correlation(left, right)
    for sample in range(4):
        assert found[sample].item() == pytest.approx(
            reference.rank_correlation(left[sample].numpy(), right[sample].numpy()), abs=1e-12
        )
        if len(left[sample].unique()) > 1 and len(right[sample].unique()) > 1:
            peer = stats.spearmanr(left[sample].flatten(), right[sample].flatten()).statistic
            assert found[sample].item() == pytest.approx(peer, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_maps_keep_their_precision(dtype: torch.dtype) -> None:
    left, right = noise(torch.Generator().manual_seed(0), 2, 1, 224, 224).to(dtype)
    right = right + left
    peer = stats.spearmanr(left.double().flatten(), right.double().flatten()).statistic
    assert rank_correlation(left, right).item() == pytest.approx(peer, abs=2e-6)


class Scale(nn.Module):
    """A parameter without a way to reset it, a buffer that is nobody's memory, and a number that is no float."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(2 * noise(torch.Generator().manual_seed(0), 100, 100) + 5)
        self.one = nn.Parameter(torch.tensor([3.0]))
        self.count = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
        self.register_buffer("grid", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.mean()


class Offset(nn.Module):
    """A buffer that nothing was learned into."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class Learned(nn.Module):
    """Five layers: two convolutions, two norms, of which one has statistics only, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.InstanceNorm2d(4)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), Offset())
        with torch.no_grad():
            for index, tensor in enumerate(self.state_dict().values()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 10.0 + index)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


LAYERS = ["first.0", "first.1", "second.0", "second.1", "head.2"]


def changed(model: nn.Module, other: nn.Module) -> list[str]:
    """The names of the modules of which every tensor of floats differs; the others must be equal."""
    found = []
    theirs = dict(other.named_modules())
    for name, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        equal = [torch.equal(value, getattr(theirs[name], key)) for key, value in own if value.is_floating_point()]
        assert len(set(equal)) < 2, name
        if equal and not equal[0]:
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("share", "count"), [(0.01, 1), (0.2, 1), (0.29, 1), (0.31, 2), (0.6, 3), (0.89, 4), (0.91, 5), (1, 5)]
)
def test_the_top_share_of_the_layers_is_redrawn(share: float, count: int) -> None:
    model = Learned()
    assert changed(model, randomised(model, share)) == LAYERS[-count:]


def test_layers_are_reset_as_torch_initialises_them() -> None:
    found = randomised(Learned(), 1.0, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        # From the output down.
        linear, second, first = nn.Linear(4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(2, 4, 3)
    for module, fresh in ((found.head[2], linear), (found.second[0], second), (found.first[0], first)):
        assert torch.equal(module.weight, fresh.weight)
        assert torch.equal(module.bias, fresh.bias)
    for norm in (found.first[1], found.second[1]):
        assert norm.running_mean.tolist() == [0] * 4
        assert norm.running_var.tolist() == [1] * 4
    assert found.first[1].weight.tolist() == [1] * 4
    assert found.first[1].bias.tolist() == [0] * 4


def test_what_has_no_reset_is_drawn_like_its_own_values() -> None:
    model = Scale()
    found = randomised(model, 1.0, seed=1)
    assert abs(stats.pearsonr(found.factor.detach().flatten(), model.factor.detach().flatten()).statistic) < 0.05
    # Standard errors 0.02 and 0.014 of 10000 draws.
    assert found.factor.mean().item() == pytest.approx(5, abs=0.1)
    assert found.factor.std().item() == pytest.approx(2, abs=0.07)
    assert stats.kstest(found.factor.detach().flatten(), stats.norm(5, 2).cdf).pvalue > 1e-3
    assert found.one.item() == 3
    assert found.count.tolist() == [1, 2]
    assert found.grid.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("normed", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_weights_are_redrawn(normed: Callable[[nn.Module], nn.Module]) -> None:
    """Their `reset_parameters` writes to a weight that is computed anew."""
    torch.manual_seed(0)
    model = nn.Sequential(normed(nn.Linear(30, 20))).eval()
    found = randomised(model, 1.0, seed=1)
    before, after = model[0].weight.detach().flatten(), found[0].weight.detach().flatten()
    assert abs(stats.pearsonr(before, after).statistic) < 0.2
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, found.get_parameter(name)), name


def test_older_weight_norm_is_redrawn() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(30, 20))
    with pytest.raises(InputError, match=r"that copy.deepcopy can copy, but: .*weight_norm"):
        randomised(model, 1.0)
    ones = torch.eye(30)
    with torch.no_grad():
        model(ones)
        found = randomised(model, 1.0, seed=1)
        before, after = ((each(ones) - each.bias).flatten() for each in (model, found))
    assert abs(stats.pearsonr(before, after).statistic) < 0.2


def test_a_larger_share_keeps_the_draws_of_a_smaller_one() -> None:
    model = build("resnet", Options(seed=1, norm="affine"))
    half, whole = randomised(model, 0.5, 7), randomised(model, 1.0, 7)
    top = changed(model, half)
    names = changed(model, whole)
    assert names[-len(top) :] == top
    assert len(top) < len(names)
    for name in top:
        for one, other in zip(
            half.get_submodule(name).state_dict().values(), whole.get_submodule(name).state_dict().values(), strict=True
        ):
            assert torch.equal(one, other)


def test_the_seed_decides() -> None:
    model = Learned()
    one, again, other = (randomised(model, 1.0, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(one["head.2.weight"], other["head.2.weight"])


@pytest.mark.filterwarnings("ignore:The map of image")
def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    model = build("resnet", Options(seed=1, norm="affine")).train()
    model[0].eval()
    model[1].requires_grad_(False)
    next(model[3].parameters()).grad = torch.ones_like(next(model[3].parameters()))
    batch = images(Options())
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    numbers = torch.get_rng_state()
    found = randomised(model, 1.0)
    randomisation(model, batch, get_method("gradcam"), 0)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one is other for one, other in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert [module.training for module in model.modules()] == flags
    assert [module.training for module in found.modules()] == flags
    assert [each.requires_grad for each in found.parameters()] == [each.requires_grad for each in model.parameters()]
    assert torch.equal(next(model[3].parameters()).grad, torch.ones_like(next(model[3].parameters())))
    shared = {each.data_ptr() for each in found.state_dict().values()} & {each.data_ptr() for each in tensors}
    assert not shared


class Failing(nn.Linear):
    def reset_parameters(self) -> None:
        torch.rand(3)
        if hasattr(self, "trained"):
            raise KeyboardInterrupt


def test_random_numbers_are_left_as_they_were_after_an_interruption() -> None:
    model = Failing(2, 2)
    nn.init.ones_(model.weight)
    model.trained = True
    numbers = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        randomised(model, 1.0)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert model.weight.tolist() == [[1, 1], [1, 1]]


def test_inference_mode_and_compiled_models() -> None:
    model, batch = build("plain", Options(seed=2)), images(Options())
    expected = randomisation(model, batch, get_method("gradcam"), 1)
    with torch.inference_mode():
        assert torch.equal(randomisation(model, batch, get_method("gradcam"), 1), expected)
    with torch.no_grad():
        assert torch.equal(randomisation(model, batch, get_method("gradcam"), 1), expected)
    compiled = torch.compile(model, backend="eager")
    # Compiling each copy would take longer than running it.
    assert type(randomised(compiled, 1.0)) is type(model)
    assert torch.equal(randomisation(compiled, batch, get_method("gradcam"), 1), expected)


def test_half_precision_models_stay_so() -> None:
    found = randomised(Learned().to(torch.bfloat16), 1.0)
    assert {each.dtype for each in found.parameters()} == {torch.bfloat16}


def weights_of(model: nn.Module, images: Tensor, target: Target) -> Any:
    """A method whose map is the row of the weights that the target names."""
    assert isinstance(target, int)
    return SimpleNamespace(map=model.weight.detach()[target].expand(len(images), -1))


def test_randomisation_by_hand() -> None:
    """The map after is the row of a fresh linear layer."""
    torch.manual_seed(0)
    model, batch = nn.Linear(40, 3), torch.zeros(2, 1, 40)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        fresh = nn.Linear(40, 3)
    for target in range(3):
        peer = stats.spearmanr(model.weight[target].detach(), fresh.weight[target].detach()).statistic
        found = randomisation(model, batch, weights_of, target, 1.0, seed=5)
        assert found.tolist() == pytest.approx([peer, peer], abs=1e-6)


def test_maps_of_the_image_alone_do_not_notice_and_constant_ones_have_no_correlation() -> None:
    model, batch = Learned(), images(Options(seed=3), (9, 6)).float()

    def edges(model: nn.Module, images: Tensor, target: Target) -> Any:
        return SimpleNamespace(map=images.diff(dim=-1).abs().sum(1))

    def flat(model: nn.Module, images: Tensor, target: Target) -> Any:
        return SimpleNamespace(map=torch.full_like(images[:, 0], 0.1))

    assert randomisation(model, batch, edges, 0).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert randomisation(model, batch, flat, 0).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["integrative", "gradcam"])
def test_the_curve_is_the_correlation_of_two_explanations(name: str) -> None:
    """Both of the same class, though the network that forgot may prefer another; each image on its own."""
    model, batch = build("vgg", Options(seed=4, norm="affine")), images(Options(seed=4), (16, 12))
    target = torch.tensor([2, 1])
    shares = (0.3, 1.0)
    found = randomisation_curve(model, batch, get_method(name), target, shares, seed=1)
    assert found.shape == (2, 2)
    for column, share in enumerate(shares):
        other = randomised(model, share, 1)
        before: Explanation = explain(model, batch, target, get_method(name).recipe)
        after: Explanation = explain(other, batch, target, get_method(name).recipe)
        for sample in range(2):
            twin = reference.rank_correlation(before.map[sample].numpy(), after.map[sample].numpy())
            assert found[sample, column].item() == pytest.approx(twin, abs=1e-9)
        alone = randomisation(model, batch[1:], get_method(name), target[1:], share, 1)
        assert found[1:, column].tolist() == pytest.approx(alone.tolist(), abs=1e-9)
    assert found.abs().max() < 1


@pytest.mark.filterwarnings("ignore:The map of image")
def test_defaults_are_the_documented_ones() -> None:
    model, batch = build("resnet", Options(seed=6, norm="affine")), images(Options(seed=6))
    curve = randomisation_curve(model, batch, get_method("layercam"), 0)
    by_share = [randomisation(model, batch, get_method("layercam"), 0, share, 0) for share in (0.1, 0.25, 0.5, 0.75, 1)]
    assert torch.equal(curve, torch.stack(by_share, 1))
    assert torch.equal(randomisation(model, batch, get_method("layercam"), 0), curve[:, 2])
    assert len(set(curve[0].tolist())) == 5


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("it holds a lock\nsecond line")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_correlation(MAP, MAP[:, :1]), r"maps and others .* have \(1, 2, 2\) and \(1, 1, 2\)"),
        (lambda: rank_correlation(MAP / 0, MAP), "maps hold NaN"),
        (lambda: rank_correlation(MAP, MAP / 0), "hold NaN"),
        (lambda: randomised(Learned(), 0), "share must be above 0 and at most 1, but got 0"),
        (lambda: randomised(Learned(), 1.1), "share must be above 0 and at most 1, but got 1.1"),
        (lambda: randomised(Learned(), float("nan")), "but got nan"),
        (lambda: randomised(len, 0.5), "model must be a torch.nn.Module, but got builtin"),
        (lambda: randomised(nn.ReLU(), 0.5), "a layer with parameters to redraw, but has none"),
        (lambda: randomised(Uncopied(2, 2), 0.5), "that copy.deepcopy can copy, but: it holds a lock$"),
        (lambda: randomisation_curve(Learned(), MAP, weights_of, 0, ()), "shares must hold at least one number"),
        (lambda: randomisation_curve(Learned(), MAP, weights_of, 0, (0.5, 2)), "but got 2"),
    ],
)
def test_unusable_arguments_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
