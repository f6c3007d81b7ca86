"""Several maps of one photograph: side by side, or one against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

from ..errors import InputError
from ._overlay import Region, enlarged, overlay
from ._placement import as_picture
from ._sheet import bare, colour_bar, set_title, sheet, wrapped

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

COLUMNS = 4
LINE = 0.2
"""Inches that each further line of a title adds."""


def comparison(
    maps: Mapping[str, Float[Tensor, "height width"]], image: Image, title: str = "", region: Region | None = None
) -> Figure:
    """Draw the photograph and an overlay for each map, under its name.

    Args:
        maps: name -> map in [0, 1].
        image: the photograph, at any size.
        title: shown above all, such as the class.
        region: where the maps lie in it, such as `View.region`; None: all of it.
    """
    image = as_picture(image)
    drawn = [(name, _over(saliency, image, region)) for name, saliency in maps.items()]
    return side_by_side([("photograph", image), *drawn], title)


def side_by_side(pictures: Sequence[tuple[str, Image]], title: str = "") -> Figure:
    """Draw pictures of one shape in rows, each under its name."""
    rows = ceil(len(pictures) / COLUMNS)
    columns = ceil(len(pictures) / rows)
    names, above = [wrapped(name, 3) for name, _ in pictures], wrapped(title, 3.2 * columns)
    lines = above.count("\n") + rows * max(name.count("\n") for name in names)
    down = _down(pictures[0][1], 3.2)
    figure = sheet(3.2 * columns, (down + 0.35) * rows + 0.4 + LINE * lines)
    figure.suptitle(above)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    bare(*grid)
    for axes, name, (_, picture) in zip(grid, names, pictures, strict=False):
        axes.imshow(picture)
        set_title(axes, name)
    return figure


def contrast(
    maps: Mapping[str, Float[Tensor, "height width"]], image: Image, title: str = "", region: Region | None = None
) -> Figure:
    """Draw two maps, such as those of two classes, and their difference: orange where the first has more evidence.

    Each map is divided by its own maximum, so the difference compares relative evidence. `targets.contrast` explains
    the difference of the scores themselves.

    Args:
        maps: two names -> maps of one size in [0, 1].
        image: the photograph, at any size.
        title: shown above all.
        region: where the maps lie in it, such as `View.region`; None: all of it.

    Raises:
        InputError: not two maps of one size.
    """
    if len(maps) != 2 or len({saliency.shape for saliency in maps.values()}) != 1:
        sizes = ", ".join(f"{name} {tuple(saliency.shape)}" for name, saliency in maps.items())
        raise InputError(f"contrast draws two maps of one size, but got {sizes or 'none'}.")
    (first, one), (second, other) = maps.items()
    image = as_picture(image)
    figure = sheet(12, _down(image, 3.4) + 1)
    figure.suptitle(wrapped(title, 12))
    cells = list(figure.subplots(1, 3))
    bare(*cells)
    drawn = [_over(one, image, region), _over(other, image, region), _over(one - other, image, region, True)]
    for axes, name, picture in zip(cells, (first, second, "difference"), drawn, strict=True):
        axes.imshow(picture)
        set_title(axes, wrapped(name, 3.2))
    colour_bar(figure, cells[2:], signed=True, ends=(wrapped(second, 1.6), wrapped(first, 1.6)))
    return figure


def _over(saliency: Tensor, image: Image, region: Region | None, signed: bool = False) -> Image:
    photograph, place = enlarged(image, saliency, region)
    return overlay(saliency, photograph, place, signed)


def _down(image: Image, across: float) -> float:
    return min(max(across * image.height / image.width, 1.2), 6)
