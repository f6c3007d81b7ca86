"""`icam explain`: images in, pictures and numbers out; one bad image does not stop the others."""

from __future__ import annotations

import itertools
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from ..errors import CamError, InputError, MissingExtraError, ModelError, first_line
from ..explanation import Explanation
from ..methods._registry import Method
from ..models import Network, load
from ..models._network import TASKS
from ..recipe import Recipe, one_of
from ..render import decomposition, overlay, panel
from ..render._outline import contour
from ..render._overlay import enlarged
from ..storage import MANIFEST, replaced_folder
from ._aims import Asked, ResolvedTarget, aims, check
from ._printed import as_record, brief, print_explanation, print_summary, report_failures, stored_record
from ._sight import Prediction, Ranking, predict, ranking_of

LEAST = 224
"""Pixels, about, of a picture's shorter side: a photograph of 32 would be a stamp."""
RECORD = "record.json"
"""Beside the pictures: what the network said, in words; `icam report` reads it."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    images: tuple[Path, ...]
    model: str
    weights: Path | None
    labels: Path | None
    task: str | None
    asked: Asked
    out: Path
    method: Method
    as_json: bool
    debug: bool


@dataclass(frozen=True)
class Result:
    """One explained image and target, and where its files are."""

    image: Path
    prediction: Prediction
    ranking: Ranking
    aim: ResolvedTarget
    explanation: Explanation
    method: str
    folder: Path
    notes: tuple[str, ...]

    @property
    def network(self) -> Network:
        """That was explained."""
        return self.prediction.network

    @property
    def named(self) -> str:
        """What is explained; one class with what the network says of it."""
        finding = self.aim.finding
        return self.aim.label if finding is None else f"{self.aim.label} {self.ranking.shown(finding)}"


def run(request: Request) -> int:
    """Explain every image; 0, or 1 if any failed."""
    if isinstance(request.method.way, Recipe):
        request.method.way.validate()
    images = request.images or (photograph(),)
    network = network_of(request.model, request.weights, request.labels, request.task)
    check(request.asked, network)

    records: list[dict[str, Any]] = []
    failures: list[tuple[Path, str]] = []
    for path, folder in _with_progress(list(zip(images, _folders(images, request.out), strict=True))):
        try:
            results = explain_image(path, folder, network, request)
        except (CamError, OSError, RuntimeError) as error:
            if request.debug:
                raise
            failures.append((path, first_line(error)))
            continue
        records += [as_record(result) for result in results]
        if len(images) == 1 and not request.as_json:
            for result in results:
                print_explanation(result)
    if request.as_json:
        failed = [{"image": str(path), "error": reason} for path, reason in failures]
        print(json.dumps({"explanations": records, "failures": failed}, indent=2))
    elif len(images) > 1 and records:
        print_summary(records)
    return report_failures(failures, len(images))


def explain_image(path: Path, folder: Path, network: Network, request: Request) -> list[Result]:
    """Explain each target of one image and write its files, all or none per target."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Of onnx2torch's layers, about their own code.
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
        prediction = predict(path, network, request.asked.step)
        ranking = ranking_of(prediction)
        asked = list(aims(request.asked, prediction, ranking))
        found = request.method.explain_targets(network.model, prediction.view.tensor, [aim.target for aim in asked])
    notes = tuple(dict.fromkeys(str(warning.message) for warning in caught))

    results = []
    for rank, (aim, explanation) in enumerate(zip(asked, found, strict=True), 1):
        place = folder if len(asked) == 1 else folder.with_name(f"{folder.name}-{rank}-{_slug(aim.label)}")
        result = Result(path, prediction, ranking, aim, explanation, request.method.name, place, notes)
        _write(result)
        results.append(result)
    return results


def _write(result: Result) -> None:
    prediction, saliency = large(result.prediction, result.explanation), result.explanation.map[0]
    with replaced_folder(result.folder, f"explanation/{MANIFEST}") as draft:
        drawn = overlay(saliency, prediction.photograph, prediction.view.region)
        marked(drawn, prediction, result.aim).save(draft / "overlay.png")
        title = f"Why {brief(result.named)}"
        seen = marked(prediction.photograph, prediction, result.aim)
        panel(result.explanation, seen, title, region=prediction.view.region).savefig(draft / "panel.png", dpi=110)
        decomposition(result.explanation, title=title).savefig(draft / "decomposition.png", dpi=110)
        (draft / RECORD).write_text(json.dumps(stored_record(result), indent=2) + "\n", "utf-8")
        result.explanation.save(draft / "explanation")


def large(prediction: Prediction, explanation: Explanation) -> Prediction:
    """The same, of a photograph that is large enough to draw the map on."""
    photograph, region = enlarged(prediction.photograph, explanation.map[0], prediction.view.region, LEAST)
    return replace(
        prediction, photograph=photograph, view=replace(prediction.view, region=region or prediction.view.region)
    )


def marked(picture: Image, prediction: Prediction, aim: ResolvedTarget) -> Image:
    """A picture of the photograph with a line around what the score is read from, if that is a part of it."""
    if aim.outline is None:
        return picture
    if isinstance(aim.outline, torch.Tensor):
        return contour(aim.outline.float(), picture, region=prediction.view.region)
    return contour(torch.ones(1, 1), picture, region=prediction.in_photograph(aim.outline))


def network_of(model: str, weights: Path | None, labels: Path | None, task: str | None = None) -> Network:
    """The network that the options ask for; what was assumed about it goes to standard error.

    Raises:
        RecipeError: an unknown task.
        ModelError: as for `load`; labels that cannot be read.
    """
    if task is not None:
        one_of("--task", task, TASKS)
    network = announced(load(model, weights))
    network = network if task is None else replace(network, task=task)
    return network if labels is None else replace(network, labels=_labels(labels))


def weights_by_model(given: Sequence[str], models: Sequence[str]) -> dict[str, Path]:
    """Of `--weights` where there may be several networks: MODEL=FILE pairs, or a FILE for the only network.

    Raises:
        InputError: no such pair; a model that is not among `models`.
    """
    if len(given) == len(models) == 1 and (Path(given[0]).exists() or "=" not in given[0]):
        return {models[0]: Path(given[0])}
    found = {}
    for pair in given:
        model, equals, file = pair.rpartition("=")
        if not equals or not model or not file:
            example = f"{models[0]}={file or 'FILE'}"
            raise InputError(f"--weights {pair}: must be MODEL=FILE for several networks, such as {example}.")
        if model not in models:
            raise InputError(f"--weights {pair}: {model} is not among the networks, {', '.join(models)}.")
        found[model] = Path(file)
    return found


def announced(network: Network) -> Network:
    """The network, after its notes went to standard error."""
    for note in network.notes:
        print(f"icam: {note}", file=sys.stderr)
    return network


def photograph() -> Path:
    """The cat in scikit-image's wheel."""
    try:
        import skimage
    except ImportError as error:
        raise MissingExtraError.of("The bundled photograph", "demo", error) from error
    return Path(skimage.__file__).parent / "data" / "chelsea.png"


def _with_progress(work: Sequence[tuple[Path, Path]]) -> Iterable[tuple[Path, Path]]:
    if len(work) == 1:
        return work
    return track(work, description="Explaining", console=Console(stderr=True))


def _folders(images: Sequence[Path], out: Path) -> Iterator[Path]:
    """A folder per image, named after the file; a name that comes again gets a number."""
    taken: set[str] = set()
    for image in images:
        numbered = (f"{image.stem}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([image.stem], numbered) if name not in taken)
        taken.add(name)
        yield out / name


def _labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"labels {path}: cannot be read ({error}).") from None


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.split(",")[0].lower()).strip("-")
