"""Networks that end in a softmax or sigmoid are explained at the logits that entered it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from integrative_cam import IntegrativeCAM, explain, get_method, targets
from integrative_cam.evaluate._probabilities import class_logits

torch.manual_seed(0)
NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
IMAGES = torch.rand(3, 1, 8, 8)
LOGITS = NET(IMAGES).detach()


class Ending(nn.Module):
    """The network with an end."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.end = NET, end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.net(x))


def cut(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_(1e-6, 1 - 1e-6)


ENDS: dict[str, Callable[[Tensor], Any]] = {
    "function": lambda x: F.softmax(x, 1),
    "method": lambda x: x.softmax(-1),
    "module": nn.Softmax(1),
    "log": lambda x: x.log_softmax(1),
    "log of softmax": lambda x: x.softmax(1).log(),
    "sigmoid": torch.sigmoid,
    "sigmoid in place": lambda x: (x + 0).sigmoid_(),
    "operator": lambda x: torch.ops.aten._softmax.default(x, 1, False),
    "clip": lambda x: cut(x.softmax(1)),
    "cast": lambda x: x.double().softmax(1).float(),
    "shape": lambda x: x.reshape(-1, 3, 1, 1).softmax(1).squeeze(-1).flatten(1),
    "dropout": lambda x: F.dropout(x.sigmoid(), 0.5, training=False),
    "pair": lambda x: (x.softmax(1), x),
    "with the best": lambda x: {"probabilities": x.softmax(1), "best": x.softmax(1).argmax(1)},
    "gated before": lambda x: (x * torch.ones_like(x[:, :1]).sigmoid() * 0 + x).softmax(1),
}


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("end", ENDS)
def test_the_map_is_that_of_the_logits(end: str) -> None:
    model, cam = Ending(ENDS[end]), IntegrativeCAM(Ending(ENDS[end]))
    # Labels are explained at their logits, classes by their contrast.
    score = "logit" if end in ("sigmoid", "sigmoid in place", "dropout") else "contrast"
    for target in (None, 1, [2, 0, 1]):
        expected = explain(NET, IMAGES, target, score=score)
        for found in (explain(model, IMAGES, target), cam(IMAGES, target), cam(IMAGES, target)):
            torch.testing.assert_close(found.score, expected.score)
            torch.testing.assert_close(found.map, expected.map)
            torch.testing.assert_close(found.output, LOGITS)
            assert found.target.tolist() == expected.target.tolist()


@pytest.mark.filterwarnings("ignore:The map")
@pytest.mark.parametrize("end", ["function", "pair", "with the best"])
def test_targets_of_logits_read_the_logits_and_others_what_is_returned(end: str) -> None:
    model = Ending(ENDS[end])
    p = LOGITS.softmax(1)
    expected = {
        targets.probability(1): p[:, 1],
        targets.contrast(1, 2): LOGITS[:, 1] - LOGITS[:, 2],
        targets.contrast(1, "rest"): p[:, 1].logit(),
    }
    if end == "function":
        expected |= {targets.log_odds(1): p[:, 1].logit(), targets.value(1): p[:, 1], (lambda out: out[1]): p[:, 1]}
    for target, score in expected.items():
        torch.testing.assert_close(explain(model, IMAGES, target).score, score)


def test_a_certain_network_has_a_map() -> None:
    """The gradient of its probability is 0, and that is what is said of it."""
    model = Ending(lambda x: (x * 1e4).softmax(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(model, IMAGES, score="logit")
    torch.testing.assert_close(found.score, 1e4 * LOGITS.amax(1))
    top = int(LOGITS[0].argmax())
    with pytest.warns(UserWarning, match="image 0 is blank: the gradient of its score is 0 in every layer.*saturated"):
        explain(model, IMAGES[:1], lambda output: output[top])


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        lambda x: torch.cat([p := x[:, :1].sigmoid(), 1 - p], 1),
        lambda x: torch.where(x.sigmoid() < 0.4, x.sigmoid() / 2, x.sigmoid() ** 2),
    ],
    ids=["by hand", "cat", "thresholds"],
)
def test_where_the_logits_are_not_known_a_warning_says_so(end: Callable[[Tensor], Tensor]) -> None:
    with pytest.warns(UserWarning, match="outputs are probabilities, and the logits .* could not be followed"):
        found = explain(Ending(end), IMAGES, 0, score="logit")
    torch.testing.assert_close(found.score, end(LOGITS)[:, 0])


@pytest.mark.filterwarnings("error::UserWarning")
def test_gates_and_attention_are_no_probabilities() -> None:
    """What a layer uses is forgotten, also where the scores lie between 0 and 1."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.conv, self.gate, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu()
            x = x * self.gate(x.mean((2, 3))).sigmoid()[..., None, None]
            tokens = x.flatten(2).transpose(1, 2)
            tokens = F.dropout((tokens @ tokens.mT).softmax(-1), 0.1, training=False) @ tokens
            return self.head(tokens.mean(1)) / 100 + 0.3

    assert explain(Gated(), IMAGES, score="logit").score.tolist() == Gated()(IMAGES).amax(1).tolist()


@pytest.mark.filterwarnings("ignore:The map")
def test_ablation_reads_the_logits_too() -> None:
    found, expected = (get_method("ablationcam")(model, IMAGES, 1) for model in (Ending(nn.Softmax(1)), NET))
    torch.testing.assert_close(found.map, expected.map)


@pytest.mark.parametrize(
    ("end", "made_by"),
    [("function", "softmax"), ("pair", "softmax"), ("with the best", "softmax"), ("sigmoid", "sigmoid")],
)
def test_evaluation_reads_the_same_logits(end: str, made_by: str) -> None:
    logits, kind = class_logits(Ending(ENDS[end]), IMAGES)
    torch.testing.assert_close(logits, LOGITS, check_dtype=False)
    assert kind == made_by
    assert class_logits(NET, IMAGES)[1] is None
