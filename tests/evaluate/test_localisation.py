"""Maps against masks: by hand, against the twins, and what must always hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples
from reference import metrics as reference
from torch import Tensor

from integrative_cam.errors import InputError
from integrative_cam.evaluate import (
    best_iou,
    box_hits,
    centre_map,
    energy,
    mask_of_boxes,
    max_box_accuracy,
    order,
    pointing,
    random_maps,
    top_share,
)

few = examples(40)
MEASURES: dict[str, Callable[..., Tensor]] = {
    "pointing": pointing,
    "energy": energy,
    "top_share": top_share,
    "best_iou": best_iou,
}
MAP = torch.tensor([[[0, 1, 2, 0], [0, 4, 3, 0]]]).double()
LEFT = torch.tensor([[[True, True, False, False], [True, True, False, False]]])


def test_by_hand() -> None:
    assert pointing(MAP, LEFT).tolist() == [1]
    assert pointing(MAP, ~LEFT).tolist() == [0]
    # 1 + 4 of 10.
    assert energy(MAP, LEFT).tolist() == [0.5]
    # The two highest, 4 and 3, lie on either side; the highest on the left.
    assert top_share(MAP, LEFT, 0.25).tolist() == [0.5]
    assert top_share(MAP, LEFT).tolist() == [1]
    # Of 4 pixels above 0 two lie in the mask of 4, 2/6; from 3/4 on the 4 alone, 1/4; above 1/4: 4, 3, 2: 1/6.
    assert best_iou(MAP, LEFT).item() == pytest.approx(1 / 3)
    # Above 0: 2 of 6 on the right too; above 1/4: 2 and 3 and not 4, 2/5.
    assert best_iou(MAP, ~LEFT).item() == pytest.approx(2 / 5)


def test_blank_and_constant_maps_by_hand() -> None:
    quarter = torch.zeros(1, 4, 4, dtype=torch.bool)
    quarter[:, :2, :2] = True
    blank, ones = torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.3)
    assert pointing(blank, quarter).tolist() == pointing(ones, quarter).tolist() == [0.25]
    assert energy(blank, quarter).tolist() == [0]
    assert energy(ones, quarter).item() == pytest.approx(0.25)
    assert best_iou(blank, quarter).tolist() == best_iou(-ones, quarter).tolist() == [0]
    assert best_iou(ones, quarter).tolist() == [0.25]
    assert top_share(ones, quarter, 1).tolist() == [0.25]


def test_two_maxima_share_the_point() -> None:
    map_ = torch.tensor([[[5.0, 0, 0, 5], [0, 0, 0, 5]]])
    assert pointing(map_, LEFT).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", MEASURES)
def test_the_mask_itself_is_perfect_and_its_reverse_is_nothing(name: str) -> None:
    mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    mask[:, 3:7, 2:8] = True
    assert MEASURES[name](mask.float(), mask).tolist() == [1]
    assert MEASURES[name](mask.half(), mask).tolist() == [1]
    assert MEASURES[name]((~mask).float(), mask).tolist() == [0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Three maps with ties, one of them perhaps blank, and masks."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([(1, 1), (5, 4), (9, 11)]))
    levels = draw(st.sampled_from([1, 2, 30, 10_000]))
    maps = torch.randint(0, levels, (3, *size), generator=generator).double() / 7
    masks = torch.rand(3, *size, generator=generator) < draw(st.sampled_from([0.1, 0.5]))
    masks[:, 0, 0] = True
    return maps, masks


@few
@given(cases(), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_twins(case: tuple[Tensor, Tensor], share: float) -> None:
    maps, masks = case
    turns = order(torch.zeros_like(maps[:1])).argsort(1)[0].tolist()
    found = {name: measure(maps, masks) for name, measure in MEASURES.items()}
    top = top_share(maps, masks, share)
    for sample in range(3):
        values, mask = maps[sample].numpy(), masks[sample].numpy()
        expected = {
            "pointing": reference.pointing(values, mask),
            "energy": reference.energy(values, mask),
            "top_share": reference.top_share(values, mask, turns, 0.1),
            "best_iou": reference.best_iou(values, mask),
        }
        for name, value in expected.items():
            assert found[name][sample].item() == pytest.approx(value, rel=1e-6), name
        assert top[sample].item() == pytest.approx(reference.top_share(values, mask, turns, share))


@few
@given(cases(), st.sampled_from([2.0**-20, 2.0, 2.0**30]))
def test_neither_scale_nor_order_of_the_images_matters(case: tuple[Tensor, Tensor], scale: float) -> None:
    maps, masks = case
    mixed = torch.tensor([1, 2, 0])
    for measure in MEASURES.values():
        assert torch.equal(measure(maps * scale, masks), measure(maps, masks))
        assert torch.equal(measure(maps[mixed], masks[mixed]), measure(maps, masks)[mixed])


@few
@given(cases())
def test_energy_inside_and_outside_is_all(case: tuple[Tensor, Tensor]) -> None:
    maps, masks = case
    usable = (maps.flatten(1).amax(1) > 0) & ~masks.flatten(1).all(1)
    if usable.any():
        total = energy(maps[usable], masks[usable]) + energy(maps[usable], ~masks[usable])
        torch.testing.assert_close(total, torch.ones_like(total))


def test_large_values_in_float32_keep_their_shares() -> None:
    assert energy(MAP.float() * 8e37, LEFT).item() == pytest.approx(0.5)


# --- boxes


def test_boxes_by_hand() -> None:
    # Centres at 1/2, 3/2, ...: from 0.5 on the first belongs to the box, at 1.5 the second does not.
    boxes = torch.tensor([[0.5, 0.5, 1.5, 1.5], [3.0, 1.0, 4.0, 9.0]])
    assert mask_of_boxes(boxes, (3, 4)).int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert mask_of_boxes(torch.tensor([[0, 0, 4, 3]]), (3, 4)).all()
    assert not mask_of_boxes(torch.zeros(0, 4), (3, 4)).any()


@few
@given(
    st.lists(
        st.tuples(st.floats(-2, 9), st.floats(-2, 9), st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=3
    )
)
def test_boxes_are_the_twins(corners: list[tuple[float, float, float, float]]) -> None:
    boxes = [(left, top, left + width, top + height) for left, top, width, height in corners]
    found = mask_of_boxes(torch.tensor(boxes, dtype=torch.float64), (6, 8))
    assert found.tolist() == reference.mask_of_boxes(boxes, (6, 8)).tolist()


# --- MaxBoxAcc


def boxes_of(*corners: tuple[float, ...]) -> Tensor:
    return torch.tensor(corners).double()


def test_hits_by_hand() -> None:
    # Above 0: five pixels on the left, joined by a corner, and three on the right; above 1/2 those alone.
    map_ = torch.tensor([[[0.5, 0.5, 0, 0, 0, 1], [0.5, 0.5, 0, 0, 0, 1], [0, 0, 0.5, 0, 0, 1]]])
    assert box_hits(map_, [boxes_of((0, 0, 3, 3))])[0].tolist() == [True] * 50 + [False] * 50
    assert box_hits(map_, [boxes_of((5, 0, 6, 3))])[0].tolist() == [False] * 50 + [True] * 50
    # An intersection of 3 in a union of 6 is a hit, in one of 7.5 it is none.
    assert box_hits(map_, [boxes_of((4, 0, 6, 3))])[0, 60].item()
    assert not box_hits(map_, [boxes_of((3.5, 0, 6, 3))])[0, 60].item()
    # Any of several boxes will do; none that is far away.
    assert box_hits(map_, [boxes_of((0, 0, 1, 1), (5, 0, 6, 3))])[0, 60].item()
    assert not box_hits(torch.zeros(1, 3, 6), [boxes_of((0, 0, 6, 3))]).any()
    assert not box_hits(-torch.ones(1, 3, 6), [boxes_of((0, 0, 6, 3))]).any()
    # Of equal parts, the first.
    twins = torch.tensor([[[1.0, 0, 0, 1]]])
    assert box_hits(twins, [boxes_of((0, 0, 1, 1))]).all()
    assert not box_hits(twins, [boxes_of((3, 0, 4, 1))]).any()


def test_the_best_threshold_is_a_common_one() -> None:
    hits = torch.tensor([[True, False, True], [False, True, True], [False, True, False], [False, True, False]])
    assert max_box_accuracy(hits) == (0.75, 1)
    assert max_box_accuracy(hits[:2]) == (1.0, 2)
    assert max_box_accuracy(hits[:1]) == (1.0, 0)
    assert max_box_accuracy(hits & ~hits) == (0.0, 0)


@examples(12)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([3, 40, 10_000]))
def test_hits_are_the_twins(seed: int, count: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, levels, (2, 7, 6), generator=generator).double() ** 3
    corners = torch.rand(2, count, 4, generator=generator).double()
    boxes = torch.cat([corners[..., :2] * 4, corners[..., :2] * 4 + 1 + corners[..., 2:] * 4], 2)
    found = box_hits(maps, list(boxes))
    for sample in range(2):
        for step in range(0, 100, 7):
            expected = reference.box_found(maps[sample].numpy(), boxes[sample].tolist(), step / 100)
            assert found[sample, step].item() == expected


# --- maps that know nothing


def test_the_centre_map_by_hand() -> None:
    # Sigma 5/4: at a distance of 1, exp(-8/25), of 2, exp(-32/25).
    found = centre_map((5, 5))
    assert found[2, 2].item() == 1
    assert found[2, 1].item() == pytest.approx(2.718281828 ** (-8 / 25), rel=1e-6)
    assert found[0, 2].item() == pytest.approx(2.718281828 ** (-32 / 25), rel=1e-6)
    assert found[0, 1].item() == pytest.approx(2.718281828 ** (-40 / 25), rel=1e-6)
    # Sigma 9/4 along the longer side.
    assert centre_map((5, 9))[2, 3].item() == pytest.approx(2.718281828 ** (-8 / 81), rel=1e-6)
    for size in ((4, 6), (7, 3)):
        found = centre_map(size)
        assert found.max().item() == 1
        assert torch.equal(found, found.flip(0))
        assert torch.equal(found, found.flip(1))


def test_random_maps_find_a_mask_as_often_as_it_is_large() -> None:
    maps = random_maps(2000, (8, 8), torch.Generator().manual_seed(0))
    mask = torch.zeros(2000, 8, 8, dtype=torch.bool)
    mask[:, :4, :2] = True
    for name in ("pointing", "energy", "top_share"):
        # Standard error of a share of 1/8 over 2000 images: 0.007.
        assert MEASURES[name](maps, mask).mean().item() == pytest.approx(1 / 8, abs=0.025), name
    assert torch.equal(maps, random_maps(2000, (8, 8), torch.Generator().manual_seed(0)))
    assert not torch.equal(maps[0], maps[1])


# --- errors


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MAP, LEFT[:, :1]), r"masks must be boolean and of the maps' shape \(1, 2, 4\), .* shape \(1, 1, 4\)"),
        ((MAP, LEFT.expand(2, 2, 4)), r"shape \(2, 2, 4\)"),
        ((MAP, LEFT.float()), "but got torch.float32"),
        ((MAP[0], LEFT[0]), r"maps must have shape \(batch, height, width\), but got \(2, 4\)"),
        ((MAP * torch.nan, LEFT), "maps hold NaN or infinite values, first in image 0"),
        ((MAP.expand(2, 2, 4), torch.cat([LEFT, LEFT & ~LEFT])), "masks hold no object in image 1"),
    ],
)
def test_unusable_arguments_are_refused(name: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MEASURES[name](*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy(MAP - 1, LEFT), "maps must be at least 0 .* but reach -1"),
        (lambda: top_share(MAP, LEFT, 0), "share must be above 0 and at most 1, but got 0"),
        (lambda: top_share(MAP, LEFT, 1.5), "but got 1.5"),
        (lambda: box_hits(MAP, []), r"one map for each of 0 images' boxes, but got \(1, 2, 4\)"),
        (lambda: box_hits(MAP, [torch.zeros(0, 4)]), r"boxes of image 0 must be .* at least one; but got \[\]"),
        (lambda: box_hits(MAP, [torch.tensor([[2.0, 0, 1, 1]])]), "right > left"),
        (lambda: max_box_accuracy(torch.zeros(2, 3)), r"hits must be boolean .* torch.float32 of shape \(2, 3\)"),
        (lambda: max_box_accuracy(torch.zeros(0, 3, dtype=torch.bool)), r"at least one image, .* shape \(0, 3\)"),
        (lambda: mask_of_boxes(torch.zeros(4), (3, 4)), r"boxes must have shape \(box, 4\).* but got \(4,\)"),
        (lambda: mask_of_boxes(torch.tensor([[2.0, 0, 1, 1]]), (3, 4)), "right > left and bottom > top"),
    ],
)
def test_unusable_options_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
