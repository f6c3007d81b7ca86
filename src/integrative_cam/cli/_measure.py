"""One photograph under one network: what to explain in it, and the values of all metrics for all methods."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image

from ..errors import InputError
from ..evaluate import mask_of_boxes
from ..evaluate._benchmark import LOCALISATION, MAX_BOX, Regions, evaluate
from ..evaluate._dataset import Sample, objects_in, read_boxes, target_of
from ..integrations._libraries import named
from ..methods._registry import list_methods
from ..models import Network, View, read_image
from ..models._image import read_classes
from ..targets import class_scores, logits_of

if TYPE_CHECKING:
    from ._evaluate import Settings

CONTROLS = ("center", "uniform", "random")
LARGEST = 0.5
"""An object that covers as much of the view, or more, is found by any map."""


@dataclass(frozen=True)
class ResolvedTarget:
    """What is explained: a class, or the network's own top class where `target` is None; and where it is."""

    name: str | None = None
    target: int | None = None
    regions: Regions | None = None


def lineup(settings: Settings) -> list[tuple[str, tuple[str, ...]]]:
    """Each method with its metrics; controls that were not asked for join where it is asked where an object is."""
    where = tuple(metric for metric in settings.metrics if metric in LOCALISATION)
    known = {each.name for each in list_methods()}
    joining = [name for name in CONTROLS if where and name in known and name not in settings.methods]
    return [(name, settings.metrics) for name in settings.methods] + [(name, where) for name in joining]


def measured(network: Network, model: str, sample: Sample, settings: Settings) -> dict[str, Any]:
    """`rows`, one per object, method and metric; and `left_out`, the objects that were not measured, with the reason.

    A row of `maxboxacc` has `hits`, the numbers of the thresholds at which the box is found, and no value yet.
    """
    photograph = read_image(sample.path)
    view = network.preprocessing(photograph)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    with warnings.catch_warnings():
        # A blank map is no accident here: its metrics show it.
        warnings.filterwarnings("ignore", message="The map of image")
        for aim in aims(network, photograph, view, sample, settings, left_out):
            for name, metrics in lineup(settings):
                found = evaluate(
                    network.model, view.tensor, named(name), metrics, settings.steps, settings.seed, aim.target,
                    aim.regions,
                )  # fmt: skip
                about = {"model": model, "image": sample.name, "object": aim.name, "target": aim.target, "method": name}
                for metric, value in found.items():
                    result = (
                        {"hits": value[0].nonzero()[:, 0].tolist()} if metric == MAX_BOX else {"value": value.item()}
                    )
                    rows.append({**about, "metric": metric, **result})
    return {"rows": rows, "left_out": left_out}


def aims(
    network: Network, photograph: Image, view: View, sample: Sample, settings: Settings, left_out: list[str]
) -> Iterator[ResolvedTarget]:
    """The top class, the label, or one aim per class of objects; a reason joins `left_out` for each not usable."""
    if settings.target == "top1":
        yield ResolvedTarget()
    elif settings.target == "label":
        if not sample.label:
            raise InputError(f"{sample.path}: has no label.")
        yield ResolvedTarget(target=network.index(sample.label))
    else:
        with torch.no_grad():
            logits = class_scores(logits_of(network.model(view.tensor)), "target")[0]
        for name, regions in _objects(network, photograph, sample, settings.regions).items():
            share = regions.masks.double().mean().item()
            try:
                if share == 0:
                    raise InputError(f"{name} is cropped away")
                if share >= LARGEST:
                    raise InputError(f"{name} covers half of the view or more")
                target = target_of(name, network.labels, logits)
            except InputError as reason:
                left_out.append(str(reason))
            else:
                yield ResolvedTarget(name, target, regions)


def _objects(network: Network, photograph: Image, sample: Sample, kind: str | None) -> dict[str, Regions]:
    """Where the network sees each class of objects; all blank if it was cropped away."""
    preprocessing = network.preprocessing
    if kind == "boxes":
        assert sample.boxes is not None
        boxes = {
            name: preprocessing.boxes(each, photograph.size)
            for name, each in read_boxes(sample.boxes, photograph.size).items()
        }
        return {
            name: Regions(mask_of_boxes(seen, preprocessing.crop)[None], (seen,))
            for name, seen in sorted(boxes.items())
        }
    assert sample.masks is not None
    classes = read_classes(sample.masks)
    if classes.shape != photograph.size[::-1]:
        raise InputError(f"{sample.masks}: must have the size of {sample.path}, {photograph.size}.")
    seen = preprocessing.classes(classes)
    return {name: Regions((seen == index)[None]) for name, index in objects_in(classes).items()}
