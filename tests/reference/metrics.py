"""The evaluation metrics, one image at a time: an image is (channel, height, width), a map and a mask (height, width).

The network is given as a function from an image to the target's probability, ties as each flat position's turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .arrays import Array, positions

Mask = npt.NDArray[np.bool_]
Probability = Callable[[Array], float]

NEIGHBOURS = {
    (row, column): 1 / 6 if row == 0 or column == 0 else 1 / 12
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
}


def blurred(image: Array, sigma: float) -> Array:
    """Normalised Gaussian weights up to three sigma in each axis; beyond the border lies the border's pixel."""
    radius = math.ceil(3 * sigma)
    offsets = range(-radius, radius + 1)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets]
    result = np.zeros(image.shape)
    for channel, y, x in positions(image.shape):
        total = 0.0
        for dy, by_row in zip(offsets, weights, strict=True):
            for dx, by_column in zip(offsets, weights, strict=True):
                row = min(max(y + dy, 0), image.shape[1] - 1)
                column = min(max(x + dx, 0), image.shape[2] - 1)
                total += by_row * by_column * float(image[channel, row, column])
        result[channel, y, x] = total / sum(weights) ** 2
    return result


def imputed(image: Array, removed: Mask) -> Array:
    """One equation per removed pixel, solved densely: the mean of its neighbours, those outside left out."""
    unknown = [place for place in positions(removed.shape) if removed[place]]
    number = {place: index for index, place in enumerate(unknown)}
    matrix = np.zeros((len(unknown), len(unknown)))
    right = np.zeros((len(unknown), image.shape[0]))
    for (y, x), equation in number.items():
        for (dy, dx), weight in NEIGHBOURS.items():
            place = (y + dy, x + dx)
            if not (0 <= place[0] < removed.shape[0] and 0 <= place[1] < removed.shape[1]):
                continue
            matrix[equation, equation] += weight
            if place in number:
                matrix[equation, number[place]] -= weight
            else:
                for channel in range(image.shape[0]):
                    right[equation, channel] += weight * float(image[channel, place[0], place[1]])
    solution = np.linalg.solve(matrix, right)
    result = image.copy()
    for (y, x), equation in number.items():
        for channel in range(image.shape[0]):
            result[channel, y, x] = solution[equation, channel]
    return result


def ranking(values: Array, turns: Sequence[int]) -> list[tuple[int, ...]]:
    """Positions, highest value first; equal ones by their turn."""
    places = list(positions(values.shape))
    return [
        places[index]
        for index in sorted(range(len(places)), key=lambda index: (-float(values[places[index]]), turns[index]))
    ]


def cells_of(shape: Sequence[int], side: int) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """The positions in each cell, by its row and column among the cells."""
    cells: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for place in positions(shape):
        cells.setdefault(tuple(at // side for at in place), []).append(place)
    return dict(sorted(cells.items()))


def cell_sums(values: Array, side: int) -> dict[tuple[int, ...], float]:
    """The sum over each cell."""
    return {
        cell: sum(float(values[place]) for place in places) for cell, places in cells_of(values.shape, side).items()
    }


def cell_ranking(values: Array, turns: Sequence[int], side: int) -> list[list[tuple[int, ...]]]:
    """The positions in each cell, highest mean first; equal ones by their turn."""
    cells, sums = cells_of(values.shape, side), cell_sums(values, side)
    turn = dict(zip(cells, turns, strict=True))
    ranked = sorted(cells, key=lambda cell: (-sums[cell] / len(cells[cell]), turn[cell]))
    return [cells[cell] for cell in ranked]


def without(image: Array, background: Array, places: Sequence[tuple[int, ...]]) -> Array:
    """The image with the background in some places."""
    seen = image.copy()
    for place in places:
        for channel in range(image.shape[0]):
            seen[(channel, *place)] = background[(channel, *place)]
    return seen


def single_cell(logit: Probability, image: Array, background: Array, values: Array, side: int) -> float:
    """Rank correlation of the cells' sums with how far the logit falls without each."""
    sums = np.array(list(cell_sums(values, side).values()))
    whole = logit(image)
    falls = [whole - logit(without(image, background, places)) for places in cells_of(values.shape, side).values()]
    return rank_correlation(sums, np.array(falls))


def faithfulness_correlation(
    logit: Probability, image: Array, background: Array, values: Array, side: int, sets: Mask
) -> float:
    """Partial correlation of the kept sum with the logit given the number of kept cells, by its textbook formula."""
    cells, sums = list(cells_of(values.shape, side).values()), list(cell_sums(values, side).values())
    parts, logits, numbers = [], [], []
    for kept in sets:
        gone = [place for cell, stays in zip(cells, kept, strict=True) if not stays for place in cell]
        parts.append(sum(value for value, stays in zip(sums, kept, strict=True) if stays))
        logits.append(logit(without(image, background, gone)))
        numbers.append(float(sum(kept)))
    both, left, right = (
        2 * coherency(np.array(one), np.array(other)) - 1
        for one, other in ((parts, logits), (parts, numbers), (logits, numbers))
    )
    return (both - left * right) / math.sqrt((1 - left**2) * (1 - right**2))


def relevance_gain(
    probability: Probability, image: Array, background: Array, groups: Sequence[list[tuple[int, ...]]], steps: int
) -> float:
    """Area with the last groups replaced first minus that with the first replaced first."""
    areas = []
    for ordered in (groups[::-1], groups):
        shares, curve = [], []
        for step in range(steps + 1):
            count = round(step * len(groups) / steps)
            gone = [place for group in ordered[:count] for place in group]
            shares.append(count / len(groups))
            curve.append(probability(without(image, background, gone)))
        areas.append(area_under(shares, curve))
    return areas[0] - areas[1]


def replacement_curve(
    probability: Probability,
    image: Array,
    background: Array,
    values: Array,
    turns: Sequence[int],
    steps: int,
    insert: bool,
    side: int | None = None,
) -> tuple[list[float], list[float]]:
    """(shares, probabilities): the first pixels of the ranking, or cells, show the image (insert) or the background."""
    groups = [[place] for place in ranking(values, turns)] if side is None else cell_ranking(values, turns, side)
    below, above = (background, image) if insert else (image, background)
    shares, found = [], []
    for step in range(steps + 1):
        count = round(step * len(groups) / steps)
        shares.append(count / len(groups))
        found.append(probability(without(below, above, [place for group in groups[:count] for place in group])))
    return shares, found


def imputation_curve(
    probability: Probability,
    image: Array,
    field: Array,
    values: Array,
    turns: Sequence[int],
    steps: int,
    insert: bool,
) -> list[float]:
    """Probabilities as pixels of the ranking go (or come back, insert), replaced from those there plus the field."""
    places = ranking(values, turns)
    found = []
    for step in range(steps + 1):
        count = round(step * len(places) / steps)
        # One pixel is always there: the first to come or the last to go.
        gone = places[max(count, 1) :] if insert else places[: min(count, len(places) - 1)]
        removed = np.zeros(values.shape, dtype=bool)
        for place in gone:
            removed[place] = True
        seen = imputed(image, removed)
        for y, x in gone:
            for channel in range(image.shape[0]):
                seen[channel, y, x] += field[channel, y, x]
        found.append(probability(seen))
    return found


def area_under(shares: Sequence[float], curve: Sequence[float]) -> float:
    """Trapezoids."""
    total = 0.0
    for index in range(1, len(shares)):
        total += (shares[index] - shares[index - 1]) * (curve[index] + curve[index - 1]) / 2
    return total


def dimmed(image: Array, values: Array) -> Array:
    """The image times its map."""
    result = np.zeros(image.shape)
    for channel, y, x in positions(image.shape):
        result[channel, y, x] = image[channel, y, x] * values[y, x]
    return result


def drop(probability: Probability, image: Array, values: Array) -> float:
    """The share of the probability that dimming takes."""
    whole = probability(image)
    return max(0.0, whole - probability(dimmed(image, values))) / whole


def increase(probability: Probability, image: Array, values: Array) -> float:
    """1 if dimming adds probability."""
    return float(probability(dimmed(image, values)) > probability(image))


def road(
    probability: Probability,
    image: Array,
    values: Array,
    turns: Sequence[int],
    shares: Sequence[float],
    most: bool,
    side: int | None = None,
) -> float:
    """The mean probability with the first or the last pixels of the ranking, or cells, imputed."""
    groups = [[place] for place in ranking(values, turns)] if side is None else cell_ranking(values, turns, side)
    if not most:
        groups.reverse()
    found = []
    for share in shares:
        removed = np.zeros(values.shape, dtype=bool)
        for group in groups[: min(round(share * len(groups)), len(groups) - 1)]:
            for place in group:
                removed[place] = True
        found.append(probability(imputed(image, removed)))
    return sum(found) / len(found)


def complexity(values: Array) -> float:
    """mean|map|."""
    return sum(abs(float(values[place])) for place in positions(values.shape)) / values.size


def area(values: Array) -> float:
    """How many positions exceed half of the maximum, and zero."""
    highest = max(float(values[place]) for place in positions(values.shape))
    above = sum(float(values[place]) > max(highest, 0) / 2 for place in positions(values.shape))
    return above / values.size


def total_variation(values: Array) -> float:
    """The mean step to the right or downwards."""
    steps = []
    for y, x in positions(values.shape):
        if y + 1 < values.shape[0]:
            steps.append(abs(float(values[y + 1, x]) - float(values[y, x])))
        if x + 1 < values.shape[1]:
            steps.append(abs(float(values[y, x + 1]) - float(values[y, x])))
    return sum(steps) / len(steps) if steps else 0.0


def coherency(left: Array, right: Array) -> float:
    """(Pearson correlation + 1) / 2; correlation 0 where it is undefined."""
    pairs = [(float(left[place]), float(right[place])) for place in positions(left.shape)]
    if len({one for one, _ in pairs}) == 1 or len({other for _, other in pairs}) == 1:
        return 0.5
    mean_left = sum(one for one, _ in pairs) / len(pairs)
    mean_right = sum(other for _, other in pairs) / len(pairs)
    mixed = sum((one - mean_left) * (other - mean_right) for one, other in pairs)
    square_left = sum((one - mean_left) ** 2 for one, _ in pairs)
    square_right = sum((other - mean_right) ** 2 for _, other in pairs)
    return (mixed / math.sqrt(square_left * square_right) + 1) / 2


def harmonic_mean(parts: Sequence[float]) -> float:
    """Of non-negative parts; 0 with a part of 0."""
    return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / part for part in parts)


def mask_of_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Mask:
    """Pixels whose centre is in a box, its left and upper edge included."""
    result = np.zeros(size, dtype=bool)
    for y, x in positions(size):
        for left, top, right, bottom in boxes:
            if left <= x + 0.5 < right and top <= y + 0.5 < bottom:
                result[y, x] = True
    return result


def pointing(values: Array, mask: Mask) -> float:
    """The share of the maxima in the mask."""
    highest = max(float(values[place]) for place in positions(values.shape))
    maxima = [place for place in positions(values.shape) if float(values[place]) == highest]
    return sum(bool(mask[place]) for place in maxima) / len(maxima)


def energy(values: Array, mask: Mask) -> float:
    """The share of the sum in the mask."""
    everything = sum(float(values[place]) for place in positions(values.shape))
    inside = sum(float(values[place]) for place in positions(values.shape) if mask[place])
    return inside / everything if everything > 0 else 0.0


def top_share(values: Array, mask: Mask, turns: Sequence[int], share: float) -> float:
    """The share of the first pixels of the ranking that is in the mask."""
    places = ranking(values, turns)[: max(1, round(share * values.size))]
    return sum(bool(mask[place]) for place in places) / len(places)


def best_iou(values: Array, mask: Mask) -> float:
    """The best of 100 thresholds from 0 on."""
    highest = max(float(values[place]) for place in positions(values.shape))
    if highest <= 0:
        return 0.0
    best = 0.0
    for step in range(100):
        both = either = 0
        for place in positions(values.shape):
            above = float(values[place]) / highest > step / 100
            both += above and bool(mask[place])
            either += above or bool(mask[place])
        best = max(best, both / either)
    return best


def box_found(values: Array, boxes: Sequence[Sequence[float]], threshold: float) -> bool:
    """Flood fill of every part above the threshold; the box around the largest, met first, overlaps one by half."""
    highest = max(float(values[place]) for place in positions(values.shape))
    if highest <= 0:
        return False
    free = {place for place in positions(values.shape) if float(values[place]) / highest > threshold}
    largest: list[tuple[int, ...]] = []
    for start in positions(values.shape):
        if start not in free:
            continue
        free.remove(start)
        part, waiting = [start], [start]
        while waiting:
            y, x = waiting.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in free:
                    free.remove(near)
                    part.append(near)
                    waiting.append(near)
        if len(part) > len(largest):
            largest = part
    left, right = min(x for _, x in largest), max(x for _, x in largest) + 1
    top, bottom = min(y for y, _ in largest), max(y for y, _ in largest) + 1
    for a, b, c, d in boxes:
        width, height = max(0.0, min(right, c) - max(left, a)), max(0.0, min(bottom, d) - max(top, b))
        union = (right - left) * (bottom - top) + (c - a) * (d - b) - width * height
        if width * height / union >= 0.5:
            return True
    return False


def win_rate(left: Sequence[float], right: Sequence[float]) -> float:
    """Wins and half of the ties, counted."""
    points = 0.0
    for ours, theirs in zip(left, right, strict=True):
        points += 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
    return points / len(left)


def mean_rank(table: Sequence[Sequence[float]]) -> list[float]:
    """Places on the sorted row; equal values share the mean of their places."""
    totals = [0.0] * len(table[0])
    for row in table:
        placed = sorted(row, reverse=True)
        for method, value in enumerate(row):
            places = [place for place, other in enumerate(placed, 1) if other == value]
            totals[method] += sum(places) / len(places)
    return [total / len(table) for total in totals]


def ranks(values: Array) -> list[float]:
    """1 for the smallest; equal values share the mean of their places."""
    flat = [float(values[place]) for place in positions(values.shape)]
    placed = sorted(flat)
    found = []
    for value in flat:
        places = [place for place, other in enumerate(placed, 1) if other == value]
        found.append(sum(places) / len(places))
    return found


def rank_correlation(left: Array, right: Array) -> float:
    """Pearson correlation of the ranks; 0 where one map is constant."""
    return 2 * coherency(np.array(ranks(left)), np.array(ranks(right))) - 1


def mosaic(parts: Sequence[Array]) -> Array:
    """Four images (channel, height, width), of even sides, each averaged over squares of 2 x 2 pixels, row by row."""
    channels, height, width = parts[0].shape
    result = np.zeros(parts[0].shape)
    for place, part in enumerate(parts):
        for channel, y, x in positions((channels, height // 2, width // 2)):
            square = [float(part[channel, 2 * y + dy, 2 * x + dx]) for dy in (0, 1) for dx in (0, 1)]
            result[channel, y + place // 2 * (height // 2), x + place % 2 * (width // 2)] = sum(square) / 4
    return result


def quadrant(shape: Sequence[int], place: int) -> Mask:
    """True in one quarter of an image."""
    mask = np.zeros(shape, dtype=bool)
    for y, x in positions(shape):
        mask[y, x] = (y >= shape[0] // 2, x >= shape[1] // 2) == (place // 2 == 1, place % 2 == 1)
    return mask
