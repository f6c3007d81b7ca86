"""Scores of one sample's output, by loops: classes, regions, boxes, FastestDet's cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .arrays import Array, positions


def probability(logits: Sequence[float], index: int) -> float:
    """Softmax."""
    return math.exp(logits[index]) / sum(math.exp(each) for each in logits)


def log_odds(probability: float) -> float:
    """log(p / (1 - p))."""
    return math.log(probability / (1 - probability))


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """<l, r> / (|l| |r|)."""
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(sum(a * a for a in left)) / math.sqrt(sum(b * b for b in right))


def mean_inside(values: Array, inside: npt.NDArray[np.bool_]) -> float:
    """Of the values at the positions that are inside."""
    chosen = [float(values[place]) for place in positions(values.shape) if inside[place]]
    return sum(chosen) / len(chosen)


def inside_box(box: Sequence[float], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels whose centre lies in (left, top, right, bottom)."""
    left, top, right, bottom = box
    found = np.zeros((height, width), dtype=bool)
    for y, x in positions((height, width)):
        found[y, x] = left <= x + 0.5 < right and top <= y + 0.5 < bottom
    return found


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def match(box: Sequence[float], boxes: Sequence[Sequence[float]], scores: Sequence[float], least: float) -> int | None:
    """The box with the largest overlap * score among those with an overlap of `least` or more; the first of equals."""
    best, place = -1.0, None
    for number, (other, score) in enumerate(zip(boxes, scores, strict=True)):
        found = overlap(box, other)
        if found >= least and found * score > best:
            best, place = found * score, number
    return place


def fastestdet(cells: Array) -> list[tuple[list[float], list[float]]]:
    """Box and class scores of each cell, row by row: (5 + classes, height, width), 16 pixels per cell."""
    found = []
    for row, column in positions(cells.shape[1:]):
        objectness, shift_x, shift_y, wide, high, *classes = cells[:, row, column].tolist()
        x, y = 16 * (column + math.tanh(shift_x)), 16 * (row + math.tanh(shift_y))
        width = 16 * cells.shape[2] / (1 + math.exp(-wide))
        height = 16 * cells.shape[1] / (1 + math.exp(-high))
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        found.append((box, [objectness**0.6 * each**0.4 for each in classes]))
    return found
