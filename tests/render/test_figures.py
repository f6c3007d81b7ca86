"""Figures: what they draw are the explanation's numbers, and the same figure is the same bytes."""

from __future__ import annotations

import builtins
import io
import itertools
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from integrative_cam import Explanation, MissingExtraError, explain, get_method
from integrative_cam.errors import InputError
from integrative_cam.render import (
    coloured,
    comparison,
    contrast,
    curve,
    decomposition,
    overlay,
    overlays,
    panel,
    plot,
    profile,
    save,
    slices,
    streams,
    viewer,
)

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
SPACE = {1: (20,), 2: (12, 16), 3: (5, 8, 6)}
PHOTO = Image.new("RGB", (80, 60), (90, 120, 200))


def explained(dims: int, batch: int = 1) -> tuple[Explanation, Tensor]:
    torch.manual_seed(dims)
    model = nn.Sequential(
        CONV[dims](2, 4, 3, padding=1), nn.ReLU(), CONV[dims](4, 4, 3, padding=1), nn.ReLU(),
        POOL[dims](1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    images = torch.randn(batch, 2, *SPACE[dims])
    return explain(model, images, 1), images


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.infrared, self.visible = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, infrared: Tensor, visible: Tensor) -> Tensor:
        return self.head(self.infrared(infrared).relu().mean((2, 3)) + self.visible(visible).relu().mean((2, 3)))


def fused() -> tuple[Explanation, list[Tensor]]:
    torch.manual_seed(3)
    images = [torch.rand(1, 1, 12, 12), torch.rand(1, 1, 16, 8)]
    return explain(Pair().eval(), images, 0), images


def test_decomposition_stacks_to_the_score() -> None:
    """Above zero minus below zero is the score at every depth; the parts are those of the completeness."""
    found, _ = explained(2)
    axes = decomposition(found).axes[0]
    split, bars = found.completeness, list(axes.patches)
    assert len(bars) == 3 * 3
    heights = np.array([bar.get_height() for bar in bars]).reshape(3, 3)
    np.testing.assert_allclose(heights.sum(0), float(found.score), rtol=1e-4)
    np.testing.assert_allclose(heights[:, 0], [split.input[0], split.bias[0], split.remainder[0]], atol=1e-6)
    np.testing.assert_allclose(heights[0, 1:], split.activation[0], rtol=1e-5)
    np.testing.assert_allclose(heights[1, 1:], split.tap_bias[0], rtol=1e-5)
    for column in range(3):
        spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars[column::3]]
        spans = sorted((min(span), max(span)) for span in spans)
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start + 1e-6  # no bar hides another
    assert float(axes.lines[1].get_ydata()[0]) == pytest.approx(float(found.score))


def test_decomposition_pales_where_paths_pass_beside() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x).relu()
            return (x + self.two(x).relu()).mean((2, 3))

    torch.manual_seed(0)
    found = explain(Skip().eval(), torch.rand(1, 1, 8, 8), 0)
    assert found.completeness.is_cut.tolist() == [True, False]
    bars = decomposition(found).axes[0].patches
    assert [bar.get_alpha() for bar in bars[:3]] == [1, 1, 0.3]


def test_profile_draws_weights_and_scores() -> None:
    found, _ = explained(2, batch=2)
    axes = profile(found, 1, marked=[1]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(found.weights[1].tolist())
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    gradient, activation = (line.get_ydata() for line in axes.lines)
    assert gradient == pytest.approx([float(layer.gradient_score[1]) for layer in found.layers])
    assert activation == pytest.approx([float(layer.activation_score[1]) for layer in found.layers])


def test_contrast_shows_both_and_their_difference() -> None:
    one, other = torch.zeros(6, 8), torch.zeros(6, 8)
    one[1, 1] = other[4, 6] = 1
    figure = contrast({"cat": one, "dog": other}, PHOTO, "Which?")
    shown = {axes.get_title(): np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images}
    assert np.array_equal(shown["cat"], np.asarray(overlay(one, PHOTO)))
    assert np.array_equal(shown["difference"], np.asarray(overlay(one - other, PHOTO, signed=True)))
    red, _, blue = shown["difference"][15, 15].astype(int)
    assert red > blue  # orange where the first has more
    red, _, blue = shown["difference"][45, 65].astype(int)
    assert blue > red
    with pytest.raises(InputError, match="two maps of one size, but got cat"):
        contrast({"cat": one}, PHOTO)


def test_streams_show_each_input_its_share_and_its_part() -> None:
    found, images = fused()
    assert found.streams is not None
    figure = streams(found, [each[0] for each in images])
    titles = [axes.get_title() for axes in figure.axes]
    for name, share in zip(found.streams.names, found.streams.share[0].tolist(), strict=True):
        assert name in titles
        assert f"{share:.0%} of the evidence" in titles
    bars = [bar.get_width() for bar in figure.axes[-1].patches]
    assert bars[:2] == pytest.approx(found.streams.evidence[0].tolist())
    assert sum(bars) == pytest.approx(float(found.score), rel=1e-3)
    with pytest.raises(InputError, match="one for each of infrared, visible, but got 1"):
        streams(found, [images[0][0]])
    with pytest.raises(InputError, match=r"one sample \(channel, height, width\), but got shape \(1, "):
        streams(found, images)
    with pytest.raises(InputError, match="this one has one: use `plot`"):
        streams(explained(2)[0], [])


def test_curve_colours_the_steps_of_evidence() -> None:
    saliency = torch.zeros(10)
    saliency[7] = 1
    signal = torch.arange(10.0)
    axes = curve(saliency, signal).axes[0]
    band = np.asarray(axes.images[0].get_array())
    assert band[0, :, 3].nonzero()[0].tolist() == [7]
    assert axes.images[0].get_extent()[:2] == [-0.5, 9.5]
    line = axes.lines[1]
    assert line.get_xdata() == pytest.approx(np.arange(10))
    assert line.get_ydata() == pytest.approx(np.arange(10))
    bare = curve(saliency).axes[0].lines[0]
    assert bare.get_ydata().tolist() == saliency.tolist()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_cut_map_and_volume_alike(axis: int) -> None:
    saliency, volume = torch.rand(5, 8, 6), torch.randn(5, 8, 6)
    figure = slices(saliency, volume, axis, count=3)
    cells = [axes for axes in figure.axes if len(axes.images) == 2]
    last = saliency.shape[axis] - 1
    assert [axes.get_title() for axes in cells][::2] == [f"slice 1 of {last + 1}", f"slice {last + 1} of {last + 1}"]
    scan, colours = (np.asarray(image.get_array()) for image in cells[-1].images)
    levelled = (volume - volume.min()) / (volume.max() - volume.min())
    np.testing.assert_allclose(scan, levelled.select(axis, last), atol=1e-6)
    values = saliency.select(axis, last).numpy()
    np.testing.assert_allclose(colours[..., 3], 0.85 * values, atol=1e-6)
    np.testing.assert_allclose(colours[..., :3], mpl.colormaps["inferno"](values)[..., :3], atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_plot_of_every_space(dims: int) -> None:
    found, images = explained(dims, batch=2)
    bare, under = found.plot(), found.plot(images, sample=1)
    assert "Why 1" in [axes.get_title() for axes in bare.axes] + [bare.get_suptitle()]
    bare.canvas.draw()
    under.canvas.draw()
    if dims == 2:
        drawn = np.asarray(under.axes[1].images[0].get_array())
        assert np.array_equal(drawn, np.asarray(overlays(found.map, images)[1]))
        assert np.array_equal(np.asarray(bare.axes[0].images[0].get_array()), found.map[0].numpy())
    with pytest.raises(InputError, match="2 maps, but got 1 images"):
        found.plot(images[:1])
    with pytest.raises(InputError, match="sample must be from 0 to 1"):
        found.plot(images, sample=2)


def test_plot_lies_where_the_region_says() -> None:
    found, _ = explained(2)
    region = (20.0, 0.0, 60.0, 60.0)
    shown = plot(found, PHOTO, region=region).axes[1].images[0].get_array()
    assert np.array_equal(np.asarray(shown), np.asarray(overlay(found.map[0], PHOTO, region)))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = explained(2)
    paths = [tmp_path / f"{name}.{kind}" for name in ("one", "other")]
    for at, path in enumerate(paths):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(10**9 * (at + 1)))  # another day
        save(panel(found, PHOTO), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"Date" not in paths[0].read_bytes()
    with pytest.raises(InputError, match=r"must end in .png, .svg, .pdf"):
        save(found.plot(), tmp_path / "picture.bmp")


def test_notebooks_show_maps_scores_and_layers_escaped() -> None:
    found, _ = explained(2, batch=6)
    page = found._repr_html_()
    assert page.count("data:image/png;base64,") == 4
    assert "and 2 more" in page
    assert "http" not in page
    for layer in found.layers:
        assert f"<code>{layer.name}</code>" in page
    probability = float(found.output[0].softmax(0)[1])
    assert f"score {float(found.score[0]):.4g}, {probability:.1%} by softmax" in page

    def evil(output: Tensor) -> Tensor:
        return output[0]

    evil.__name__ = "<script>alert(1)</script>"
    torch.manual_seed(0)
    other = explain(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval(),
        torch.rand(1, 1, 8, 8),
        evil,
    )
    assert "<script>" not in other._repr_html_()
    assert "&lt;script&gt;" in other._repr_html_()
    assert page == found._repr_html_()


def test_notebooks_without_the_extra_show_text(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = explained(2)
    really = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith(("render", "integrative_cam.render")):
            raise MissingExtraError("Drawing needs the package `matplotlib`")
        return really(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert found._repr_html_().startswith("<pre>Explanation(1 image(s)")
    with pytest.raises(MissingExtraError):
        found.plot()


def test_figures_show_themselves_in_notebooks() -> None:
    """pyplot, which would show them, does not know them."""
    found, _ = explained(2)
    png = found.plot()._repr_png_()
    assert Image.open(io.BytesIO(png)).size[0] > 300
    assert png == found.plot()._repr_png_()


def test_viewer_walks_through_the_layers() -> None:
    found, images = explained(2)
    shown = viewer(found, images[0])
    slider, picture, told = shown.children
    fused_map = picture.value
    assert Image.open(io.BytesIO(fused_map)).format == "PNG"
    slider.value = 1
    assert found.layers[1].name in told.value
    assert f"weight {float(found.layers[1].weight[0]):.1%}" in told.value
    assert picture.value != fused_map
    slider.value = -1
    assert picture.value == fused_map


def test_what_has_no_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    found = get_method("center")(model, torch.rand(1, 2, 8, 8), 0)
    with pytest.raises(InputError, match="no layers to draw"):
        profile(found)
    assert len(decomposition(found).axes[0].patches) == 3
    assert len(panel(found, PHOTO).axes) == 3  # photograph, overlay, scale
    assert found._repr_html_().count("<table>") == 0


def test_pictures_of_a_differentiable_explanation_hold_no_graph() -> None:
    found, _ = explained(2)
    image = coloured(found.map[0].clone().requires_grad_(), (16, 12))
    assert np.array_equal(np.asarray(image), np.asarray(coloured(found.map[0], (16, 12))))


LONG = "cougar, puma, catamount, mountain lion, painter, panther, Felis concolor rather than jaguar, Panthera onca"


@pytest.mark.parametrize("kind", ["panel", "plot", "comparison", "contrast"])
def test_long_titles_stay_within_the_figure_and_off_each_other(kind: str) -> None:
    found, _ = explained(2)
    drawn = {
        "panel": lambda: panel(found, PHOTO, LONG),
        "plot": lambda: plot(found, PHOTO, LONG),
        "comparison": lambda: comparison({LONG: found.map[0], f"not {LONG}": found.map[0]}, PHOTO, f"{LONG}, {LONG}"),
        "contrast": lambda: contrast({LONG: found.map[0], f"not {LONG}": found.map[0]}, PHOTO, LONG),
    }[kind]()
    drawn.draw_without_rendering()
    titles = [axes.title for axes in drawn.get_axes()]
    assert any("cougar" in title.get_text() for title in titles)
    boxes = [text.get_window_extent() for text in (*titles, *drawn.texts) if text.get_text()]
    for box in boxes:
        assert drawn.bbox.x0 <= box.x0
        assert box.x1 <= drawn.bbox.x1
        assert box.y1 <= drawn.bbox.y1
    overlapping = [one for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
    assert not overlapping
