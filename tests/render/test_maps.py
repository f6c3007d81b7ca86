"""Maps on photographs: the right colour at the right pixel, and numbers that stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import examples
from PIL import Image, ImageEnhance
from torch import nn

from integrative_cam import explain
from integrative_cam._plan.placement import Placement
from integrative_cam.errors import InputError
from integrative_cam.models import Preprocessing
from integrative_cam.render import coloured, contour, outline, overlay, panel, plot, presented_layer
from integrative_cam.render._overlay import top_mask

GREY = Image.new("RGB", (90, 60), (128, 128, 128))
torch.manual_seed(0)
MODEL = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
).eval()  # fmt: skip
IMAGES = torch.randn(2, 3, 16, 12)


def test_colours_at_known_pixels() -> None:
    """At the map's own size every pixel is colour and photograph in the share that the value says."""
    values = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    drawn = np.asarray(overlay(values, Image.new("RGB", (2, 2), (100, 100, 100))), float)
    for row, column in np.ndindex(2, 2):
        value = float(values[row, column])
        colour = 255 * np.array(mpl.colormaps["inferno"](value)[:3])
        wanted = 100 * (1 - 0.85 * value) + colour * 0.85 * value
        np.testing.assert_allclose(drawn[row, column], wanted, atol=0.51)


def test_layer_alone_over_the_photograph_is_the_overlay() -> None:
    saliency = torch.rand(6, 9)
    muted = ImageEnhance.Color(GREY).enhance(0.3).convert("RGBA")
    composed = Image.alpha_composite(muted, coloured(saliency, GREY.size)).convert("RGB")
    np.testing.assert_allclose(np.asarray(composed, float), np.asarray(overlay(saliency, GREY), float), atol=2)


def test_alpha_is_zero_without_evidence_and_outside_of_the_region() -> None:
    saliency = torch.ones(4, 4)
    saliency[:, 2:] = 0
    alpha = np.asarray(coloured(saliency, (40, 20), (10, 0, 30, 20)))[..., 3]
    assert (alpha[:, :10] == 0).all()
    assert (alpha[:, 30:] == 0).all()
    # Linear between the centres of columns 1 and 2, at 17.5 and 22.5.
    assert (alpha[:, 10:17] == round(0.85 * 255)).all()
    assert (alpha[:, 23:30] == 0).all()
    middle = alpha[0, 17:23] / (0.85 * 255)
    np.testing.assert_allclose(middle, [1, 0.8, 0.6, 0.4, 0.2, 0], atol=0.005)


def test_outside_of_the_region_the_photograph_is_dark() -> None:
    drawn = np.asarray(overlay(torch.zeros(4, 4), GREY, (30, 0, 60, 60)))
    assert (drawn[:, 30:60] == 128).all()
    assert (drawn[:, :30] == round(128 * 0.4)).all()
    assert (drawn[:, 60:] == round(128 * 0.4)).all()


def test_diverging_colours_are_symmetric_about_zero() -> None:
    """The colour map meets its two ends from one white; the opposite map has the same alpha and the mirrored colour."""
    values = torch.tensor([[-4.0, -1.0, 0.0, 1.0, 4.0]])
    drawn = np.asarray(coloured(values, (5, 1), signed=True)).astype(int)[0]
    turned = np.asarray(coloured(-values, (5, 1), signed=True)).astype(int)[0]
    assert np.array_equal(drawn, turned[::-1])
    assert np.array_equal(drawn[:, 3], drawn[::-1, 3])
    assert drawn[:, 3].tolist() == [217, 54, 0, 54, 217]
    assert (drawn[2, :3] > 240).all()
    assert drawn[4, 0] > drawn[4, 2] + 60  # orange speaks for
    assert drawn[0, 2] > drawn[0, 0] + 10  # purple against


@pytest.mark.parametrize("size", [(640, 400), (400, 640), (224, 224), (120, 90)], ids=str)
@pytest.mark.parametrize("squash", [False, True])
def test_a_hot_pixel_ends_where_the_network_saw_it(size: tuple[int, int], squash: bool) -> None:
    """A white square of the photograph, as the preprocessing shows it to the network, is drawn back onto itself."""
    width, height = size
    photograph = Image.new("RGB", size)
    side = min(size) // 10
    left, top = width // 2 + side, height // 2 - 2 * side
    photograph.paste("white", (left, top, left + side, top + side))
    view = Preprocessing(72, (64, 64), "bilinear", (0.0,) * 3, (1.0,) * 3, squash)(photograph)
    alpha = np.asarray(coloured(view.tensor[0, 0], size, view.region), float)[..., 3]
    rows, columns = np.indices(alpha.shape)
    middle = ((rows + 0.5) * alpha).sum() / alpha.sum(), ((columns + 0.5) * alpha).sum() / alpha.sum()
    # Scaling rounds the image to whole pixels of the network's.
    assert middle == pytest.approx((top + side / 2, left + side / 2), abs=0.02 * min(size) / 7.2 + 0.1)


def test_region_of_a_known_crop() -> None:
    """400 x 200 scaled to 144 x 72 and cut to 64 x 64 at (40, 4): 25/9 of a pixel per pixel."""
    view = Preprocessing(72, (64, 64))(Image.new("RGB", (400, 200)))
    assert view.region == pytest.approx((40 * 25 / 9, 4 * 25 / 9, 104 * 25 / 9, 68 * 25 / 9))


@given(seed=st.integers(0, 1000), top=st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@examples(20)
def test_outline_encloses_exactly_the_top_share(seed: int, top: float) -> None:
    saliency = torch.rand(6, 9, generator=torch.Generator().manual_seed(seed)) + 0.01
    region = (9.0, 0.0, 81.0, 60.0)
    mask = top_mask(saliency, GREY.size, top, region)
    assert mask.sum() == round(top * 72 * 60)
    assert not mask[:, :9].any()
    assert not mask[:, 81:].any()
    values = np.asarray(coloured(saliency, GREY.size, region))[..., 3].astype(int)
    assert values[mask].min() >= values[:, 9:81][~mask[:, 9:81]].max()
    # The line lies on the mask, its dark edge beside it; the rest is the photograph.
    drawn = np.asarray(outline(saliency, GREY, top, region))
    yellow, black = (drawn == (255, 194, 10)).all(2), (drawn == 0).all(2)
    assert yellow.any()
    assert (mask[yellow]).all()
    assert not mask[black].any()
    assert (drawn[~yellow & ~black] == 128).all()
    # Every enclosed pixel that touches one outside is line.
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    assert yellow[mask & ~inner].all()


def test_contour_follows_a_level() -> None:
    ramp = torch.linspace(0, 1, 90).expand(60, 90)
    drawn = np.asarray(contour(ramp, GREY, 0.5))
    assert (drawn[30, :44] == 128).all()
    assert (drawn[30, 44] == 0).all()
    assert (drawn[30, 45] == (255, 194, 10)).all()
    assert (drawn[30, 46:89] == 128).all()
    assert (np.asarray(contour(torch.zeros(6, 9), GREY)) == 128).all()
    assert (np.asarray(outline(torch.zeros(6, 9), GREY)) == 128).all()


def test_a_layer_is_shown_as_it_is_or_where_it_lies() -> None:
    found = explain(MODEL, IMAGES, 1)
    assert torch.equal(presented_layer(found, 0), found.layers[0].map)
    placement = Placement(((0.25,), (0.25,)), ((0.0, 0.5), (0.0, 0.5)), (False, False))
    moved = replace(found, layers=(replace(found.layers[0], map=torch.ones(len(IMAGES), 1, 1), placement=placement),))
    shown = presented_layer(moved, 0)
    assert shown.shape == found.map.shape
    height, width = found.map.shape[1] // 2, found.map.shape[2] // 2
    assert (shown[:, :height, :width] == 1).all()
    assert not shown[:, height:].any()
    assert not shown[:, :, width:].any()


@pytest.mark.parametrize("draw", [plot, panel])
def test_raw_of_0_1_0_warns_and_changes_nothing(draw: Any) -> None:
    found, photograph = explain(MODEL, IMAGES, 1), Image.new("RGB", (IMAGES.shape[3], IMAGES.shape[2]))
    with pytest.warns(DeprecationWarning, match="raw has no effect"):
        shown = draw(found, photograph, raw=False)
    same = draw(found, photograph)
    assert np.array_equal(shown.axes[1].images[0].get_array(), same.axes[1].images[0].get_array())


def test_bad_requests() -> None:
    saliency = torch.rand(4, 4)
    with pytest.raises(InputError, match="top must be between 0 and 1"):
        outline(saliency, GREY, 10)
    with pytest.raises(InputError, match="level must be above 0"):
        contour(saliency, GREY, 0)
    with pytest.raises(InputError, match="region must be"):
        overlay(saliency, GREY, (10, 0, 10, 20))


def test_a_large_map_over_a_small_picture_is_averaged() -> None:
    """One line in four becomes a quarter everywhere; the values at the centres alone would be a half."""
    lines = (torch.arange(64) % 4 == 1).float().expand(64, 64)
    alpha = np.asarray(coloured(lines, (16, 16)))[..., 3] / (0.85 * 255)
    np.testing.assert_allclose(alpha[:, 1:-1], 0.25, atol=0.02)
