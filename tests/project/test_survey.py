"""Networks of the libraries, no layer named; and a survey that notices what is wrong."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from survey.__main__ import counts, isolated, run_survey
from survey.checks import OK, Surveyed, checks, failed, noise, prepare, survey
from survey.families import names
from torch import Tensor, nn

TINY = {
    "timm/test_vit": {(10, 10)},
    "timm/test_vit_relpos": {(10, 10)},
    "timm/test_efficientnet_ln": {(80, 80), (40, 40), (20, 20), (10, 10), (5, 5)},
    "timm/test_convnext": {(40, 40), (20, 20), (10, 10), (5, 5)},
    "timm/test_byobnet": {(80, 80), (40, 40), (20, 20), (10, 10), (5, 5)},
    "timm/test_nfnet": {(80, 80), (40, 40), (20, 20), (10, 10), (5, 5)},
    "timm/test_maxvit": {(80, 80), (40, 40), (20, 20), (10, 10), (5, 5)},
    "torchvision/squeezenet1_1": {(111, 111), (55, 55), (27, 27), (13, 13)},
    "torchvision/shufflenet_v2_x0_5": {(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)},
    "torchvision/mobilenet_v3_small": {(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)},
}


@pytest.mark.parametrize("name", TINY)
def test_networks_of_every_kind(name: str) -> None:
    library, _, short = name.partition("/")
    if library == "timm" and short not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {short}")
    found = survey(name)
    assert (found.verdict, set(found.resolutions)) == (OK, TINY[name])


def test_swins_windows_are_folded_back() -> None:
    """Four stages, halving from a quarter of the input: the windows' 7 x 7 never show."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.swin_transformer.SwinTransformer(
        [4, 4], 8, [1, 1, 1, 1], [1, 2, 4, 8], [7, 7], num_classes=4
    )
    from integrative_cam import IntegrativeCAM

    shapes = [tap.shape for tap in IntegrativeCAM(model).taps(noise((3, 96, 160), 0))]
    assert shapes == [(32, 24, 40), (64, 12, 20), (128, 6, 10), (256, 3, 5)]


class Wrong(nn.Module):
    """A network with something wrong: what it adds to its features, and does to itself."""

    def __init__(self, spoil) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(1))
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(self, x)


def _features(m: Wrong, x: Tensor) -> Tensor:
    return m.relu(m.conv(x))


@pytest.mark.parametrize(
    ("spoil", "verdict"),
    [
        (lambda m, x: m.linear(_features(m, x).mean((2, 3))), "ok"),
        (lambda m, x: m.linear(_features(m, 0 * x + 1).mean((2, 3))), "deaf to the image"),
        (lambda m, x: _features(m, x).mean((1, 2, 3))[:, None] + torch.arange(4.0), "deaf to the target"),
        (lambda m, x: m.linear(_features(m, x)[:, :, 0, :1].mean(2)), "a single spot"),
        (lambda m, x: 0 * _features(m, x).sum((1, 2, 3))[:, None] - torch.arange(4.0), "blank"),
    ],
)
def test_verdicts(spoil, verdict: str) -> None:
    """Exactly what is wrong, and what follows from it, is said."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = checks(Wrong(spoil).eval(), noise((3, 64, 64), 0), noise((3, 64, 64), 1))
    assert verdict in found.split("; ")


def test_a_model_that_is_changed_is_noticed() -> None:
    model = Wrong(lambda m, x: m.linear(_features(m, x).mean((2, 3)))).eval()
    calls = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) == 2:
                self.inner.linear.register_forward_hook(lambda *_: None)
            return self.inner(x)

    found, _ = checks(Counting().eval(), noise((3, 64, 64), 0), noise((3, 64, 64), 1))
    assert found == "the model was changed"


def test_preparation_draws_what_starts_constant_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[4].weight)
    model.register_parameter("gamma", nn.Parameter(torch.full((5,), 1e-6)))
    drawn = model[0].weight.clone()
    images = torch.cat([noise((3, 8, 8), 0), noise((3, 8, 8), 1)])
    prepare(model, images, 0)
    assert torch.equal(model[0].weight, drawn)
    assert not model.training
    assert model[1].momentum == 0.1
    assert ((model[1].weight >= 0.5) & (model[1].weight <= 1.5)).all()
    assert ((model.gamma >= 0.05) & (model.gamma <= 0.15)).all()
    assert model[4].weight.std() > 0.05
    normalised = (model[0](images) - model[1].running_mean[:, None, None]) / model[1].running_var.sqrt()[:, None, None]
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)


def test_families_of_timm_are_more_than_150_and_found_by_registry() -> None:
    import timm
    from survey.families import _timm_family

    families = {_timm_family(name) for name in timm.list_models() if not name.startswith("test_")}
    assert len(families) > 150
    assert ("byobnet", "gernet") in families


def test_the_smallest_of_a_family_is_taken() -> None:
    """convnext_zepto_rms, 2.2 M, of 24 ConvNeXts; ConvNeXt V2 is another family."""
    assert names("timm", "convnext*") == ["timm/convnext_zepto_rms", "timm/convnextv2_atto"]
    assert names("torchvision", "squeezenet*") == ["torchvision/squeezenet1_1", "torchvision/squeezenet1_0"]


def test_a_failure_is_a_row_and_does_not_stop_the_others() -> None:
    rows = {row.name: row for row in isolated(["timm/no_such_network", "timm/test_vit"], 0, 2)}
    assert "is not known" in rows["timm/no_such_network"].verdict
    assert rows["timm/test_vit"].ok
    assert counts(list(rows.values())) == "timm: 1 of 2 ok; of the convolutional ones 0 of 0."


def test_the_command(tmp_path) -> None:
    out = tmp_path / "table.md"
    assert run_survey("timm", "test_vit", 0, out, 1) == 0
    text = out.read_text()
    assert re.search(r"\| timm/test_vit \| 0\.4 M \| 3x160x160 \| 6 \| 10x10 \| [\d.]+ \| ok \|", text)
    assert "timm: 1 of 1 ok" in text
    assert f"torch {torch.__version__}" in text


def test_rows_say_what_failed() -> None:
    row = failed("timm/x", "its process died with code -9")
    assert row.row()["verdict"] == "its process died with code -9"
    good = Surveyed("timm/y", 1_500_000, (3, 8, 8), True, 2, ((8, 8), (4, 4)), 1.234, OK)
    assert list(good.row().values()) == ["timm/y", "1.5 M", "3x8x8", "2", "8x8, 4x4", "1.23", "ok"]
    assert counts([row, good]) == "timm: 1 of 2 ok; of the convolutional ones 1 of 1."
