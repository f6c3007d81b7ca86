"""Which of a library's networks to survey: the smallest of each family."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from torch import nn

from integrative_cam.errors import MissingExtraError

SOURCES = ("torchvision", "timm")
_SIZES = (
    *("zepto", "atto", "femto", "pico", "xxtiny", "xxs", "nano", "xtiny", "xs", "mini", "tiny", "ti", "t"),
    *("small", "s"),
)


def names(source: str, pattern: str = "*", progress: Callable[[int, int], None] = lambda *_: None) -> list[str]:
    """Networks to survey, smallest first: all of torchvision's classifiers; of timm the smallest of each family.

    A family is what one module of timm defines under one leading word: `byobnet` defines `gernet_s` and `repvgg_a0`.
    Parameters are counted without making them; of a family of many, among the five that their names call the smallest.
    `pattern`: a glob over the networks' own names. `progress` is told how many of how many are counted.

    Raises:
        MissingExtraError: torchvision or timm is not installed.
    """
    try:
        import timm
        import torchvision
    except ImportError as error:
        raise MissingExtraError.of("A survey", "models", error) from error
    if source == "torchvision":
        listed = torchvision.models.list_models(module=torchvision.models)
        family_of: Callable[[str], tuple[str, ...]] = lambda name: (name,)  # noqa: E731
        size_of: Callable[[str], int] = lambda name: int(  # noqa: E731
            torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
        )
    else:
        # timm's own tests have tiny networks, which are no families.
        listed = [name for name in timm.list_models() if name.startswith("test_") == pattern.startswith("test_")]
        family_of = (lambda name: (name,)) if pattern.startswith("test_") else _timm_family
        size_of = _timm_size
    families: dict[tuple[str, ...], list[str]] = {}
    for name in listed:
        if fnmatchcase(name, pattern):
            families.setdefault(family_of(name), []).append(name)
    sized: list[tuple[int, str]] = []
    for done, members in enumerate(families.values()):
        progress(done, len(families))
        sized.append(min((size_of(name), name) for name in sorted(members, key=_called_small)[:5]))
    return [f"{source}/{name}" for _, name in sorted(sized)]


def _called_small(name: str) -> tuple[int, int, str]:
    """A key that sorts names by their words of size, then by their first number."""
    number = re.search(r"\d+", name)
    words = [_SIZES.index(word) for word in re.split(r"[_\d]+", name) if word in _SIZES]
    return min(words, default=len(_SIZES)), int(number.group()) if number else 0, name


def _timm_family(name: str) -> tuple[str, ...]:
    import timm

    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    word = re.match(r"[a-z]*", name)
    return module, word.group() if word else name


def _timm_size(name: str) -> int:
    import timm

    try:
        with torch.device("meta"):
            return count(timm.create_model(name))
    except (NotImplementedError, RuntimeError):
        # A few read values while they are made, which takes memory that holds some.
        return count(timm.create_model(name))


def count(model: nn.Module) -> int:
    """The model's parameters, in numbers."""
    return sum(values.numel() for values in model.parameters())
