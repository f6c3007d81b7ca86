"""`icam explain`: images in, pictures and numbers out; one bad image does not stop the others."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from ..errors import CamError, MissingExtraError, ModelError, first_line
from ..explanation import Explanation
from ..methods import Method
from ..models import Network, load, read_image
from ..recipe import Recipe
from ..render import overlay, panel
from ..storage import MANIFEST, replaced_folder
from .report import as_record, print_explanation, print_summary, report_failures

TOP = re.compile(r"top(\d+)")


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    images: tuple[Path, ...]
    model: str
    weights: Path | None
    labels: Path | None
    target: str
    out: Path
    method: Method
    as_json: bool
    debug: bool


@dataclass(frozen=True)
class Result:
    """One explained image and target, and where its files are."""

    image: Path
    network: Network
    target: int
    explanation: Explanation
    folder: Path
    notes: tuple[str, ...]

    @property
    def probabilities(self) -> torch.Tensor:
        """(classes,): softmax of the logits; a single logit's sigmoid."""
        logits = self.explanation.output.reshape(-1).double()
        return logits.softmax(0) if len(logits) > 1 else logits.sigmoid()

    def named(self, index: int) -> str:
        """A class with its probability."""
        return f"{self.network.label(index)} {float(self.probabilities[index]):.1%}"


def run(request: Request) -> int:
    """Explain every image; 0, or 1 if any failed."""
    if isinstance(request.method.way, Recipe):
        request.method.way.validate()
    images = request.images or (photograph(),)
    network = network_of(request.model, request.weights, request.labels)
    target_of(request.target, network)  # an unknown name is an error of the call, not of an image

    results: list[Result] = []
    failures: list[tuple[Path, str]] = []
    for path, folder in _with_progress(list(zip(images, _folders(images, request.out), strict=True))):
        try:
            results += explain_image(path, folder, network, request)
        except (CamError, OSError, RuntimeError) as error:
            if request.debug:
                raise
            failures.append((path, first_line(error)))
    if request.as_json:
        records = [as_record(result) for result in results]
        failed = [{"image": str(path), "error": reason} for path, reason in failures]
        print(json.dumps({"explanations": records, "failures": failed}, indent=2))
    elif len(images) == 1:
        for result in results:
            print_explanation(result)
    elif results:
        print_summary(results)
    return report_failures(failures, len(images))


def explain_image(path: Path, folder: Path, network: Network, request: Request) -> list[Result]:
    """Explain each target of one image and write its files, all or none per target."""
    view = network.preprocessing(read_image(path))
    top = TOP.fullmatch(request.target)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = request.method(network.model, view.tensor, target_of(request.target, network))
        logits = first.output.reshape(-1)
        classes = logits.topk(min(int(top[1]), len(logits))).indices.tolist() if top else [int(first.target_names[0])]
        explanations = [first, *(request.method(network.model, view.tensor, index) for index in classes[1:])]
    notes = tuple(dict.fromkeys(str(warning.message) for warning in caught))

    results = []
    for rank, (index, explanation) in enumerate(zip(classes, explanations, strict=True), 1):
        place = folder if len(classes) == 1 else folder.with_name(f"{folder.name}-{rank}-{_slug(network.label(index))}")
        result = Result(path, network, index, explanation, place, notes)
        _write(result, view.picture)
        results.append(result)
    return results


def _write(result: Result, picture: Image) -> None:
    with replaced_folder(result.folder, f"explanation/{MANIFEST}") as draft:
        overlay(result.explanation.map[0], picture).save(draft / "overlay.png")
        title = f"Why {result.named(result.target)}"
        panel(result.explanation, picture, title).savefig(draft / "panel.png", dpi=110)
        result.explanation.save(draft / "explanation")


def network_of(model: str, weights: Path | None, labels: Path | None) -> Network:
    """The network that the options ask for."""
    network = load(model, weights)
    return network if labels is None else replace(network, labels=_labels(labels))


def target_of(target: str, network: Network) -> int | None:
    """The class that the option names; None for the network's own favourites, top1, top2, ..."""
    return None if TOP.fullmatch(target) else network.index(target)


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
        return tuple(line.strip() for line in path.read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"labels {path}: cannot be read ({error}).") from None


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.split(",")[0].lower()).strip("-")
