"""A plan is made once, followed by later calls, and left where a call goes another way: slower, never wrong."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from integrative_cam import IntegrativeCAM, explain, targets, trace
from integrative_cam import _call as walk
from integrative_cam._plan.placement import grids_of
from integrative_cam._plan.plan import FORMS, plans_of
from integrative_cam._plan.positions import Positions, reshaped
from integrative_cam._plan.positions import seed as positions_of_input

pytestmark = pytest.mark.filterwarnings("ignore:The map of image")  # blank maps are equal too

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each time that a network is planned."""
    times: list[int] = []
    planning = walk._Walk.planning

    def counted(self: Any, *arguments: Any) -> Any:
        times.append(1)
        return planning(self, *arguments)

    monkeypatch.setattr(walk._Walk, "planning", counted)
    return times


class Net(nn.Module):
    """Runs a function of (module, x) between a convolution and a linear head."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)
        self.act: nn.Module = nn.ReLU()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("order", torch.arange(6))
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 1.5)
        nn.init.normal_(self.norm.bias)
        nn.init.uniform_(self.head.weight, 0.5, 1.5)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, self.act(self.conv(x))).mean((2, 3)))


def plain(m: Net, x: Tensor) -> Tensor:
    return m.act(m.norm(m.other(x)))


def same(model: nn.Module, cam: IntegrativeCAM, images: Any, target: Any = 0) -> None:
    """A call on the kept plan gives what a call that has none gives, in every number."""
    ours, fresh = cam(images, target), IntegrativeCAM(model, cam.recipe)(images, target)
    assert [layer.name for layer in ours.layers] == [layer.name for layer in fresh.layers]
    assert ours.target_names == fresh.target_names
    assert torch.equal(ours.map, fresh.map)
    assert torch.equal(ours.weights, fresh.weights)
    for name in ("input", "bias", "activation", "tap_bias", "is_cut"):
        assert torch.equal(getattr(ours.completeness, name), getattr(fresh.completeness, name)), name


def test_a_later_call_of_the_same_form_is_not_planned_again(planned: list[int]) -> None:
    model = Net(plain).eval()
    cam = IntegrativeCAM(model)
    for images in (IMAGES, IMAGES[:1], IMAGES[:3], IMAGES + 1):
        cam(images, 0)
        cam(images, 2)
        cam(images)
        cam.explain_targets(images, 2)
    assert len(planned) == 1
    for images in (IMAGES, IMAGES[:1], -IMAGES):
        same(model, cam, images, 1)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "convnext_tiny", "squeezenet1_1"])
def test_a_convolutional_networks_plan_serves_any_batch_size(name: str, first: int, planned: list[int]) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    images = torch.randn(4, 3, 64, 64)
    cam = IntegrativeCAM(model)
    cam(images[:first], 3)
    for batch in (2, 4, 1):
        cam(images[:batch], 3)
    assert len(planned) == 1
    same(model, cam, images[:2], 3)


def test_windows_and_tokens_are_planned_once_more_where_the_batch_axis_was_a_guess(planned: list[int]) -> None:
    """From one image nobody knows whether windows or images come first; from two one does, for every batch size."""
    torch.manual_seed(0)
    model = torchvision.models.swin_transformer.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=4).eval()
    images = torch.randn(3, 3, 64, 64)
    cam = IntegrativeCAM(model)
    for batch in (1, 2, 3, 1, 2):
        cam(images[:batch], 0)
    assert len(planned) == 2
    for batch in (1, 2, 3):
        same(model, cam, images[:batch])


class Branching(Net):
    """Takes another way for images that are bright."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        y = self.act(self.other(y)) if x.mean() > 0 else torch.tanh(self.norm(y))
        return self.head(y.mean((2, 3)))


def test_a_network_that_branches_on_its_input() -> None:
    model = Branching(plain).eval()
    cam = IntegrativeCAM(model)
    bright, dark = IMAGES.abs(), -IMAGES.abs()
    for images in (bright, dark, bright, bright, dark):
        same(model, cam, images)
    assert [layer.name for layer in cam(bright, 0).layers] == ["act", "act#2"]
    assert [layer.name for layer in cam(dark, 0).layers] == ["act", ":tanh"]


def test_the_same_functions_on_other_tensors_are_another_way() -> None:
    """Function by function alike: what differs is which of two tensors goes on."""

    def run(m: Net, x: Tensor) -> Tensor:
        first, second = m.act(m.other(x)), m.act(m.norm(x))
        kept = first if m.flip else second
        return torch.sigmoid(kept)

    model = Net(run).eval()
    model.flip = False
    cam = IntegrativeCAM(model)
    cam(IMAGES, 0)
    model.flip = True
    same(model, cam, IMAGES)
    assert "act#3" not in [layer.name for layer in cam(IMAGES, 0).layers]


def test_layers_dropped_at_random(planned: list[int]) -> None:
    """A call has one draw, and its map is of the layers that were called then."""
    called: list[str] = []

    def run(m: Net, x: Tensor) -> Tensor:
        called.clear()
        for name, layer in (("other", m.other), ("norm", m.norm), ("other", m.other)):
            if m.random.random() < 0.5:
                called.append(name)
                x = m.act(layer(x))
        return x

    model = Net(run).eval()
    model.random = random.Random(3)
    cam = IntegrativeCAM(model)
    lengths = set()
    for _ in range(20):
        explanation = cam(IMAGES, 0)
        assert len(explanation.layers) == 1 + len(called)
        lengths.add(len(called))
    assert len(lengths) > 2
    assert len(planned) < 20


def test_layers_dropped_by_torchs_random_numbers_leave_the_generator_alone() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.act(m.other(x)) if torch.rand(()) < 0.5 else m.act(m.norm(x))

    model = Net(run).eval()
    cam = IntegrativeCAM(model)
    for seed in range(8):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        same(model, cam, IMAGES)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "act", nn.GELU()),
        lambda m: setattr(m, "act", nn.LeakyReLU(0.3)),
        lambda m: setattr(m, "norm", nn.Identity()),
        lambda m: setattr(m, "other", nn.Conv2d(6, 6, 3, padding=2, stride=2)),
        lambda m: setattr(m, "other", nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())),
        lambda m: setattr(m, "act", nn.Hardtanh(-0.5, 0.5)),
        lambda m: m.norm.weight.data.mul_(-2),
        lambda m: m.conv.register_forward_hook(lambda _, __, out: torch.sigmoid(out)),
        lambda m: m.requires_grad_(False),
    ],
    ids=["gelu", "leaky", "identity", "stride", "deeper", "hardtanh", "weights", "hook", "frozen"],
)
def test_a_module_changed_between_calls(change: Callable[[Net], Any]) -> None:
    model = Net(plain).eval()
    cam = IntegrativeCAM(model)
    cam(IMAGES, 0)
    change(model)
    same(model, cam, IMAGES)
    same(model, cam, IMAGES[:2])


def test_modules_that_trade_places_give_the_taps_their_new_names() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()) for _ in "ab")

        def forward(self, x: Tensor) -> Tensor:
            first = self.first if hasattr(self, "first") else self.one
            return self.two(first(x)).mean((2, 3))

    model = Two()
    cam = IntegrativeCAM(model)
    assert [layer.name for layer in cam(IMAGES, 0).layers] == ["one.1", "two.1"]
    model.one, model.two = model.two, model.one
    same(model, cam, IMAGES)


def test_constants_are_those_of_the_call() -> None:
    """A plan says where a constant is added, never which."""

    def run(m: Net, x: Tensor) -> Tensor:
        return m.act(m.norm(x) + m.shift)

    model = Net(run).eval()
    model.shift = 0.5
    cam = IntegrativeCAM(model)
    first = cam(IMAGES, 0).completeness.bias
    model.shift = -2.0
    same(model, cam, IMAGES)
    assert not torch.allclose(cam(IMAGES, 0).completeness.bias, first)


def test_positions_that_depend_on_values_are_planned_each_time(planned: list[int]) -> None:
    """Tokens put in order by a value computed from the image: no plan could hold."""

    def run(m: Net, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        order = tokens.sum(2).argsort(1)
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        return F.gelu(m.token(tokens)).transpose(1, 2)[..., None]

    model = Net(run)
    model.token = nn.Linear(6, 6)
    cam = IntegrativeCAM(model.eval())
    for _ in range(3):
        cam(IMAGES, 0)
    assert len(planned) == 3
    same(model, cam, IMAGES.flip(3))


def test_indices_of_a_buffer_are_planned_once_until_they_change(planned: list[int]) -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, m.order]
        return F.gelu(m.token(tokens)).transpose(1, 2)[..., None]

    model = Net(run)
    model.order = torch.arange(144).flip(0)
    model.token = nn.Linear(6, 6)
    cam = IntegrativeCAM(model.eval())
    for _ in range(3):
        cam(IMAGES, 0)
    assert len(planned) == 1
    model.order.copy_(torch.arange(144))
    same(model, cam, IMAGES)


class Heads(Net):
    """Two heads, one of them before the last layers."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = self.act(self.conv(x))
        late = self.act(self.other(early)) + early
        return {"logits": self.head(late.mean((2, 3))), "early": self.head(early.mean((2, 3)))}


def test_each_output_has_a_route_of_its_own(planned: list[int]) -> None:
    model = Heads(plain).eval()
    cam = IntegrativeCAM(model)
    of = {
        "late": lambda output: output["logits"][1],
        "early": lambda output: output["early"][1],
        "both": lambda output: output["logits"][1] - 2 * output["early"][0],
        "twice": lambda output: output["early"][0] + output["early"][1],
        "class": 2,
    }
    for target in of.values():
        cam(IMAGES, target)
    # "class" goes the way of "late", "twice" that of "early".
    assert len(planned) == 3
    for target in of.values():
        same(model, cam, IMAGES, target)
    assert len(cam(IMAGES, of["early"]).layers) == 1
    assert cam(IMAGES, of["late"]).completeness.is_cut.tolist() == [True, False]


def test_routes_of_modules_that_traded_places_are_forgotten() -> None:
    """Same steps, other names: what an earlier target's route called its taps no longer holds."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()) for _ in "ab")

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            early = self.first(x)
            late = self.last(early)
            return {"logits": late.mean((2, 3)), "early": early.mean((2, 3))}

    model = Two()
    model.__dict__.update(first=model.one, last=model.two)  # called by no name, as modules kept in a list
    cam = IntegrativeCAM(model)
    late, early = (lambda output: output["logits"][0]), (lambda output: output["early"][0])
    cam(IMAGES, late)
    assert [layer.name for layer in cam(IMAGES, early).layers] == ["one.1"]
    model.one, model.two = model.two, model.one
    cam(IMAGES, early)
    assert [layer.name for layer in cam(IMAGES, late).layers] == ["two.1", "one.1"]


def test_a_target_that_reads_more_than_the_outputs_is_planned_each_time(planned: list[int]) -> None:
    kept: list[Tensor] = []

    def run(m: Net, x: Tensor) -> Tensor:
        kept[:] = [x]
        return plain(m, x)

    model = Net(run).eval()
    cam = IntegrativeCAM(model)

    def target(output: Tensor) -> Tensor:
        return output[0] + kept[0].mean()

    for _ in range(2):
        cam(IMAGES, target)
    assert len(planned) == 2


def test_inputs_of_another_form_have_plans_of_their_own(planned: list[int]) -> None:
    model = Net(plain).eval()
    cam = IntegrativeCAM(model)
    for images in (IMAGES, IMAGES[..., :8], IMAGES.to(memory_format=torch.channels_last)):
        cam(images, 0)
        cam(images, 0)
    assert len(planned) == 3
    cam.model.double()
    same(model, cam, IMAGES.double())
    assert len(planned) == 5


def test_no_more_than_so_many_plans_are_kept(planned: list[int]) -> None:
    cam = IntegrativeCAM(Net(plain).eval())
    for width in range(4, 4 + FORMS + 3):
        cam(torch.randn(1, 3, 5, width), 0)
    assert len(cam._plans) == FORMS


def test_calls_of_explain_share_a_plan_and_do_not_keep_the_model(planned: list[int]) -> None:
    model = Net(plain).eval()
    for images in IMAGES.split(1):
        explain(model, images, 0)
    assert len(planned) == 1
    trace(model, IMAGES, 0)
    assert len(planned) == 1
    alive = weakref.ref(model)
    kept = plans_of(model)
    del model
    gc.collect()
    assert alive() is None
    assert len(kept) == 1  # and it holds nothing of the model


def test_a_plan_ends_with_its_cam() -> None:
    cam = IntegrativeCAM(Net(plain).eval())
    cam(IMAGES, 0)
    (plan,) = cam._plans._plans.values()
    alive = weakref.ref(plan)
    del plan, cam
    gc.collect()
    assert alive() is None


def test_copies_plan_for_themselves() -> None:
    cam = IntegrativeCAM(torchvision.models.squeezenet1_1(weights=None).eval())
    images = torch.randn(1, 3, 40, 40)
    first = cam(images, 0).map
    for other in (pickle.loads(pickle.dumps(cam)), copy.deepcopy(cam), copy.copy(cam)):
        assert torch.equal(other(images, 0).map, first)


def test_threads_share_plans(planned: list[int]) -> None:
    model = Net(plain).eval()
    cam = IntegrativeCAM(model)
    expected = {batch: IntegrativeCAM(model)(IMAGES[:batch], 0).map for batch in (1, 2, 4)}
    planned.clear()
    start = threading.Barrier(8)

    def work(at: int) -> bool:
        start.wait()
        return all(torch.equal(cam(IMAGES[:batch], 0).map, expected[batch]) for batch in (1, 2, 4) * 3)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(planned) <= 8


def test_a_run_that_left_its_plan_changes_nothing() -> None:
    """Buffers that it wrote to on the way, assigned or in place, are as they were, though it ran twice."""

    def run(m: Net, x: Tensor) -> Tensor:
        m.seen.add_(1)
        m.counted = m.seen + 1
        return m.act(m.other(x)) if m.seen < m.limit else m.act(m.norm(x))

    model = Net(run).eval()
    model.register_buffer("counted", torch.zeros(()))
    model.limit, counted = 2, model.counted
    cam = IntegrativeCAM(model)
    cam(IMAGES, 0)
    model.limit = 0
    same(model, cam, IMAGES)
    assert float(model.seen) == 0
    assert model.counted is counted


def test_an_error_on_a_plan_is_the_networks_own_and_leaves_nothing() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        y = m.act(m.norm(x))
        if m.fails:
            raise KeyboardInterrupt
        return y

    model = Net(run).train()
    model.fails = False
    cam = IntegrativeCAM(model)
    cam(IMAGES, 0)
    model.fails = True
    with pytest.raises(KeyboardInterrupt):
        cam(IMAGES, 0)
    assert all(module.training for module in model.modules())
    model.fails = False
    same(model, cam, IMAGES)


class Reads(TorchDispatchMode):
    """Counts the operators that make a host wait for the device."""

    NAMES = frozenset(
        (
            *("_local_scalar_dense", "nonzero", "nonzero_static", "equal", "is_nonzero", "_unique2", "unique_dim"),
            *("unique_consecutive", "masked_select", "item", "allclose", "bincount", "histc", "_assert_async"),
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


READS = [
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "efficientnet_b0"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("vgg11_bn", "googlenet", "densenet121", "convnext_tiny", "swin_t", "vit_b_16")
    ),
]


@pytest.mark.parametrize("name", READS)
def test_a_repeated_call_reads_nothing_back_before_the_map_is_done(name: str) -> None:
    """The one read at the end is `tolist` of a tensor that is on the CPU here, which is no operator."""
    options: dict[str, Any] = {"googlenet": {"init_weights": False}, "vit_b_16": {"image_size": 64}}.get(name, {})
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    for values in model.parameters():
        if not values.any():
            nn.init.normal_(values, std=0.02)
    images = torch.randn(2, 3, 64, 64)
    cam = IntegrativeCAM(model)
    cam(images)
    with Reads() as reads:
        cam(images)
        cam(images, 1)
        cam(images, targets.contrast(0, 1))
        cam.explain_targets(images, 2)
    assert not reads.counts


def test_what_is_read_at_the_end_is_read_at_once() -> None:
    """NaN in the images, in the score or in a map, and blank maps: found in the numbers of one read."""
    model = Net(plain).eval()
    cam = IntegrativeCAM(model)
    cam(IMAGES, 0)
    bad = IMAGES.clone()
    bad[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="images hold NaN"):
        cam(bad, 0)
    with pytest.raises(ValueError, match="score of sample 0, 1, 2, 3 is NaN"):
        cam(IMAGES, lambda output: output[0] * torch.nan)
    with pytest.warns(UserWarning, match="map of image 2 is blank"):
        cam(IMAGES, [0, 0, lambda output: output[0] * 0, 0])


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
def test_folds_bring_any_order_of_axes_back_and_serve_other_batches(batch: int, axes: tuple[int, ...]) -> None:
    """(batch, 6 positions, channel), its axes in any order; a fold that says it serves another batch does."""
    whole = reshaped(positions_of_input((batch, 2, 3), 0), (batch, 6, 1))
    assert whole is not None
    index = whole.index.expand(batch, 6, 2)
    moved = Positions(tuple(index.permute(axes).shape), whole.field, index.permute(axes))
    (grid,) = grids_of(moved, {0: (1, 2)}, [(batch, 2, 3)], batch)
    fold = grid.fold
    assert fold is not None
    for samples in (1, 2, 5):
        values = torch.randn(samples, 6, 2)
        shape, planned = tuple(values.permute(axes).shape), tuple(index.permute(axes).shape)
        if fold.serves(shape, planned, samples):
            assert torch.equal(fold(values.permute(axes)), values.transpose(1, 2).reshape(samples, 2, 2, 3))
        else:
            assert batch == 1
            assert samples != 1
            assert axes[0] != 0
