"""How the score splits at the input and at every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ._colours import BIAS, INK, INPUT, REMAINDER
from ._drawing import numbers
from ._presentation import check_sample
from ._sheet import open_frame, sheet, wrapped

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..explanation import Explanation

PALE = 0.3


def decomposition(explanation: Explanation, sample: int = 0, title: str = "") -> Figure:
    """Draw score = activation part + bias part + remainder as stacked bars over depth; the line is the score.

    Depth 0 is the input. Parts against the target hang below zero. Where some of the network's paths pass beside a
    layer, its remainder holds what flows there, and its bar is pale (`Completeness.is_cut` is False).

    Args:
        explanation: of any number of spatial axes.
        sample: which image of the explanation.
        title: shown above the bars, such as the class.
    """
    check_sample(explanation, sample)
    parts = parts_over_depth(explanation, sample)
    whole = [True, *explanation.completeness.is_cut.tolist()]
    score = float(explanation.completeness.score[sample])
    figure = sheet(9, 3.2)
    axes = figure.subplots()
    depth = np.arange(parts.shape[1])
    above, below = np.zeros(len(depth)), np.zeros(len(depth))
    for values, colour in zip(numbers(parts), (INPUT, BIAS, REMAINDER), strict=True):
        bars = axes.bar(depth, values, bottom=np.where(values >= 0, above, below), color=colour, width=0.8)
        for bar, passes in zip(bars, whole, strict=True):
            bar.set_alpha(1 if passes else PALE)
        above += values.clip(0)
        below += values.clip(max=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    line = axes.axhline(score, color=INK, linewidth=1.2, linestyle="--", label=f"score {score:.2f}")
    names = [(INPUT, "activations (at 0: input)"), (BIAS, "biases behind them"), (REMAINDER, "remainder")]
    keys = [line, *(Patch(color=colour, label=name) for colour, name in names)]
    if not all(whole):
        keys.append(Patch(color=REMAINDER, alpha=PALE, label="pale: paths pass beside the layer"))
    axes.set(xlabel="layer, from input (0) to output", ylabel="part of the score", xlim=(-0.7, len(depth) - 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    open_frame(axes)
    axes.set_title(wrapped(title, 9), fontsize=10)
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def parts_over_depth(explanation: Explanation, sample: int) -> Float[Tensor, "3 depth"]:
    """Activation part, bias part and remainder at the input and at every tap; columns sum to the score."""
    split = explanation.completeness
    at_input = torch.stack([split.input[sample], split.bias[sample], split.remainder[sample]])
    at_taps = torch.stack([split.activation[sample], split.tap_bias[sample], split.bypass[sample]])
    return torch.cat([at_input[:, None].to(at_taps), at_taps], 1)
