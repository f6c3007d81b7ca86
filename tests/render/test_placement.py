"""A map lies where the network looked: planted evidence is drawn where it is in the photograph."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from integrative_cam import Explanation, Recipe, SeenRegion, explain, get_method
from integrative_cam.errors import ExplanationError, InputError
from integrative_cam.models import Preprocessing
from integrative_cam.render import overlay, overlays, panel, plot, streams, viewer

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
WAYS = {
    "centre crop": Preprocessing(64, (56, 56), **PLAIN),
    "upright crop": Preprocessing(64, (60, 40), **PLAIN),
    "squashed": Preprocessing(64, (56, 56), squash=True, **PLAIN),
    "padded": Preprocessing((40, 40), (56, 72), **PLAIN),
}
SIZES = [(120, 90), (90, 120), (100, 100), (64, 64)]


class Brightness(nn.Module):
    """Its map is the image's brightness: the score is the mean of it."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean(1, keepdim=True).relu().mean((2, 3))
        return torch.cat([bright, -bright], 1)


MODEL = Brightness().eval()


def planted(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A black photograph with a white rectangle."""
    photograph = Image.new("RGB", size)
    photograph.paste((255, 255, 255), box)
    return photograph


def coloured_box(drawn: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels that the map colours; the photographs are black, grey and white."""
    values = np.asarray(drawn, int)
    rows, columns = np.nonzero(values.max(2) - values.min(2) > 40)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def silently(draw: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return draw()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_evidence_is_drawn_where_it_is_in_the_photograph(way: str, size: tuple[int, int]) -> None:
    box = (size[0] // 2 - 10, size[1] // 2 + 4, size[0] // 2 + 16, size[1] // 2 + 20)
    photograph = planted(size, box)
    view = WAYS[way](photograph)
    found = explain(MODEL, view.tensor, 0)
    (drawn,) = silently(lambda: found.overlay(photograph))
    # A pixel of the input covers up to 2 of the photograph.
    assert drawn.size == size
    assert np.abs(np.subtract(coloured_box(drawn), box)).max() <= 2
    for image in (photograph, view):
        figure = silently(lambda image=image: found.plot(image))
        assert np.array_equal(figure.axes[1].images[0].get_array(), np.asarray(drawn))
        figure = silently(lambda image=image: panel(found, image))
        assert np.array_equal(figure.axes[1].images[0].get_array(), np.asarray(drawn))
        assert found.overlay(image)[0] == drawn
    larger = photograph.resize((2 * size[0], 2 * size[1]))
    # A part of the photograph's own shape, in another size, might be meant.
    unsure = (size in SIZES[2:] and way == "centre crop") or way == "squashed"
    with pytest.warns(UserWarning, match="may be the whole") if unsure else contextlib.nullcontext():
        (drawn,) = found.overlay(larger)
    assert np.abs(np.subtract(coloured_box(drawn), np.multiply(box, 2))).max() <= 4


def test_the_pixels_are_exact() -> None:
    """300 x 400 pixels, shorter side to 256, centre of 224: pixel (x, y) of the input is (58 + x) * 400 / 341 and
    (16 + y) * 300 / 256 of the photograph."""

    class Patch(nn.Module):
        """Reads rows 20 to 39 and columns 180 to 209 alone."""

        def forward(self, images: Tensor) -> Tensor:
            return images.relu()[:, :1, 20:40, 180:210].mean((2, 3))

    photograph = Image.new("RGB", (400, 300), "white")
    # White up to the patch's edge: only a gradient that is not averaged over regions tells where that is.
    found = explain(Patch().eval(), Preprocessing(**PLAIN)(photograph).tensor, 0, Recipe.plain())
    (view,) = found.views or ()
    assert view.size == (400, 300)
    assert view.box == pytest.approx((58 * 400 / 341, 18.75, 282 * 400 / 341, 281.25))
    (drawn,) = found.overlay(photograph)
    # From 279.2 to 314.4 and from 42.2 to 65.6; beside it the map fades to 0 within a pixel of the input.
    assert np.abs(np.subtract(coloured_box(drawn), (279, 42, 315, 66))).max() <= 1
    drawn_values = np.asarray(drawn, int)
    assert (drawn_values[:, :68] == drawn_values[0, 0]).all()  # dark: the network did not see it
    assert drawn_values[0, 0, 0] == 102
    assert drawn_values[100, 100, 0] == 255


def test_a_viewer_steps_through_layers_where_the_network_looked() -> None:
    photograph = planted((120, 90), (70, 50, 90, 66))
    view = WAYS["centre crop"](photograph)
    found = explain(MODEL, view.tensor, 0)
    whole = viewer(found, photograph, region=(0, 0, 120, 90))
    for image in (photograph, view):
        shown = silently(lambda image=image: viewer(found, image))
        stated = viewer(found, photograph, region=view.region)
        for place in (-1, 0):
            for each in (shown, stated, whole):
                each.children[0].value = place
            pictures = [each.children[1].value for each in (shown, stated, whole)]
            assert pictures[0] == pictures[1] != pictures[2]


def test_views_are_kept_by_slices_devices_and_files(tmp_path: Path) -> None:
    photographs = [planted(size, (30, 30, 60, 50)) for size in SIZES[:2]]
    views = [WAYS["centre crop"](photograph) for photograph in photographs]
    batch = explain(MODEL, torch.cat([view.tensor for view in views]), 0)
    assert batch.views is None  # torch.cat makes a tensor of its own
    for at, view in enumerate(views):
        assert batch.overlay(views)[at] == explain(MODEL, view.tensor, 0).overlay(photographs[at])[0]
    found = explain(MODEL, views[0].tensor, 0)
    assert found.views == (SeenRegion((120, 90), views[0].region),)
    assert [
        each.views for each in (found[0], found.to("cpu"), found[:1], Explanation.load(found.save(tmp_path / "e")))
    ] == [found.views] * 4
    assert found[1:].views == ()
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    for stored in ([], [{"size": [1, 2], "box": [0, 0, 0, 1]}], [{"size": [0, 2], "box": [0, 0, 1, 1]}], [3], [{}]):
        (tmp_path / "e" / "manifest.json").write_text(json.dumps({**manifest, "views": stored}))
        if stored:
            with pytest.raises(ExplanationError, match="incomplete explanation"):
                Explanation.load(tmp_path / "e")
    del manifest["views"]  # as 0.1.0 wrote it
    (tmp_path / "e" / "manifest.json").write_text(json.dumps(manifest))
    assert Explanation.load(tmp_path / "e").views is None


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "fullgrad", "uniform"])
def test_every_method_keeps_the_view(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    view = WAYS["padded"](planted((60, 40), (10, 10, 30, 30)))
    found = get_method(method)
    assert found(model, view.tensor, 0).views == (view.seen,)
    assert [each.views for each in found.explain_targets(model, view.tensor, [0, 1])] == [(view.seen,)] * 2


def test_where_it_looked_is_asked_for_if_it_is_not_known() -> None:
    photograph = planted((120, 90), (30, 30, 60, 50))
    view = WAYS["centre crop"](photograph)
    found = explain(MODEL, view.tensor.clone(), 0)
    for draw in (found.overlay, found.plot, lambda image: panel(found, image), lambda image: viewer(found, image)):
        with pytest.warns(
            UserWarning, match=r"120 x 90 pixels, the map 56 x 56, .* does not know which part"
        ) as caught:
            draw(photograph)
        assert caught[0].filename == __file__
        silently(lambda draw=draw: draw(view))
    for image in (view.tensor, photograph.resize((56, 56))):
        silently(lambda image=image: found.overlay(image))
    silently(lambda: plot(found, photograph, region=view.region))
    with pytest.warns(UserWarning, match="120 x 90 pixels, the map another shape, 56 x 56, .* stretched"):
        overlay(found.map[0], photograph)
    for region in ((0, 0, 120, 90), view.region):
        silently(lambda region=region: overlay(found.map[0], photograph, region))
    silently(lambda: overlay(torch.ones(7, 9), Image.new("RGB", (121, 94))))  # one shape, but for rounding
    assert silently(lambda: overlays(found.map, view))[0] == found.overlay(view)[0]


def test_an_image_of_another_shape_is_refused() -> None:
    found = explain(MODEL, WAYS["upright crop"](planted((120, 90), (30, 30, 60, 50))).tensor, 0)
    for draw in (found.overlay, found.plot):
        with pytest.raises(InputError, match=r"photograph of 120 x 90 pixels, or the 57 x 84 of them .* got 90 x 120"):
            draw(Image.new("RGB", (90, 120)))
    square = explain(MODEL, WAYS["centre crop"](Image.new("RGB", (100, 100), "white")).tensor, 0)
    with pytest.warns(UserWarning, match="200 x 200 pixels may be the whole photograph, or the part"):
        square.overlay(Image.new("RGB", (200, 200)))


def test_what_the_network_saw_is_drawn_whole() -> None:
    photograph = planted((120, 90), (50, 30, 80, 50))
    view = WAYS["centre crop"](photograph)
    found = explain(MODEL, view.tensor, 0)
    (crop,) = silently(lambda: found.overlay(view.picture))
    left, top = round(view.region[0]), round(view.region[1])
    assert np.abs(np.subtract(coloured_box(crop), (50 - left, 30 - top, 80 - left, 50 - top))).max() <= 2
    (seen,) = silently(lambda: found.overlay(view.tensor))
    assert seen.size == (56, 56)
    (larger,) = silently(lambda: found.overlay(view.picture.resize((500, 500))))
    assert coloured_box(larger)[0] == pytest.approx((50 - left) * 500 / 79, abs=8)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "I;16"])
def test_photographs_of_every_mode_are_drawn_as_they_look(mode: str) -> None:
    """Grey ones grey, transparent ones on white; not in matplotlib's colours, nor in hidden ones."""
    grey = np.full((30, 40), 200, np.uint8)
    grey[10:, 5:] = 60
    expected = np.repeat(grey[..., None], 3, 2)
    if mode == "1":
        expected = np.where(expected > 128, 255, 0)
    if mode == "I;16":
        photograph = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        photograph = Image.fromarray(grey).convert(mode)
        photograph.putalpha(Image.fromarray(np.where(grey == 60, 255, 0).astype(np.uint8)))
        expected = np.where(expected == 60, 60, 255)
    else:
        photograph = Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)
    view = Preprocessing((30, 40), (30, 40), **PLAIN)(photograph)
    np.testing.assert_allclose(view.tensor[0].permute(1, 2, 0), expected / 255, atol=1e-6)
    found = explain(MODEL, view.tensor, 0)
    for figure in (found.plot(photograph), panel(found, photograph), found.plot(view)):
        assert np.array_equal(figure.axes[0].images[0].get_array(), expected)
    blank = overlay(torch.zeros(30, 40), photograph)
    assert np.array_equal(np.asarray(blank), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_named(channels: int) -> None:
    images = torch.rand(1, channels, 12, 16)
    found = explain(
        nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images, 0
    )
    with pytest.warns(UserWarning, match=f"mean of the input's {channels} channels in grey; to see some"):
        figure = found.plot(images)
    mean = images[0].mean(0)
    expected = (mean - mean.min()) / (mean.max() - mean.min()) * 255
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[..., 0], expected, atol=0.6)
    silently(lambda: found.plot(images[:, :1]))


def test_an_overlay_is_of_two_axes() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    nn.init.ones_(model[0].weight)
    signal = torch.rand(1, 1, 20)
    for image in (signal, Image.new("RGB", (9, 9))):
        with pytest.raises(InputError, match=r"maps of two dimensions, but this one has shape \(20,\)"):
            explain(model, signal, 0).overlay(image)


def test_each_input_of_several_is_drawn_where_the_network_looked_at_it() -> None:
    class Two(nn.Module):
        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return one.relu().mean((1, 2, 3))[:, None] + other.relu().mean((1, 2, 3))[:, None]

    photographs = planted((120, 90), (60, 30, 80, 50)), planted((90, 120), (30, 70, 50, 90))
    views = [WAYS["centre crop"](photograph) for photograph in photographs]
    found = explain(Two().eval(), tuple(view.tensor for view in views), 0)
    assert found.views == (views[0].seen,)
    figure = silently(lambda: streams(found, views))
    for column, photograph in enumerate(photographs):
        drawn = Image.fromarray(np.asarray(figure.axes[2 + column].images[0].get_array()))
        box = photograph.getbbox()
        assert np.abs(np.subtract(coloured_box(drawn), box)).max() <= 2
    with pytest.warns(UserWarning, match="90 x 120 pixels, the map 56 x 56"):
        streams(found, photographs)
