"""Maps of networks that move, fold and turn what they look at lie at the evidence; and the judge of that is fair."""

import itertools
from functools import cache

import pytest
import torch
from moved.judge import Truth, fault
from moved.networks import Composition, compose
from moved.reference import reference_maps
from moved.trial import WRONG, rejudged, tried

SAMPLE = range(60)


@cache
def composition(seed: int) -> Composition:
    return compose(seed)


@cache
def reference(seed: int) -> list[torch.Tensor]:
    return reference_maps(composition(seed))


def test_a_map_needs_its_energy_its_maximum_and_its_centre_at_the_evidence():
    evidence = torch.zeros(1, 24, 24, dtype=torch.bool)
    evidence[0, 4:7, 15:18] = True
    truth = Truth(evidence, (2, 2), (1.5, 1.5))
    right = torch.zeros(1, 24, 24)
    right[0, 3:8, 14:19] = 1
    assert fault(right, truth) == ""
    assert "instead of" in fault(right[:, :, :-1], truth)
    assert "blank" in fault(0 * right, truth)
    assert "0%" in fault(right.flip(-1), truth)
    assert "0%" in fault(right.mT, truth)
    assert "centre off" in fault(right * (torch.arange(24) > 17), truth)
    assert fault(right + 0.004, truth) == "", "91 % of it is in the zone of 7 x 7 pixels"
    assert "within" in fault(right + 0.02, truth), "68 % of it is in the zone"
    elsewhere = torch.zeros(1, 24, 24)
    elsewhere[0, 18, 3] = 0.5
    assert "second place 0.50" in fault(right + elsewhere, truth)


def test_each_sample_and_each_frame_is_judged():
    evidence = torch.zeros(2, 3, 16, dtype=torch.bool)
    evidence[0, 0, 3:6] = evidence[1, 2, 10:13] = True
    truth = Truth(evidence, (0, 2), (0.25, 1))
    assert fault(evidence.float(), truth) == ""
    assert "sample 0" in fault(evidence.float().flip(0), truth)
    assert "sample 0" in fault(evidence.float().mean(1, keepdim=True).expand(-1, 3, -1), truth)


@pytest.mark.parametrize("seed", [seed for seed in range(12) if composition(seed).has_places])
def test_reference_maps_are_right_and_all_moved_ones_are_wrong(seed):
    """The judge is fair: a map exists that it calls right; and it is strict."""
    for values, truth in zip(reference(seed), composition(seed).truths, strict=True):
        assert fault(values, truth) == ""
        located = [axis for axis, zone in enumerate(truth.zone) if 0 < zone < float("inf")]
        for axes in itertools.chain.from_iterable(
            itertools.combinations(located, n) for n in range(1, 1 + len(located))
        ):
            assert fault(values.flip([1 + axis for axis in axes]), truth)
        for axis in located:
            by = 1 + int(2 * truth.shift[axis])
            assert fault(values.roll(by, 1 + axis), truth)
            assert fault(values.roll(-by, 1 + axis), truth)
            assert fault(values + values.flip(1 + axis), truth)
            assert fault(values.mean(1 + axis, keepdim=True).expand_as(values), truth)
        for first, second in itertools.combinations(located, 2):
            assert fault(values.transpose(1 + first, 1 + second), truth)


@pytest.mark.parametrize("seed", [seed for seed in range(12) if composition(seed).has_places])
def test_all_of_a_score_is_caused_by_the_evidence(seed):
    drawn = composition(seed)
    with torch.no_grad():
        score = drawn.model(*drawn.inputs)[:, drawn.target]
        dark = drawn.model(*(each * (each < 1) for each in drawn.inputs))[:, drawn.target]
    assert (score > 0.01).all()
    assert dark.abs().max() < 1e-4 * score.min()
    for images, truth in zip(drawn.inputs, drawn.truths, strict=True):
        bright = images == 1 if drawn.channel_axis is None else (images == 1).any(drawn.channel_axis)
        assert not (truth.evidence & ~bright).any()
        assert truth.evidence.flatten(1).any(1).all()


def test_a_seed_is_one_network():
    first, second = compose(5), compose(5)
    assert first.recipe == second.recipe
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))
    assert all(map(torch.equal, first.inputs, second.inputs))


def test_networks_that_move_nothing_are_right():
    assert [trial for trial in (tried(seed, moves=0) for seed in range(30)) if trial.verdict != "right"] == []


@pytest.mark.slow
def test_no_map_is_silently_wrong():
    trials = [tried(seed) for seed in SAMPLE]
    assert not [trial for trial in map(rejudged, trials) if trial.verdict in WRONG]
    assert sum(trial.verdict == "right" for trial in trials) >= 0.85 * len(trials)
