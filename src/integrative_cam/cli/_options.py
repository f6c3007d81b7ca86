"""Options that several commands share. Annotations are evaluated here: they and the docstrings are what typer shows."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._choices import DEFAULT_NETWORK
from ..errors import InputError
from ..methods import Method, get_method
from ..recipe import DEPRECATED, RENAMED, Recipe
from ._command import FLAGS, described

if TYPE_CHECKING:
    from .. import query

LEFT_ALONE = "Goes with the next release: no other value than the method's own helps."
"""Of ingredients that are deprecated."""

NetworkOptions = tuple[str, Path | None, Path | None, str | None]


def _network(
    *, model: str = DEFAULT_NETWORK, weights: Path | None = None, labels: Path | None = None, task: str | None = None
) -> NetworkOptions:
    """The network.

    Args:
        model: "efficientnet-lite0" (bundled), torchvision/NAME, timm/NAME, hf/OWNER/REPOSITORY, hf/FOLDER, FILE.onnx,
            FILE.pt2:trusted (torch.export) or FILE.py:FACTORY; the last two can run code.
        weights: local weights: safetensors, or a torch state dict. Without it, the library's pretrained ones.
        labels: text file with one class name per line.
        task: what the output means, where that is not known of the network: classification, one
            class of several, or one at each pixel; multi-label, classes that do not exclude each other; regression,
            values; image, an image made of the image; fastestdet, boxes in FastestDet's layout.
    """
    return model, weights, labels, task


def _question(
    *,
    target: str = "top1",
    versus: str | None = None,
    within: str | None = None,
    similar_to: Path | None = None,
    probability: bool = False,
    step: int | None = None,
    negate: bool = False,
) -> "query.Question":
    """What to explain.

    Args:
        target: "top1", "top3", ... (the network's highest classes); a class index or name; several with + between them
            (281+282+285), for the sum of their logits. For segmentation: the class where it is predicted; for a
            detector: its best box; for a network that outputs an image: a channel.
        versus: why the target and not this: a class or several, as in --target; runner-up, the best of the other
            classes; or rest, all of them.
        within: a part of the output: a box, LEFT,TOP,RIGHT,BOTTOM in pixels of the photograph, or the file of a mask
            of its size, black outside. A detector's box is the one that matches it.
        similar_to: why it is like this photograph: the cosine of the two outputs.
        probability: explain the class's probability.
        step: for an output of (step, class): the step; negative numbers count from the end.
        negate: explain what lowers the score in place of what raises it.
    """
    from ..query import Question

    return Question(target, versus, within, similar_to, probability, step, negate)


def _method(method: str, **ingredients: Any) -> Method:
    """The method, with the ingredients that differ from its own.

    Args:
        method: "integrative", gradcam, gradcam++, xgradcam, hirescam, layercam, layercam-fused, refinecam, winsorcam,
            fullgrad, gradcam-elementwise, scorecam, ablationcam, random, center, uniform; see icam methods.

    Raises:
        RecipeError: no such method, or one without ingredients that could be changed.
    """
    chosen = get_method(method)
    changes = {name: value for name, value in ingredients.items() if value not in (None, [])}
    for name in changes.keys() & DEPRECATED.keys():
        flag = FLAGS.get(name, (f"--{name.replace('_', '-')}",))[0]
        print(f"icam: {flag} {LEFT_ALONE[0].lower()}{LEFT_ALONE[1:]}", file=sys.stderr)
    for old in changes.keys() & RENAMED.keys():
        new = RENAMED[old]
        changes[new] = changes.pop(old)
        flag = f"--{new.replace('_', '-')}"
        print(f"icam: --{old} is now {flag}; the old name goes with the next release.", file=sys.stderr)
    if "taps" in changes:
        changes["taps"] = tuple(changes["taps"])
    return replace(chosen, way=replace(chosen.recipe, **changes)) if changes else chosen


def weights_by_model(options: Sequence[str], models: Sequence[str]) -> dict[str, Path]:
    """Of `--weights` where there may be several networks: MODEL=FILE pairs, or a FILE for the only network."""
    if len(options) == len(models) == 1 and (Path(options[0]).exists() or "=" not in options[0]):
        return {models[0]: Path(options[0])}
    files = {}
    for pair in options:
        model, equals, file = pair.rpartition("=")
        if not equals or not model or not file:
            example = f"{models[0]}={file or 'FILE'}"
            raise InputError(f"--weights {pair}: must be MODEL=FILE for several networks, such as {example}.")
        if model not in models:
            raise InputError(f"--weights {pair}: {model} is not among the networks, {', '.join(models)}.")
        files[model] = Path(file)
    return files


def _ingredients() -> Iterator[Parameter]:
    """An option for each field of `Recipe`; old names and deprecated ones are hidden. None where not given."""
    meanings = described(Recipe)[1]
    for name, field in Recipe.__dataclass_fields__.items():
        kind: Any = list[str] if name == "taps" else type(field.default)
        for shown in (name, *(old for old, new in RENAMED.items() if new == name)):
            info = typer.Option(help=meanings.get(name, LEFT_ALONE), hidden=shown != name or name in DEPRECATED)
            yield Parameter(shown, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info])


_method.__signature__ = Signature(  # type: ignore[attr-defined]
    [Parameter("method", Parameter.KEYWORD_ONLY, default="integrative", annotation=str), *_ingredients()]
)

Network = Annotated[NetworkOptions, _network]
Question = Annotated["query.Question", _question]
MethodChoice = Annotated[Method, _method]
