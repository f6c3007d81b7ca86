"""`icam explain`: images in, pictures and numbers out; one bad image does not stop the others."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from .._choices import TASKS
from ..errors import CamError, ModelError, first_line
from ..methods._registry import Method
from ..models import Network, load
from ..query import (
    RECORD,
    Answer,
    Prediction,
    Question,
    ResolvedTarget,
    answer_question,
    example_photograph,
    predict,
    short_name,
)
from ..recipe import Recipe, one_of
from ..render import contour, decomposition, overlay, panel
from ..render._overlay import enlarged
from ..render._sheet import png
from ..storage import MANIFEST, replaced_folder
from ._printed import print_answer, print_summary, record_with_files, report_failures

DPI = 110
MIN_SIDE = 224
"""Smallest shorter side of a picture, about, in pixels: a photograph of 32 would be a stamp."""


NetworkOptions = tuple[str, Path | None, Path | None, str | None]
"""--model, --weights, --labels and --task."""


def explain_images(
    images: Sequence[Path],
    options: NetworkOptions,
    question: Question,
    out: Path,
    method: Method,
    as_json: bool,
    debug: bool,
) -> int:
    """Explain every image; 0, or 1 if any failed."""
    if isinstance(method.way, Recipe):
        method.way.validate()
    images = images or [example_photograph()]
    network = network_of(*options)
    question.check(network)

    records: list[dict[str, Any]] = []
    failures: list[tuple[Path, str]] = []
    work = list(zip(images, _folders(images, out), strict=True))
    for path, folder in work if len(work) == 1 else track(work, "Explaining", console=Console(stderr=True)):
        try:
            answers = answer_question(question, predict(path, network, question.step), method)
            folders = [_folder_of(answer, folder, rank, len(answers)) for rank, answer in enumerate(answers, 1)]
            for answer, place in zip(answers, folders, strict=True):
                write_answer(answer, place)
        except (CamError, OSError, RuntimeError) as error:
            if debug:
                raise
            failures.append((path, first_line(error)))
            continue
        for answer, place in zip(answers, folders, strict=True):
            records.append(record_with_files(answer, place))
            if len(images) == 1 and not as_json:
                print_answer(answer, place)
    if as_json:
        failed = [{"image": str(path), "error": reason} for path, reason in failures]
        print(json.dumps({"explanations": records, "failures": failed}, indent=2))
    elif len(images) > 1 and records:
        print_summary(records)
    return report_failures(failures, len(images))


def write_answer(answer: Answer, folder: Path) -> None:
    """Write the pictures, the record and the explanation to a folder, all or none."""
    prediction, saliency = enlarge(answer.prediction, answer.explanation.map[0]), answer.explanation.map[0]
    title, region = f"Why {short_name(answer.title)}", prediction.view.region
    with replaced_folder(folder, f"explanation/{MANIFEST}") as draft:
        drawn = overlay(saliency, prediction.photograph, region)
        outlined(drawn, prediction, answer.target).save(draft / "overlay.png")
        photograph = outlined(prediction.photograph, prediction, answer.target)
        (draft / "panel.png").write_bytes(png(panel(answer.explanation, photograph, title, region=region), DPI))
        (draft / "decomposition.png").write_bytes(png(decomposition(answer.explanation, title=title), DPI))
        (draft / RECORD).write_text(json.dumps(answer.record, indent=2) + "\n", "utf-8")
        answer.explanation.save(draft / "explanation")


def enlarge(prediction: Prediction, saliency: torch.Tensor) -> Prediction:
    """The same, with a photograph that is large enough to draw the map on."""
    photograph, region = enlarged(prediction.photograph, saliency, prediction.view.region, MIN_SIDE)
    view = replace(prediction.view, photograph=photograph, region=region or prediction.view.region)
    return replace(prediction, photograph=photograph, view=view)


def outlined(picture: Image, prediction: Prediction, target: ResolvedTarget) -> Image:
    """A picture of the photograph with a line around the part that the score is read from, if it is a part."""
    if target.outline is None:
        return picture
    if isinstance(target.outline, torch.Tensor):
        return contour(target.outline.float(), picture, region=prediction.view.region)
    return contour(torch.ones(1, 1), picture, region=prediction.to_photograph(target.outline))


def network_of(model: str, weights: Path | None, labels: Path | None, task: str | None = None) -> Network:
    """The network that the options ask for; what was assumed about it goes to standard error."""
    if task is not None:
        one_of("--task", task, TASKS)
    network = announced(load(model, weights))
    network = network if task is None else replace(network, task=task)
    return network if labels is None else replace(network, labels=_labels(labels))


def announced(network: Network) -> Network:
    """The network, after its notes went to standard error."""
    for note in network.notes:
        print(f"icam: {note}", file=sys.stderr)
    return network


def _folders(images: Sequence[Path], out: Path) -> Iterator[Path]:
    """A folder per image, named after the file; a name that comes again gets a number."""
    taken: set[str] = set()
    for image in images:
        numbered = (f"{image.stem}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([image.stem], numbered) if name not in taken)
        taken.add(name)
        yield out / name


def _folder_of(answer: Answer, folder: Path, rank: int, count: int) -> Path:
    """The folder of an image's only target, or one per target, numbered and named after it."""
    return folder if count == 1 else folder.with_name(f"{folder.name}-{rank}-{_slug(answer.target.label)}")


def _labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"labels {path}: cannot be read ({error}).") from None


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.split(",")[0].lower()).strip("-")
