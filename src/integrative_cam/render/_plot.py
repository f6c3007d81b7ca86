"""What was explained beside why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from ._drawing import Seen, as_picture, draw
from ._overlay import Region
from ._presentation import check_sample, presented
from ._sheet import bare, colour_bar, sheet, wrapped
from ._space import draw_montage, draw_signal

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from torch import Tensor

    from ..explanation import Explanation


def plot(
    explanation: Explanation,
    image: Seen = None,
    title: str = "",
    sample: int = 0,
    region: Region | None = None,
    raw: bool = False,
) -> Figure:
    """Draw the photograph, its overlay and the scale of colours; a signal as a curve, a volume as slices.

    Args:
        explanation: of one to three spatial axes.
        image: the photograph, or this sample's input (channel, *space), stretched to the full range of brightness. None
            draws the bare map.
        title: shown above the map; default "Why" and the target's name.
        sample: which image of the explanation.
        region: where the map lies in the photograph, such as `View.region`; None: all of it.
        raw: show the map without smoothing; see `presented`.
    """
    check_sample(explanation, sample)
    title = title or f"Why {explanation.target_names[sample]}"
    saliency = presented(explanation, raw)[sample]
    if saliency.ndim == 2:
        at_least_float32 = 9.4 if image is not None else 5.2
        figure = sheet(at_least_float32, _height(image, saliency, at_least_float32))
        draw_beside(figure, saliency, image, title, region)
        return figure
    figure = sheet(9, 2.8 if saliency.ndim == 1 else 5.4)
    if saliency.ndim == 1:
        draw_signal(figure, saliency, image, title)
    else:
        draw_montage(figure, saliency, image, axis=0, count=8, title=title)
    return figure


def draw_beside(
    part: Figure | SubFigure, saliency: Tensor, image: Seen, title: str, region: Region | None = None
) -> None:
    """Photograph, overlay and colour bar; without a photograph the bare map."""
    cells = list(part.subplots(1, 1 if image is None else 2, squeeze=False).flat)
    bare(*cells)
    if image is not None:
        cells[0].imshow(as_picture(image))
        cells[0].set_title("photograph" if isinstance(image, Image.Image) else "input")
    draw(cells[-1], saliency, image, region)
    # The scale takes its share of the width.
    cells[-1].set_title(wrapped(title, 0.85 * part.bbox.width / part.dpi / len(cells)))
    colour_bar(part, cells)


def _height(image: Seen, saliency: Tensor, at_least_float32: float) -> float:
    """So that pictures fill the sheet's width, whatever their shape."""
    down, across = saliency.shape if image is None else as_picture(image).size[::-1]
    shown = (at_least_float32 - 1.2) / (1 if image is None else 2)
    return float(min(max(shown * down / across, 2.2), 7) + 0.5)
