"""One run, no trace left: what the model, autograd and the random numbers look like afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, explain, trace
from integrative_cam.errors import InputError, OutputError


class Busy(nn.Module):
    """Everything that could be left changed: batch statistics, dropout, a counter, in-place layers, a hook."""

    def __init__(self, fault: type[BaseException] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 6, 3, groups=2)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last_mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(6, 1, 1))
        self.fault = fault
        self.hook_calls = 0
        self.conv.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.hook_calls += 1

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last_mean = x.detach().mean()
        x = self.relu(self.norm(self.conv(x)))
        self.scale.mul_(0.5)
        x = self.relu(self.second(x * self.scale))  # autograd holds on to the buffer as it is now
        x = x + 1e-3 * torch.rand_like(x)
        if self.fault is not None:
            raise self.fault("on purpose")
        return self.head(self.dropout(x.mean((2, 3))))


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a user could notice."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [(name, module.training) for name, module in model.named_modules()],
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "parameters": [
            (
                name,
                id(each),
                each.requires_grad,
                each.detach().clone(),
                None if each.grad is None else each.grad.clone(),
            )
            for name, each in model.named_parameters()
        ],
        "buffers": [(name, id(each), each.clone()) for name, each in model.named_buffers()],
        "hooks": [(name, hook, dict(getattr(m, hook))) for name, m in model.named_modules() for hook in hooks],
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "random": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "modes": torch.overrides._len_torch_function_stack(),
    }


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    else:
        assert before == after


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("fault", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_changes(training: bool, frozen: bool, fault: type[BaseException] | None) -> None:
    torch.manual_seed(0)
    model = Busy(fault).train(training).requires_grad_(not frozen)
    model.relu.eval()  # flags may be mixed
    if not frozen:
        model.head.weight.grad = torch.ones_like(model.head.weight)
    images = torch.randn(2, 3, 8, 8)
    before, images_before = state_of(model), images.clone()
    with pytest.raises(fault, match="on purpose") if fault else contextlib.nullcontext():
        explain(model, images)
    assert_same(before, state_of(model))
    assert model.hook_calls == 1
    assert torch.equal(images, images_before)
    assert images.grad is None


def test_training_mode_explains_as_evaluation_mode_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 3)
    )
    images = torch.randn(2, 3, 8, 8)
    in_training = explain(model.train(), images, target=1).map
    assert torch.equal(in_training, explain(model.eval(), images, target=1).map)


def test_error_while_differentiating_leaves_nothing() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("no backward")

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).train()
    model.register_forward_hook(lambda module, args, output: Broken.apply(output))
    images = torch.randn(1, 3, 8, 8)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="no backward"):
        explain(model, images)
    assert_same(before, state_of(model))


def small(inplace: bool = False) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_inside_any_grad_mode(surrounding: Callable[[], Any]) -> None:
    model = small()
    expected = explain(model, IMAGES).map
    with surrounding():
        inside = explain(model, IMAGES.clone()).map
        assert not inside.requires_grad
    assert torch.equal(inside, expected)


def test_inference_tensors_as_images_work_and_as_parameters_are_refused() -> None:
    with torch.inference_mode():
        images = IMAGES.clone()
        model = small()
    assert torch.equal(explain(small(), images).map, explain(small(), IMAGES).map)
    with pytest.raises(InputError, match="inference_mode"):
        explain(model, IMAGES)


def test_images_may_belong_to_a_graph() -> None:
    images = IMAGES.clone().requires_grad_()
    scaled = images * 2
    found = explain(small(), scaled)
    assert torch.equal(found.map, explain(small(), IMAGES * 2).map)
    scaled.sum().backward()  # the user's own graph is intact
    assert torch.equal(images.grad, torch.full_like(images, 2))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 0.003)], ids=str
)
def test_precisions(dtype: torch.dtype, tolerance: float) -> None:
    """Maps are float32 or better; in half precision they agree with float32 within its rounding."""
    expected = explain(small(), IMAGES, target=2)
    found = explain(small().to(dtype), IMAGES.to(dtype), target=2)
    assert found.map.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(layer.map.dtype == found.map.dtype for layer in found.layers)
    # On average: rounding may send a whole gradient through another pixel of a max pooling window.
    assert (found.map - expected.map).abs().mean() < tolerance
    torch.testing.assert_close(found.score.float(), expected.score, atol=tolerance, rtol=tolerance)


def test_float16_gradients_that_would_underflow_survive() -> None:
    """A gradient of 2^-29 is below float16; the scaled run keeps it and gives it back unscaled."""

    class Faint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.relu() * 2.0**-15 * 2.0**-10).sum((2, 3))

    images = torch.rand(1, 2, 4, 4).half() + 0.5
    found = trace(Faint(), images, target=0).taps[0].gradient
    assert found[0, 0].unique().tolist() == [2.0**-25]


def test_autocast() -> None:
    expected = explain(small(), IMAGES, target=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explain(small(), IMAGES, target=2)
        assert torch.is_autocast_enabled("cpu")
    assert found.map.dtype == torch.float32
    assert (found.map - expected.map).abs().mean() < 0.02


@pytest.mark.parametrize("how", ["whole", "in place", "part"])
def test_compiled_models_run_eagerly(how: str) -> None:
    model = small()
    expected = explain(model, IMAGES).map
    if how == "whole":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model[0] = torch.compile(model[0], backend="eager")
    model(IMAGES)  # compiled by now
    assert torch.equal(explain(model, IMAGES).map, expected)
    counter = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model(IMAGES)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counter  # still compiled, not again
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_in_place_activations_give_what_out_of_place_ones_give() -> None:
    one, other = explain(small(inplace=True), IMAGES), explain(small(inplace=False), IMAGES)
    assert torch.equal(one.map, other.map)
    assert torch.equal(one.completeness.bias, other.completeness.bias)


def test_every_sample_is_independent_of_its_neighbours() -> None:
    model = small().double()
    images = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    images[3] *= 100
    together = explain(model, images, target=[0, 1, 2, 3, 4])
    for sample in range(5):
        alone = explain(model, images[sample : sample + 1], target=sample)
        torch.testing.assert_close(together.map[sample], alone.map[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.weights[sample], alone.weights[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.completeness.bias[sample], alone.completeness.bias[0])


class Returns(nn.Module):
    """A network that wraps its logits."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.wrap = small(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.network(x))


def _hugging_face(logits: Tensor) -> Any:
    from transformers.modeling_outputs import ImageClassifierOutput

    return ImageClassifierOutput(loss=None, logits=logits)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, torch.zeros(3)),
        lambda logits: [torch.arange(2), logits],
        lambda logits: {"features": torch.arange(2), "logits": logits},
        lambda logits: {"out": logits},
        _hugging_face,
    ],
    ids=["tuple", "list", "logits", "dict", "hugging face"],
)
def test_structured_outputs(wrap: Callable[[Tensor], Any]) -> None:
    found, expected = explain(Returns(wrap), IMAGES), explain(small(), IMAGES)
    assert torch.equal(found.map, expected.map)
    assert torch.equal(found.output, expected.output)


def test_hugging_face_network_from_config() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    found = explain(ResNetForImageClassification(config).eval(), torch.randn(2, 3, 32, 32))
    assert found.output.shape == (2, 4)
    assert len(found.layers) == 7
    assert found.map.amax((1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, r"images must be a torch.Tensor of shape \(batch, channel, \*space\), but got int"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"floating point, but got torch.uint8.*\.float\(\) / 255"),
        (torch.zeros(4), r"shape \(batch, channel, \*space\).*got \(4,\)"),
        (torch.zeros(0, 3, 8, 8), r"at least one element, but got \(0, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN or infinite"),
        (torch.full((1, 3, 8, 8), float("inf")), "NaN or infinite"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), r"float64, the model's parameters torch.float32; use images.to"),
        (torch.zeros(1, 3, 8, 8, device="meta"), "images are on meta, the model is on cpu"),
    ],
)
def test_input_errors(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(small(), images)


def test_model_errors() -> None:
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, but got function"):
        explain(F.relu, IMAGES)  # type: ignore[arg-type]
    scripted = torch.jit.trace(small(), IMAGES)
    with pytest.raises(InputError, match="TorchScript"):
        explain(scripted, IMAGES)


class Outputs(nn.Module):
    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.output = output
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Any:
        return self.output(x.relu().mean((2, 3)) @ torch.ones(3, 4) + self.weight)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: y * float("nan"), "score of sample 0, 1 is NaN or infinite"),
        (lambda y: y / 0, "NaN or infinite"),
        (lambda y: torch.ones(2, 4, requires_grad=True) * 2, "ignores its input"),
        (lambda y: torch.ones(2, 4), "does not depend on the images"),
        (lambda y: y.detach(), "does not depend on the images"),
        (lambda y: y[:1], r"shape \(1, 4\) for 2 images"),
        (lambda y: y.sum(), r"shape \(\) for 2 images"),
        (lambda y: "cat", "returned str without"),
        (lambda y: {"a": 1}, "returned dict without"),
        (lambda y: None, "returned NoneType without"),
    ],
)
def test_output_errors(output: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        explain(Outputs(output), IMAGES)


def test_a_blank_map_is_announced() -> None:
    model = small()
    with torch.no_grad():
        model[-1].weight.zero_()
    with pytest.warns(UserWarning, match="map of image 0, 1 is blank"):
        found = explain(model, IMAGES, bias="none")
    assert not found.map.any()
    assert found.weights.isfinite().all()


def test_cam_object_runs_again_and_again() -> None:
    cam = IntegrativeCAM(small())
    assert torch.equal(cam(IMAGES).map, cam(IMAGES).map)


def test_an_infinite_feature_map_is_no_map() -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(torch.relu(x * 1e38 * 1e38)).mean((2, 3))

    with pytest.raises(OutputError, match="The map of image 1 is undefined: a feature map or its gradient holds inf"):
        explain(Overflowing(), torch.stack([torch.zeros(2, 4, 4), torch.ones(2, 4, 4)]), 0)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions take no notes before Python 3.11")
def test_an_error_of_the_network_notes_what_it_was_given() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        explain(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)), torch.ones(3, 9, 9))
    assert caught.value.__notes__ == ["The model was given (3, 9, 9), batch first: one image is image[None]."]


def test_a_network_with_its_preprocessing_is_not_the_module() -> None:
    network = SimpleNamespace(model=nn.Conv2d(3, 4, 3))
    with pytest.raises(InputError, match=r"but got SimpleNamespace\. Give its \.model\."):
        explain(network, IMAGES)  # type: ignore[arg-type]


def test_results_listed_image_by_image_need_a_callable() -> None:
    class Detector(nn.Module):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"boxes": each.mean() * torch.ones(7, 4)} for each in x]

    with pytest.raises(OutputError, match=r"shape \(7, 4\), \(7, 4\) for 2 images.* Give a callable on one image"):
        explain(Detector(), torch.ones(2, 3, 4, 4))


class Thresholded(nn.Module):
    """Labels whose probabilities are scaled apart below and above a threshold, which none exceeds on this image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        p = self.body(x).sigmoid()
        out = torch.zeros_like(p) + 0.5
        low, high = p < 0.99, p >= 0.99
        out[low] = p[low] / 1.98
        out[high] = 1 - (1 - p[high]) / 0.02
        return out


@pytest.mark.filterwarnings("ignore:The model's outputs")
def test_an_index_that_selects_nothing() -> None:
    """As of an X-ray without findings; explained as they are, as the warning says."""
    model = Thresholded().eval()
    found = explain(model, IMAGES)
    torch.testing.assert_close(found.score, model(IMAGES).detach().amax(1))
    assert found.map.amax() == 1
    with pytest.warns(UserWarning, match="outputs are probabilities, and the logits .* could not be followed"):
        explain(model, IMAGES)
