"""Gradients averaged over regions, trust in fine layers, and scores of contrast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import regional as reference
from torch import Tensor, nn

from integrative_cam import Recipe, explain, explain_trace, targets, trace
from integrative_cam._maps.regional import averaged_over_regions, calmed, coherence
from integrative_cam.errors import RecipeError


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("space", [(7,), (16,), (5, 9), (12, 4), (6, 5, 4)])
@pytest.mark.parametrize("regions", [1, 2, 3, 4, 5])
def test_averages_are_the_slow_ones(space: tuple[int, ...], regions: int) -> None:
    gradient = drawn(2, 3, *space)
    found = averaged_over_regions(gradient, regions)
    for sample in range(2):
        np.testing.assert_allclose(
            found[sample], reference.averaged_over_regions(gradient[sample].numpy(), regions), atol=1e-12
        )


def test_one_region_is_the_mean_and_enough_regions_change_nothing() -> None:
    """The weight of a channel in Grad-CAM, and the gradient of LayerCAM."""
    gradient = drawn(2, 3, 6, 5)
    mean = gradient.mean((2, 3), keepdim=True).expand_as(gradient)
    torch.testing.assert_close(averaged_over_regions(gradient, 1), mean)
    assert averaged_over_regions(gradient, 6) is gradient


def test_averages_by_hand() -> None:
    gradient = torch.tensor([[[1.0, 3.0, 5.0, 7.0]]])
    # Means 2 and 6 at the places 1/4 and 3/4; the positions' centres are 1/8, 3/8, 5/8, 7/8.
    assert averaged_over_regions(gradient, 2).tolist() == [[[2, 3, 5, 6]]]
    # Evidence is averaged over twice as many.
    assert torch.equal(calmed(gradient[0], 1), averaged_over_regions(gradient, 2)[0])
    assert torch.equal(calmed(gradient[0], 2), gradient[0])
    assert torch.equal(calmed(gradient[0], None), gradient[0])


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ((14, 14), 1),
        ((7, 7), 1),
        ((56, 56), 0.5),
        ((28, 112), 0.5),
        ((56,), 1),
        ((784,), 0.5),
        ((1, 784), 0.5),
        ((), 1),
    ],
)
def test_coherence_by_hand(space: tuple[int, ...], expected: float) -> None:
    assert coherence(space, 14) == pytest.approx(expected)
    assert coherence(space, None) == 1


def test_a_signal_has_the_same_map_as_an_image_of_one_row() -> None:
    torch.manual_seed(0)
    convs = nn.Conv1d(1, 4, 5, padding=2), nn.Conv1d(4, 4, 5, padding=2)
    flat = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    rows = [nn.Conv2d(conv.in_channels, 4, (1, 5), padding=(0, 2)) for conv in convs]
    for row, conv in zip(rows, convs, strict=True):
        row.weight.data, row.bias.data = conv.weight.data[:, :, None], conv.bias.data  # type: ignore[union-attr]
    wide = nn.Sequential(rows[0], nn.ReLU(), rows[1], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    signal = drawn(2, 1, 400)
    found, expected = explain(wide.double(), signal[:, :, None], 1), explain(flat.double(), signal, 1)
    for layer, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(layer.map[:, 0], other.map)


def test_a_constant_activation_carries_no_evidence() -> None:
    """The first channel is 1 everywhere: only the second says where."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([1.0, 0.0]))
        model[4].weight.copy_(torch.tensor([[5.0, 1.0], [0.0, 0.0]]))
        model[4].bias.zero_()
    images = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    images[0, 0, 2:4, 5:7] = 1
    found = explain(model.eval(), images, 0, bias="none")
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4, 5:7] = True
    assert (found.map[0] > 0).equal(inside)
    assert (explain(model, images, 0, recipe=Recipe(centred=False, bias="none")).map[0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rounding_of_constant_activations_is_no_map(dtype: torch.dtype) -> None:
    """An image of one colour in a network without padding: of what is left without the mean, nothing may be made."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).to(dtype).eval()
    for target in range(4):
        with pytest.warns(UserWarning, match="is blank: no layer holds evidence for its target"):
            found = explain(model, torch.full((1, 3, 16, 16), 0.3, dtype=dtype), target, bias="none")
        assert not found.map.any()
        assert not any(layer.map.any() for layer in found.layers)


class TestContrast:
    logits = torch.tensor([[2.0, 0.0, -2.0], [1.0, 3.0, 1.0]], dtype=torch.float64)

    def test_by_hand(self) -> None:
        scored = targets.against_rivals(targets.score(self.logits, [0, 1], 2))
        # Rivals 0 and -2 weigh e^0 and e^-1; two equal ones 1/2 each.
        first = 2 - 0.8 * (-2 * math.exp(-1) / (1 + math.exp(-1)))
        assert scored.score.tolist() == pytest.approx([first, 3 - 0.8])
        assert scored.contrast

    def test_weights_are_constants(self) -> None:
        logits = self.logits.clone().requires_grad_()
        scored = targets.against_rivals(targets.score(logits, 0, 2))
        (gradient,) = torch.autograd.grad(scored.score.sum(), logits)
        # The score is linear in the logits.
        assert (gradient * self.logits).sum(1).tolist() == pytest.approx(scored.score.tolist())
        assert gradient[1].tolist() == pytest.approx([1, -0.8 * math.e / (1 + math.e), -0.8 / (1 + math.e)])

    def test_a_class_beside_a_callable_is_explained_as_alone(self) -> None:
        model, images = network(nn.Identity()), drawn(2, 1, 8, 8)
        both = explain(model, images, [lambda output: output[0], 2])
        torch.testing.assert_close(both.score[1], explain(model, images, 2).score[1])
        torch.testing.assert_close(both.map[1], explain(model, images, 2).map[1])
        torch.testing.assert_close(both.score[0], model(images)[0, 0])

    def test_an_impossible_class_is_no_rival(self) -> None:
        logits = torch.tensor([[1.0, -torch.inf, 0.5]])
        assert targets.against_rivals(targets.score(logits, 0, 1)).score.tolist() == pytest.approx([1 - 0.4])

    @pytest.mark.parametrize("target", [0, lambda output: output[0]])
    def test_callables_and_single_classes_keep_their_score(self, target: object) -> None:
        logits = self.logits[:, :1] if target == 0 else self.logits
        scored = targets.score(logits, target, 2)  # type: ignore[arg-type]
        assert targets.against_rivals(scored) is scored

    def test_half_precision_is_widened(self) -> None:
        scored = targets.against_rivals(targets.score(self.logits.half(), 0, 2))
        assert scored.score.dtype == torch.float32


def network(ending: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), ending).double().eval()


def test_the_score_splits_exactly() -> None:
    found = explain(network(nn.Identity()), drawn(2, 1, 8, 8))
    parts = found.completeness
    torch.testing.assert_close(parts.input + parts.bias, found.score)
    torch.testing.assert_close(parts.activation + parts.tap_bias, found.score[:, None].expand(-1, 2))


def test_labels_of_a_sigmoid_are_no_rivals() -> None:
    images = drawn(2, 1, 8, 8)
    labels, classes = network(nn.Sigmoid()), network(nn.Softmax(1))
    assert explain(labels, images, 1).score.equal(explain(labels, images, 1, score="logit").score)
    assert explain(labels, images, 1).recipe == Recipe(score="logit")
    assert not explain(classes, images, 1).score.equal(explain(classes, images, 1, score="logit").score)


def test_a_trace_keeps_its_score() -> None:
    model, images = network(nn.Identity()), drawn(2, 1, 8, 8)
    of_logit = explain_trace(trace(model, images, 1), Recipe())
    assert of_logit.recipe == Recipe(score="logit")
    assert of_logit.map.equal(explain(model, images, 1, score="logit").map)
    of_contrast = explain_trace(trace(model, images, 1, contrast=True), Recipe())
    assert of_contrast.map.equal(explain(model, images, 1).map)


@pytest.mark.parametrize("regions", [0, -1, 2.5, "many"])
def test_regions_are_checked(regions: object) -> None:
    with pytest.raises(RecipeError, match="regions must be an integer of at least 1, or None"):
        explain(network(nn.Identity()), drawn(1, 1, 8, 8), regions=regions)
