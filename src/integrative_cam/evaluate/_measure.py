"""One photograph under one network: what is explained in it, and the values of all metrics for all methods."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._choices import PROBABILITY_TASKS
from ..errors import CamError, InputError, first_line
from ..integrations._libraries import named
from ..models import Network, load
from ..models._image import read_classes
from ..query import Prediction, predict, probabilities
from ..run._failures import DestinationError
from ..run._store import Store
from ..targets import class_scores
from ._benchmark import GRID, LOCALISATION, MAX_BOX, Regions, evaluate
from ._dataset import Sample, objects_in, read_boxes, target_of
from ._ground_truth import SURE
from ._localisation import mask_of_boxes

CONTROLS = ("center", "uniform", "random")
"""Methods that look at no network; any method should locate objects better than they do."""
LARGEST_SHARE = 0.5
"""An object that covers this share of the view, or more, is not measured: any map finds it."""


@dataclass(frozen=True)
class Settings:
    """What makes two evaluations comparable; it is the manifest. See `evaluate_dataset`.

    `models` maps names to files of weights, "" for a library's own.
    """

    dataset: str
    models: dict[str, str]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    target: str | None
    regions: str | None
    limit: int | None
    steps: int
    seed: int
    cells: int
    integrative_cam: str
    torch: str
    python: str

    @property
    def metrics_by_method(self) -> dict[str, tuple[str, ...]]:
        """The metrics of each method; where objects are located, the controls join for the metrics that ask where."""
        where = tuple(metric for metric in self.metrics if metric in LOCALISATION)
        controls = [name for name in CONTROLS if where and name not in self.methods]
        return dict.fromkeys(self.methods, self.metrics) | dict.fromkeys(controls, where)


@dataclass(frozen=True)
class Part:
    """A photograph under a network, measured by one worker at a time; `file` is where its rows are stored.

    `others` are photographs that may join it in a mosaic.
    """

    model: str
    sample: Sample
    file: str
    others: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What became of a part: why it could not be measured, if it could not; and the network's notes."""

    part: Part
    failure: str | None
    notes: tuple[str, ...]


def start_measuring(
    settings: Settings, out: str, _place: int, _tell: Callable[[int], None]
) -> AbstractContextManager[Callable[[Part], Measured]]:
    """A worker for `run_parts`, which keeps the last network."""
    store, load_cached = Store(out), lru_cache(maxsize=1)(load)

    def measure_and_store(part: Part) -> Measured:
        weights = settings.models[part.model]
        network = load_cached(part.model, Path(weights) if weights else None)
        try:
            store.write(part.file, json.dumps(measure(network, part, settings)).encode())
        except DestinationError:
            raise
        except (CamError, RuntimeError) as error:
            return Measured(part, first_line(error), network.notes)
        return Measured(part, None, network.notes)

    return nullcontext(measure_and_store)


def measure(network: Network, part: Part, settings: Settings) -> dict[str, Any]:
    """Measure all methods on a photograph.

    Gives `rows`, one per object, method and metric, and `left_out`, the reasons why objects were not measured. A row of
    `maxboxacc` has `hits`, the numbers of the thresholds at which the box is found, instead of a `value`.
    """
    if network.task not in PROBABILITY_TASKS:
        tasks = " and ".join(PROBABILITY_TASKS)
        raise InputError(f"model {part.model!r}: its task is {network.task}; metrics are for {tasks}.")
    prediction = predict(part.sample.path, network)
    network, view = prediction.network, prediction.view
    evaluate_maps = partial(
        evaluate, network.model, view.tensor, steps=settings.steps, seed=settings.seed, task=network.task,
        cells=settings.cells,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    sure = _sure_photographs(network, part.others)
    with warnings.catch_warnings():
        # A blank map needs no warning here: its metrics show it.
        warnings.filterwarnings("ignore", message="The map of image")
        for name, target, regions in _objects_to_explain(prediction, part.sample, settings, left_out):
            answers: dict[tuple[object, ...], Any] = {}
            companions = None
            if part.others:
                try:
                    companions = _companions(prediction, target, sure)
                except InputError as reason:
                    left_out.append(f"{GRID}: {reason}")
            for method, asked in settings.metrics_by_method.items():
                metrics = [metric for metric in asked if metric != GRID or companions is not None]
                if not metrics:
                    continue
                explainer = named(method).for_task(network.task)
                values = evaluate_maps(
                    explainer, metrics, target=target, regions=regions, answers=answers, companions=companions
                )
                about = {"model": part.model, "image": part.sample.name, "object": name, "target": target}
                for metric, value in values.items():
                    hits = metric == MAX_BOX
                    result = {"hits": value[0].nonzero()[:, 0].tolist()} if hits else {"value": value.item()}
                    rows.append({**about, "method": method, "metric": metric, **result})
    return {"rows": rows, "left_out": left_out}


def _sure_photographs(network: Network, others: Sequence[Sample]) -> dict[int, Tensor]:
    """By class, up to four photographs of whose top class the network is sure; three of them differ from any class."""
    photographs: dict[int, Tensor] = {}
    for sample in others:
        try:
            prediction = predict(sample.path, network)
        except CamError:
            continue  # it fails, and is reported, as a photograph of its own
        chances = probabilities(class_scores(prediction.output[None], "target")[0], network.task)
        if chances.max() >= SURE:
            photographs.setdefault(int(chances.argmax()), prediction.view.tensor)
        if len(photographs) == 4:
            break
    return photographs


def _companions(prediction: Prediction, target: int | None, photographs: Mapping[int, Tensor]) -> Tensor:
    """Three photographs of other classes, (1, 3, channel, height, width); InputError where there can be no mosaic."""
    chances = probabilities(class_scores(prediction.output[None], "target")[0], prediction.network.task)
    target = int(chances.argmax()) if target is None else target
    if chances[target] < SURE:
        raise InputError(f"the network is not sure of the class (below {SURE})")
    others = [tensor for index, tensor in photographs.items() if index != target][:3]
    if len(others) < 3:
        raise InputError("too few photographs of other classes of which the network is sure")
    return torch.stack(others, 1)


def _objects_to_explain(
    prediction: Prediction, sample: Sample, settings: Settings, left_out: list[str]
) -> Iterator[tuple[str | None, int | None, Regions | None]]:
    """Each object's name, target and regions; why objects cannot be used is added to `left_out`."""
    if settings.target == "top1":
        yield None, None, None
    elif settings.target == "label":
        if not sample.label:
            raise InputError(f"{sample.path}: has no label.")
        yield None, prediction.network.index(sample.label), None
    else:
        logits = class_scores(prediction.output[None], "target")[0]
        for name, regions in _regions_of_objects(prediction, sample, settings.regions).items():
            share = regions.masks.double().mean().item()
            try:
                if share == 0:
                    raise InputError(f"{name} is cropped away")
                if share >= LARGEST_SHARE:
                    raise InputError(f"{name} covers half of the view or more")
                target = target_of(name, prediction.network.labels, logits)
            except InputError as reason:
                left_out.append(str(reason))
            else:
                yield name, target, regions


def _regions_of_objects(prediction: Prediction, sample: Sample, kind: str | None) -> dict[str, Regions]:
    """Where each class of objects is in the network's view; nowhere, if it was cropped away."""
    preprocessing, photograph = prediction.network.preprocessing, prediction.photograph
    if kind == "boxes":
        assert sample.boxes is not None
        boxes = {
            name: preprocessing.boxes(boxes, photograph.size)
            for name, boxes in sorted(read_boxes(sample.boxes, photograph.size).items())
        }
        return {name: Regions(mask_of_boxes(seen, preprocessing.crop)[None], (seen,)) for name, seen in boxes.items()}
    assert sample.masks is not None
    classes = read_classes(sample.masks)
    if classes.shape != photograph.size[::-1]:
        raise InputError(f"{sample.masks}: must have the size of {sample.path}, {photograph.size}.")
    seen = preprocessing.classes(classes)
    return {name: Regions((seen == index)[None]) for name, index in objects_in(classes).items()}
