"""Figures without pyplot's global state; the same figure gives the same bytes."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from ..errors import InputError
from ._colours import EVIDENCE, SIGNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

DPI, NOTEBOOK_DPI = 150, 64
LETTERS = 9.5
"""Letters of a title that fit into an inch."""
LINES = 3
"""Of a title, at most."""
SALT = "integrative-cam"
"""Makes the names inside of an SVG file reproducible."""
_UNDATED: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


class Sheet(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self, NOTEBOOK_DPI)


def sheet(width: float, height: float) -> Sheet:
    """An empty figure, in inches."""
    figure = Sheet(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.07))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, SVG or PDF, after the file's name; the same figure gives the same bytes.

    Raises:
        InputError: another kind of file.
    """
    kind = Path(path).suffix.lower()
    if kind not in _UNDATED:
        raise InputError(f"path must end in {', '.join(_UNDATED)}, but got {str(path)!r}.")
    # TrueType fonts, which journals ask for.
    with mpl.rc_context({"svg.hashsalt": SALT, "pdf.fonttype": 42}):
        figure.savefig(path, dpi=DPI, metadata=_UNDATED[kind])


def png(figure: Figure, dpi: int, transparent: bool = False) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    written = io.BytesIO()
    if transparent or not isinstance(figure, Sheet):
        figure.savefig(written, dpi=dpi, transparent=transparent, metadata=_UNDATED[".png"])
        return written.getvalue()
    # `savefig` would draw everything twice: once to find out where it goes.
    earlier = figure.dpi
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    Image.fromarray(pixels[..., :3]).save(written, "PNG", compress_level=4)
    figure.set_dpi(earlier)
    return written.getvalue()


def set_title(axes: Axes, text: str, **style: Any) -> None:
    """The title of a picture, which no tick labels stand above: else matplotlib measures them all."""
    axes.set_title(text, y=1, **style)


def wrapped(text: str, inches: float) -> str:
    """A title broken into at most LINES lines, so that it stays within its part of the figure."""
    filled = textwrap.wrap(text, max(int(inches * LETTERS), 12), max_lines=LINES, placeholder=" …")
    return "\n".join(filled)


def colour_bar(
    part: Figure | SubFigure, axes: list[Axes], signed: bool = False, ends: tuple[str, str] = ("against", "for")
) -> None:
    """The scale beside pictures: evidence from 0 to its maximum, or signed from one end to the other."""
    scale = ScalarMappable(Normalize(-1, 1), SIGNED) if signed else ScalarMappable(Normalize(0, 1), EVIDENCE)
    bar = part.colorbar(scale, ax=axes, shrink=0.85, aspect=28, pad=0.02)
    if signed:
        bar.set_ticks([-1, 0, 1], labels=[ends[0], "0", ends[1]])
    else:
        bar.set_ticks([0, 0.5, 1])
        bar.set_label("evidence / its maximum")
    bar.outline.set_visible(False)


def bare(*axes: Axes) -> None:
    """Hide ticks, labels and frames."""
    for cell in axes:
        cell.set_axis_off()


def open_frame(axes: Axes) -> None:
    """Hide the upper and the right side of the frame."""
    axes.spines[["top", "right"]].set_visible(False)
