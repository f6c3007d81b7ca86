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

import torch
from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from .. import targets
from ..errors import CamError, MissingExtraError, ModelError, TargetError, first_line
from ..explanation import Explanation
from ..methods import Method
from ..models import Network, load, read_image
from ..recipe import Recipe
from ..render import overlay, panel
from ..storage import MANIFEST, replaced_folder
from .report import as_record, print_explanation, print_summary, report_failures

TOP = re.compile(r"top(\d+)")
RIVALS = ("runner-up", "rest")
"""Of `--versus`, beside classes; see `targets.contrast`."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    images: tuple[Path, ...]
    model: str
    weights: Path | None
    labels: Path | None
    target: str
    versus: str | None
    out: Path
    method: Method
    as_json: bool
    debug: bool


@dataclass(frozen=True)
class Aim:
    """What is explained: the target, how a sentence names it, the classes it counts for and against."""

    target: int | targets.SampleTarget
    label: str
    classes: tuple[int, ...]
    against: tuple[int, ...] = ()

    @property
    def index(self) -> int | None:
        """The class, where the target is one class's logit."""
        return self.target if isinstance(self.target, int) else None


@dataclass(frozen=True)
class Result:
    """One explained image and target, and where its files are."""

    image: Path
    network: Network
    aim: Aim
    explanation: Explanation
    folder: Path
    notes: tuple[str, ...]

    @property
    def probabilities(self) -> torch.Tensor:
        """(classes,): softmax of the logits; a single logit's sigmoid."""
        logits = self.explanation.output.reshape(-1).double()
        return logits.softmax(0) if len(logits) > 1 else logits.sigmoid()

    @property
    def named(self) -> str:
        """What is explained; one class with its probability."""
        index = self.aim.index
        return self.aim.label if index is None else f"{self.aim.label} {float(self.probabilities[index]):.1%}"


def run(request: Request) -> int:
    """Explain every image; 0, or 1 if any failed."""
    if isinstance(request.method.way, Recipe):
        request.method.way.validate()
    images = request.images or (photograph(),)
    network = network_of(request.model, request.weights, request.labels)
    # An unknown name is an error of the call, not of an image.
    if not TOP.fullmatch(request.target):
        aim_at(classes_of(request.target, network), request.versus, network)
    elif request.versus not in (None, *RIVALS):
        classes_of(str(request.versus), network)

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
        # Of onnx2torch's layers, about their own code.
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
        done: list[Explanation] = []
        if top:
            done = [request.method(network.model, view.tensor, None)]
            logits = done[0].output.reshape(-1)
            favourites = logits.topk(min(int(top[1]), len(logits))).indices.tolist()
            aims = [aim_at((index,), request.versus, network) for index in favourites]
        else:
            aims = [aim_at(classes_of(request.target, network), request.versus, network)]
        if request.versus is not None:
            done = []  # it told the favourites
        done += [request.method(network.model, view.tensor, aim.target) for aim in aims[len(done) :]]
    notes = tuple(dict.fromkeys(str(warning.message) for warning in caught))

    results = []
    for rank, (aim, explanation) in enumerate(zip(aims, done, strict=True), 1):
        place = folder if len(aims) == 1 else folder.with_name(f"{folder.name}-{rank}-{_slug(aim.label)}")
        result = Result(path, network, aim, explanation, place, notes)
        _write(result, view.picture)
        results.append(result)
    return results


def _write(result: Result, picture: Image) -> None:
    with replaced_folder(result.folder, f"explanation/{MANIFEST}") as draft:
        overlay(result.explanation.map[0], picture).save(draft / "overlay.png")
        title = f"Why {result.named}"
        panel(result.explanation, picture, title).savefig(draft / "panel.png", dpi=110)
        result.explanation.save(draft / "explanation")


def network_of(model: str, weights: Path | None, labels: Path | None) -> Network:
    """The network that the options ask for; what was assumed about it goes to standard error."""
    network = load(model, weights)
    for note in network.notes:
        print(f"icam: {note}", file=sys.stderr)
    return network if labels is None else replace(network, labels=_labels(labels))


def classes_of(option: str, network: Network) -> tuple[int, ...]:
    """The class that an option names, or the classes with + between them; a name that itself holds a + is one.

    Raises:
        TargetError: unknown or ambiguous name.
    """
    names = [name.strip() for name in option.split("+")]
    known = {label.lower() for label in network.labels}
    whole = len(names) == 1 or not all(names) or option.strip().lower() in known
    return (network.index(option),) if whole else tuple(network.index(name) for name in names)


def aim_at(classes: tuple[int, ...], versus: str | None, network: Network) -> Aim:
    """The logit of a class or the sum of several; with a rival, the difference.

    Raises:
        TargetError: the rival is no class, not a rival of several classes, or among the classes.
    """
    label = " + ".join(map(network.label, classes))
    target = classes[0] if len(classes) == 1 else targets.total(classes)
    if versus is None:
        return Aim(target, label, classes)
    if versus in RIVALS:
        if len(classes) > 1:
            raise TargetError(f"--versus {versus} needs one class as --target, but got {label}; name the rival.")
        against: tuple[int, ...] = ()
        contrasted = targets.contrast(target, "runner-up" if versus == "runner-up" else "rest")
        rival = f"the {versus}"
    else:
        against = classes_of(versus, network)
        both = next((index for index in against if index in classes), None)
        if both is not None:
            raise TargetError(f"--versus: {network.label(both)} is the target itself; name another class.")
        contrasted = targets.contrast(target, against[0] if len(against) == 1 else targets.total(against))
        rival = " + ".join(map(network.label, against))
    return Aim(contrasted, f"{label} rather than {rival}", classes, against)


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
