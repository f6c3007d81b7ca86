"""Several maps of one photograph side by side."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING

from .overlay import overlay

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

COLUMNS = 4


def comparison(maps: Mapping[str, Float[Tensor, "height width"]], image: Image, title: str = "") -> Figure:
    """Draw the photograph and an overlay per map, in the order given, each under its name.

    Args:
        maps: name -> map in [0, 1].
        image: the region that the network saw, at any size.
        title: shown above all, such as the class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = {"photograph": image, **{name: overlay(each, image) for name, each in maps.items()}}
    columns = min(COLUMNS, len(pictures))
    rows = ceil(len(pictures) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.5 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, (name, picture) in zip(grid, pictures.items(), strict=False):
        axes.imshow(picture)
        axes.set_title(name)
    return figure
