"""Pictures: the evidence lies where the map says, and the same input gives the same bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from integrative_cam import CamError, explain
from integrative_cam.errors import InputError
from integrative_cam.models import Network, read_image
from integrative_cam.render import coloured, comparison, overlay, panel
from integrative_cam.render._overlay import enlarged

GREY = Image.new("RGB", (120, 80), (128, 128, 128))


def spot(row: int, column: int) -> torch.Tensor:
    saliency = torch.zeros(8, 12)
    saliency[row, column] = 1
    return saliency


@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 11), (2, 9), (5, 3)])
def test_evidence_lies_where_the_map_says(row: int, column: int) -> None:
    """An image ten times the map's size: the changed pixels centre on the cell's centre."""
    changed = np.abs(np.asarray(overlay(spot(row, column), GREY), dtype=float) - 128).sum(2)
    rows, columns = np.nonzero(changed > changed.max() / 2)
    assert abs(rows.mean() - (10 * row + 4.5)) < 1.5
    assert abs(columns.mean() - (10 * column + 4.5)) < 1.5


def test_a_path_is_no_photograph(lite0: Network) -> None:
    found = explain(lite0.model, torch.rand(1, 3, 64, 64))
    for draw in (
        lambda image: found.overlay(image),
        lambda image: found.plot(image),
        lambda image: panel(found, image),
        lambda image: overlay(found.map[0], image),
        lambda image: comparison({"one": found.map[0]}, image),
        lite0.preprocessing,
    ):
        for image in ("photo.jpg", Path("photo.jpg")):
            with pytest.raises(CamError, match=r"must be a Pillow image, such as .*read_image\(path\) gives, but got"):
                draw(image)  # type: ignore[arg-type, operator]


@pytest.mark.parametrize("region", [None, (2.0, 0.0, 18.0, 16.0)])
def test_a_photograph_smaller_than_the_map_is_enlarged_so_that_its_maximum_shows(
    region: tuple[float, float, float, float] | None,
) -> None:
    saliency = torch.zeros(224, 224)
    saliency[101:104, 70:73] = 1  # between the centres of a small photograph's pixels
    small = Image.new("RGB", (20, 16), (90, 90, 90))
    small.putpixel((0, 15), (200, 200, 200))
    photograph, place = enlarged(small, saliency, region)
    assert photograph.size == (280, 224)
    assert place == (None if region is None else (28, 0, 252, 224))
    assert np.array_equal(np.asarray(photograph)[::14, ::14], np.asarray(small))
    lost, kept = (coloured(saliency, each.size, where) for each, where in ((small, region), (photograph, place)))
    assert np.asarray(lost)[..., 3].max() < 60
    assert np.asarray(kept)[..., 3].max() > 200
    assert enlarged(photograph, saliency, place) == (photograph, place)
    assert enlarged(Image.new("L", (32, 32)), torch.zeros(32, 32), least=224)[0].size == (224, 224)
    assert max(enlarged(Image.new("L", (3000, 8)), saliency)[0].size) == 3000  # not 84000


def test_without_evidence_the_photograph_stays(photographs: Path) -> None:
    photograph = read_image(photographs / "coffee.png")
    muted = ImageEnhance.Color(photograph).enhance(0.3)
    assert np.array_equal(np.asarray(overlay(torch.zeros(7, 7), photograph)), np.asarray(muted))


def test_opacity_follows_evidence() -> None:
    """What of the photograph shines through is the difference between a white and a black one."""
    ramp = torch.linspace(0, 1, 12).expand(8, 12)
    white, black = (np.asarray(overlay(ramp, Image.new("RGB", (12, 8), each)), float) for each in ("white", "black"))
    np.testing.assert_allclose((white - black)[0, :, 0], 255 * (1 - 0.85 * ramp[0].numpy()), atol=1)


def test_overlays_of_tensors_and_images(lite0: Network, photographs: Path) -> None:
    photograph = read_image(photographs / "chelsea.png")
    view = lite0.preprocessing(photograph)
    found = explain(lite0.model, view.tensor)
    (of_image,) = found.overlay(view.picture)
    assert of_image.size == view.picture.size
    (of_tensor,) = found.overlay(view.tensor)
    assert of_tensor.size == (224, 224)
    # The tensor is the photograph but for its range of brightness.
    difference = np.asarray(of_image.resize((224, 224)), float) - np.asarray(of_tensor, float)
    assert np.abs(difference - difference.mean()).mean() < 12
    with pytest.raises(InputError, match="one image per map: 1 maps, but got 2 images"):
        found.overlay([photograph, photograph])


def test_only_maps_of_two_dimensions_are_drawn() -> None:
    with pytest.raises(InputError, match=r"two dimensions, but this one has shape \(4, 5, 6\)"):
        overlay(torch.zeros(4, 5, 6), GREY)


def test_panel_tells_the_whole_story(lite0: Network, photographs: Path) -> None:
    view = lite0.preprocessing(read_image(photographs / "chelsea.png"))
    found = explain(lite0.model, view.tensor)
    figure = panel(found, view.picture, "Why tiger cat")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["photograph", "Why tiger cat"]
    strongest = found.weights[0].topk(6).indices.sort().values.tolist()
    shown = [title for title in titles if "weight" in title]
    assert [title.split("\n")[0] for title in shown] == [found.layers[index].name for index in strongest]
    bars = figure.axes[-1].patches
    assert [bar.get_height() for bar in bars] == pytest.approx(found.weights[0].tolist())

    def picture() -> bytes:
        written = io.BytesIO()
        panel(found, view.picture, "Why tiger cat").savefig(written, dpi=50)
        return written.getvalue()

    assert picture() == picture()


def test_comparison_shows_every_map_under_its_name() -> None:
    maps = {"first": spot(0, 0), "second": spot(7, 11), "third": spot(3, 3), "fourth": spot(4, 4)}
    figure = comparison(maps, GREY, "Why grey")
    assert figure.get_suptitle() == "Why grey"
    shown = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}
    assert list(shown) == ["photograph", *maps]
    for name, saliency in maps.items():
        assert np.array_equal(shown[name], np.asarray(overlay(saliency, GREY)))
