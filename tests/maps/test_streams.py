"""Networks of several inputs: whose the taps are, a map per input, and what came through each (method.md, Streams)."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from reference import streams as reference
from test_explanation import assert_equal
from torch import Tensor, nn

from integrative_cam import Explanation, IntegrativeCAM, Streams, explain, get_method, trace
from integrative_cam.errors import InputError, OutputError, TapError
from integrative_cam.recipe import OF_0_1_0

few = networks.examples(25)
any_fusion = given(networks.options(), st.sampled_from(networks.FUSIONS), st.booleans())


def fusing(option: networks.Options, fusion: str, odd: bool = False) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network and its inputs, the second one larger where the fusion allows for it."""
    model = networks.build(partial(networks.Fusing, fusion=fusion), option)
    generator = torch.Generator().manual_seed(option.seed + 3)
    space = (networks.ODD_SPACES if odd else networks.SPACES)[option.dims]
    larger = space if fusion in ("early", "sum") else tuple(2 * size for size in space)
    first, second = (networks.noise(generator, 2, networks.CHANNELS, *size) for size in (space, larger))
    return model, (first, second)


def mixed(option: networks.Options) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """A network of a picture, a signal and a vector, and its inputs."""
    generator = torch.Generator().manual_seed(option.seed + 3)
    picture, signal = (networks.noise(generator, 2, networks.CHANNELS, *space) for space in ((8, 6), (16,)))
    return networks.build(networks.Mixed, option), (picture, signal, networks.noise(generator, 2, 3))


def streams_of(found: Explanation) -> Streams:
    assert found.streams is not None
    return found.streams


def close(found: Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=tolerance)


@few
@any_fusion
@pytest.mark.filterwarnings("ignore:The map")
def test_the_score_is_what_came_through_each_stream_and_the_biases_behind(
    option: networks.Options, fusion: str, odd: bool
) -> None:
    model, inputs = fusing(option, fusion, odd)
    contrast, found = explain(model, inputs), explain(model, inputs, score="logit")
    streams = streams_of(contrast)
    close(streams.evidence.sum(1) + streams.shared, contrast.score, 1e-10)
    streams = streams_of(found)
    close(streams.evidence.sum(1) + streams.shared, found.score, 1e-10)
    assert found.target is not None
    expected = reference.evidence(model, inputs, found.target, ["first", "second"])
    close(streams.evidence, expected)
    close(streams.shared, reference.shared(model, inputs, found.target, ["fused", "hidden", "linear"]))
    close(streams.share, [reference.share(row) for row in streams.evidence.tolist()], 1e-12)
    close(streams.share, [reference.share(row) for row in expected], 1e-3)


@few
@given(networks.options())
@pytest.mark.filterwarnings("ignore:The map")
def test_three_streams_of_different_dimensions(option: networks.Options) -> None:
    model, inputs = mixed(option)
    found = explain(model, inputs, 1, score="logit")
    streams = streams_of(found)
    assert streams.names == ("picture", "signal", "vector")
    assert found.target is not None
    close(streams.evidence, reference.evidence(model, inputs, found.target, ["see", "hear", "read"]))
    close(streams.shared, reference.shared(model, inputs, found.target, ["linear"]))
    close(streams.evidence.sum(1) + streams.shared, found.score, 1e-10)
    assert [None if each is None else tuple(each.shape) for each in streams.maps] == [(2, 8, 6), (2, 16), None]
    assert streams.reached.tolist() == [[True, False, False]] * 2 + [[False, True, False]] * 2
    assert [layer.name.split(".")[0] for layer in found.layers] == ["see", "see", "hear", "hear"]
    assert torch.equal(found.map, streams.maps[0])
    assert torch.equal(found.weights, streams.weights[:, 0])
    assert not streams.weights[:, 2].any()


@few
@given(
    networks.options(),
    st.sampled_from(("early", "middle", "late")),
    st.sampled_from(
        [{}, {"bias": "none"}, {"bias": "residual"}, {"weighting": "average", "signed": False}, {"readout": "softmax"}]
    ),
)
@pytest.mark.filterwarnings("ignore:The map")
def test_a_streams_map_is_that_of_the_network_with_the_others_held_fixed(
    option: networks.Options, fusion: str, recipe: dict[str, Any]
) -> None:
    """Concatenation treats what is held fixed as it treats any value: the other input is no part of the network."""
    model, inputs = fusing(option, fusion)
    named = dict(zip(("first", "second"), inputs, strict=True))
    streams = streams_of(explain(model, inputs, 0, **recipe))
    for at, name in enumerate(named):
        alone = explain(reference.fixed(model, named, name), named[name], 0, **recipe)
        assert alone.streams is None
        found = streams.maps[at]
        assert found is not None
        close(found, alone.map, 1e-9)
        weights = streams.weights[:, at][:, streams.reached[:, at]]
        close(weights, alone.weights, 1e-9)
        assert not streams.weights[:, at][:, ~streams.reached[:, at]].any()


@few
@any_fusion
@pytest.mark.filterwarnings("ignore:The map")
def test_keywords_in_any_order_give_the_same_in_that_order(option: networks.Options, fusion: str, odd: bool) -> None:
    model, (first, second) = fusing(option, fusion, odd)
    forth = streams_of(explain(model, (first, second)))
    back = streams_of(explain(model, {"second": second, "first": first}))
    assert forth.names == ("first", "second")
    assert back.names == ("second", "first")
    for name in ("share", "evidence", "reached"):
        assert torch.equal(getattr(back, name), getattr(forth, name).flip(-1))
    assert torch.equal(back.weights, forth.weights.flip(1))
    assert_equal(back.maps, forth.maps[::-1])
    assert torch.equal(back.shared, forth.shared)


@pytest.mark.parametrize("fusion", networks.FUSIONS)
def test_which_taps_are_whose(fusion: str) -> None:
    model, inputs = fusing(networks.Options(seed=1), fusion)
    found = explain(model, inputs)
    reached = {
        layer.name.split(".")[0]: tuple(row)
        for layer, row in zip(found.layers, streams_of(found).reached.tolist(), strict=True)
    }
    own = {} if fusion == "early" else {"first": (True, False), "second": (False, True)}
    assert reached == own | ({} if fusion == "late" else {"fused": (True, True)})
    assert found.completeness.is_cut.tolist() == [
        both == (True, True) for both in map(tuple, streams_of(found).reached.tolist())
    ]


@pytest.mark.filterwarnings("ignore:The map")
def test_one_network_for_both_inputs_is_told_apart_by_its_calls() -> None:
    """A siamese network: one module, called twice."""

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.conv, self.relu, self.linear = nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            left, right = (self.relu(self.conv(each)).mean(2) for each in (left, right))
            return self.linear((left - right).abs())

    signal = torch.randn(2, 1, 9, generator=torch.Generator().manual_seed(0))
    found = explain(Siamese(), (signal, signal + 1))
    assert [layer.name for layer in found.layers] == ["relu", "relu#2"]
    assert streams_of(found).reached.tolist() == [[True, False], [False, True]]


class Hand(nn.Module):
    """relu(x + 1), relu(2 y - 1) and 3 v, pooled, added up with factors 1, -1, 1 and a last bias of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y, self.v = nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Linear(1, 1, bias=False)
        self.head = nn.Linear(3, 1)
        with torch.no_grad():
            for layer, weight, bias in ((self.x, 1.0, 1.0), (self.y, 2.0, -1.0)):
                layer.weight.fill_(weight)
                layer.bias.fill_(bias)
            self.v.weight.fill_(3)
            self.head.weight.copy_(torch.tensor([[1.0, -1.0, 1.0]]))
            self.head.bias.fill_(5)

    def forward(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        x, y = F.relu(self.x(x)).sum(2), F.relu(self.y(y)).sum((2, 3))
        return self.head(torch.cat([x, y, self.v(v)], 1))


def falling_readout(score: Tensor) -> Tensor:
    return (-score / 100).exp()


def test_by_hand() -> None:
    """x = 1, -2, 3 gives 2, 0, 4: 6. y = 1, 0 / 0, 1 gives 1, 0 / 0, 1: 2, against. v = 1 gives 3. 6 - 2 + 3 + 5."""
    inputs = (torch.tensor([[[1.0, -2, 3]]]), torch.tensor([[[[1.0, 0], [0, 1]]]]), torch.tensor([[1.0]]))
    with pytest.warns(UserWarning, match="The map of y of image 0 is blank"):
        found = explain(Hand(), inputs, **networks.AS_THEY_ARE)
    streams = streams_of(found)
    assert found.score.tolist() == [12]
    assert streams.evidence.tolist() == [[6, -2, 3]]
    assert streams.shared.tolist() == [5]
    close(streams.share, [[2 / 3, 0, 1 / 3]], 1e-6)
    first, second, third = streams.scaled_maps
    assert first is not None
    assert second is not None
    assert third is None
    assert first.amax() == 1
    assert not second.any()
    # Explained by exp(-S), what speaks against the score is evidence: of y alone. The score's parts stay as they are.
    with pytest.warns(UserWarning, match="The map of x of image 0 is blank"):
        falling = streams_of(explain(Hand(), inputs, readout=falling_readout, **networks.AS_THEY_ARE))
    assert falling.share.tolist() == [[0, 1, 0]]
    assert falling.evidence.tolist() == [[6, -2, 3]]
    assert falling.shared.tolist() == [5]
    # With y for the score as well: 6, 2 and 3, and a map of y a third as bright as that of x.
    model = Hand()
    with torch.no_grad():
        model.head.weight.fill_(1)
    streams = streams_of(explain(model, inputs, **networks.AS_THEY_ARE))
    close(streams.share, [[6 / 11, 2 / 11, 3 / 11]], 1e-6)
    assert [None if each is None else each.amax().item() for each in streams.maps] == [1, 1, None]
    first, second, _ = streams.scaled_maps
    assert first is not None
    assert second is not None
    assert (first.amax().item(), second.amax().item()) == pytest.approx((1, 1 / 3))


def test_no_evidence_for_the_target_is_shared_equally() -> None:
    class Against(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return -(x.relu() + y.relu()).sum(2)

    with pytest.warns(UserWarning, match=r"The map of [xy] of image 0 is blank"):
        streams = streams_of(explain(Against(), (torch.ones(1, 1, 4), torch.ones(1, 1, 4))))
    assert streams.evidence.tolist() == [[-4, -4]]
    assert streams.share.tolist() == [[0.5, 0.5]]


def test_a_stream_without_influence_has_no_share() -> None:
    """Where no stream has evidence for the target, those share equally that anything of the score came through."""

    class Against(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return -(x.relu() + 2 * y.relu()).sum(2) + 0 * z.relu().sum(2)

    with pytest.warns(UserWarning, match=r"is blank"):
        streams = streams_of(
            explain(Against(), (torch.ones(2, 1, 4), torch.tensor([[[1.0] * 4], [[0.0] * 4]]), torch.ones(2, 1, 4)))
        )
    assert streams.evidence.tolist() == [[-4, -8, 0], [-4, 0, 0]]
    assert streams.share.tolist() == [[0.5, 0.5, 0], [1, 0, 0]]


def test_a_smooth_branch_is_split_where_it_enters_the_fusion() -> None:
    """GELU leaves gradient times input incomplete, but not at the last own activation, behind which all is linear."""
    option = networks.Options(seed=4)
    model, inputs = mixed(option)
    for branch in (model.see, model.hear):
        branch[1][1] = nn.GELU()
    found = explain(model, inputs, 0, score="logit")
    assert found.target is not None
    expected = torch.tensor(reference.evidence(model, inputs, found.target, ["see", "hear", "read"]))
    close(streams_of(found).evidence, expected)
    assert ((streams_of(found).evidence.sum(1) + streams_of(found).shared - found.score).abs() < 1e-9).all()
    # Without an own tap the input stands in, and what GELU leaves is a remainder.
    elsewhere = explain(model, inputs, 0, taps="see.0*", score="logit")
    assert (streams_of(elsewhere).evidence - expected).abs().amax() > 1e-3
    torch.testing.assert_close(
        streams_of(elsewhere).evidence.sum(1) + streams_of(elsewhere).shared,
        elsewhere.score - elsewhere.completeness.remainder,
    )


@few
@any_fusion
@pytest.mark.filterwarnings("ignore:The map")
def test_shares_do_not_depend_on_the_choice_of_taps(option: networks.Options, fusion: str, odd: bool) -> None:
    model, inputs = fusing(option, fusion, odd)
    expected = streams_of(explain(model, inputs)).evidence
    for taps in ("last", "stages", lambda tap: tap.kind == "conv"):
        close(streams_of(explain(model, inputs, taps=taps)).evidence, expected, 1e-9)


def test_last_and_stages_are_each_inputs_own() -> None:
    for fusion, last, stages in (("late", 2, 4), ("middle", 1, 5)):
        model, inputs = fusing(networks.Options(seed=2, stride=2), fusion)
        assert len(explain(model, inputs, taps="last").layers) == last
        # Sizes 8x4 and 4x2 of the first, 16x8 and 8x4 of the second; behind the fusion 4x2, with as many channels.
        found = streams_of(explain(model, inputs, taps="stages"))
        assert found.weights.shape[2] == {"late": stages, "middle": 4}[fusion]
        assert found.reached.any(0).all()


def test_taps_of_one_input_leave_the_other_without_a_map() -> None:
    model, inputs = fusing(networks.Options(seed=3), "late")
    found = explain(model, inputs, taps=["second.*"])
    first, second = streams_of(found).maps
    assert first is None
    assert second is not None
    assert torch.equal(found.map, second)
    close(streams_of(found).evidence, streams_of(explain(model, inputs)).evidence, 1e-9)
    assert len(explain(model, inputs, taps=["first.1*", "second.0*"]).layers) == 2
    with pytest.raises(TapError, match=r"taps='third.\*' matches no feature map"):
        explain(model, inputs, taps=["first.*", "third.*"])


class Passing(nn.Module):
    """Takes anything: pictures without a channel axis, an index, a value per sample; overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.embedding, self.linear = nn.Conv2d(1, 3, 3), nn.Embedding(7, 3), nn.Linear(4, 2)

    def forward(self, picture: Tensor, *more: Tensor) -> Tensor:
        index, age = more[:2]
        for each in (picture, age, index):
            each.mul_(2)
        seen = F.relu(self.conv(picture[:, None])).mean((2, 3)) + self.embedding(index)
        return self.linear(torch.cat([seen, age[:, None]], 1))


def test_other_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    picture, age, unused = torch.rand(2, 6, 6, generator=generator), torch.tensor([1.0, 2.0]), torch.ones(2, 1, 5)
    index = torch.tensor([3, 1])
    given = [picture, index, age, unused]
    before = [each.clone() for each in given]
    model = Passing()
    found = explain(model, given, 0, score="logit")
    assert_equal(tuple(given), tuple(before))
    streams = streams_of(found)
    assert streams.names == ("picture", "more[1]", "more[2]")
    assert [each is None for each in streams.maps] == [False, True, True]
    assert found.map.shape == (2, 6, 6)
    close(streams.evidence[:, 1], model.linear.weight[0, 3].detach() * 2 * age, 1e-6)
    assert not streams.evidence[:, 2].any()
    assert streams.reached.tolist() == [[True, False, False]]


@pytest.mark.parametrize("given", [tuple, list, dict])
def test_inputs_together_in_one_argument(given: type) -> None:
    """A network that takes a batch as one tuple, list or dict, which it gets as given and may empty."""
    inner, inputs = fusing(networks.Options(seed=7), "middle")

    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, batch: Any) -> Tensor:
            assert type(batch) is given
            first, second = batch.values() if given is dict else batch
            scores = self.inner(first, second)
            if given is not tuple:
                batch.clear()
            return scores

    names = ("first", "second")
    images = given(zip(names, inputs, strict=True)) if given is dict else given(inputs)
    expected, found = explain(inner, inputs, 0), explain(Together(), images, 0)
    assert streams_of(found).names == (names if given is dict else ("batch[0]", "batch[1]"))
    assert len(images) == 2
    assert torch.equal(streams_of(found).evidence, streams_of(expected).evidence)
    assert_equal(streams_of(found).maps, streams_of(expected).maps)


def test_list_of_taps() -> None:
    model, inputs = mixed(networks.Options(seed=8))
    kinds = [(tap.name.split(".")[0], tap.kind, len(tap.shape)) for tap in IntegrativeCAM(model).taps(inputs)]
    assert kinds == [("see", "activation", 3)] * 2 + [("hear", "activation", 2)] * 2
    named = dict(zip(("picture", "signal", "vector"), inputs, strict=True))
    assert IntegrativeCAM(model).taps(named) == IntegrativeCAM(model).taps(inputs)
    last = IntegrativeCAM(model, taps="last").taps(inputs)
    assert [tap.name.split(".")[0] for tap in last] == ["see", "hear"]


def test_one_floating_point_input_is_as_ever() -> None:
    option = networks.Options(seed=5, norm="affine", stride=2)
    model, images = networks.build("resnet", option), networks.images(option)
    expected = explain(model, images)
    assert expected.streams is None
    assert_equal(explain(model, (images,)), expected)
    assert_equal(explain(model, [images]), expected)
    assert_equal(explain(model, {"input": images}), expected)


def test_the_map_is_that_of_the_first_input_that_has_one() -> None:
    model, (picture, signal, vector) = mixed(networks.Options(seed=6))
    given = {"vector": vector, "signal": signal, "picture": picture}
    found = explain(model, given, gamma=0.85)
    assert torch.equal(found.map, streams_of(found).maps[1])
    assert trace(model, given).main_input.name == "signal"
    positive = found.signed_map.relu()
    close((positive / positive.amax(1, keepdim=True)) ** 0.85, found.map)


def test_round_trip(tmp_path: Path) -> None:
    model, inputs = mixed(networks.Options(seed=6))
    saved = IntegrativeCAM(model)(inputs)
    assert_equal(saved, Explanation.load(saved.save(tmp_path / "e")))
    assert streams_of(saved).maps[2] is None


ONES = torch.ones(2, networks.CHANNELS, 8, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((ONES, 3), r"images\[1\] must be a torch.Tensor, but got int"),
        ({"first": ONES, "second": None}, r"images\['second'\] must be a torch.Tensor, but got NoneType"),
        ((), "at least one tensor, but got an empty tuple"),
        ({}, "at least one tensor, but got an empty dict"),
        ((ONES.long(), ONES.bool()), "at least one floating-point tensor, but got torch.int64, torch.bool"),
        ((ONES, ONES[:1]), r"same batch size.*images\[0\] 2, images\[1\] 1"),
        ({"first": ONES, "third": ONES}, r"forward\(first.*second.*dict keyword arguments"),
        ((ONES,), r"forward\(first.*missing a required argument: 'second'"),
        ((ONES, ONES, ONES), r"too many positional arguments"),
        ((ONES, ONES.float()), r"images\[1\] is torch.float32.*use images\[1\].to\(torch.float64\)"),
        ((ONES, ONES.to("meta")), r"images\[1\] is on meta, the model is on cpu"),
        ((ONES, ONES * float("nan")), r"images\[1\] holds NaN or infinite"),
        ((ONES, ONES.new_ones(())), r"images\[1\] must have shape \(batch, ...\) with at least one element.*\(\)"),
    ],
)
def test_input_errors(inputs: Any, message: str) -> None:
    model, _ = fusing(networks.Options(), "middle")
    with pytest.raises(InputError, match=message):
        explain(model, inputs)


def test_output_and_method_errors() -> None:
    class Deaf(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.ones(2, 3, requires_grad=True) * 2

    with pytest.raises(OutputError, match="ignores its input"):
        explain(Deaf(), (ONES, ONES))
    model, inputs = fusing(networks.Options(), "middle")
    for name in ("scorecam", "fullgrad", "winsorcam", "random"):
        with pytest.raises(InputError, match=f"one tensor for {name}, but got a tuple"):
            get_method(name)(model, inputs)
    assert get_method("gradcam")(model, inputs).streams is not None


def test_path_shares_are_each_inputs_own() -> None:
    """One path for x, past a tap of its own and a shared one; two for y, one of which goes around its own tap."""

    class Around(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x.relu(), y + y.relu()], 1).relu().sum(2)

    first, second = trace(Around(), (ONES[:, :, 0], ONES[:, :, 0])).inputs
    assert [float(each) for each in first.path_shares] == [1, 0, 1]
    assert [float(each) for each in second.path_shares] == [0, 0.5, 1]
    found = explain(Around(), (ONES[:, :, 0], ONES[:, :, 0]), **OF_0_1_0)
    assert found.completeness.is_cut.tolist() == [False, False, True]
    assert streams_of(found).reached.tolist() == [[True, False], [False, True], [True, True]]
    # y's own tap is no cut, so that its evidence is taken at the input: all of it, 2 for each entry of the sum.
    close(streams_of(found).evidence, [[4, 0], [4, 0]] if found.target.tolist() == [0, 0] else [[0, 8], [0, 8]])


def example(name: str) -> ModuleType:
    """A file of examples/ as a module."""
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"examples_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["early", "middle", "late"])
def test_the_share_names_the_stream_that_the_class_was_read_from(kind: str) -> None:
    """Networks trained on data where that is known; over two of them, since one may lean on either stream."""
    two_streams = example("two_streams")
    results = [
        two_streams.measured(two_streams.trained(kind, seed), two_streams.make(kind, 300, 90)) for seed in (0, 1)
    ]
    assert min(each.accuracy for each in results) > 0.95
    named, other, pointing = (
        torch.cat([getattr(each, name) for each in results]).double().mean() for name in ("named", "other", "pointing")
    )
    assert named >= 0.95
    # Of the two maps on their common scale, mean over pixels, what lies in the other picture.
    assert other < 0.1
    assert pointing > 0.9
