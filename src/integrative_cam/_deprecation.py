"""Old public names, which work for one release with a DeprecationWarning that names the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

RENAMED: Mapping[str, str] = {
    "integrate": "explain_trace",
    "method": "get_method",
    "methods": "list_methods",
    **{
        name: f"errors.{name}"
        for name in (
            "ExplanationError",
            "ImageError",
            "InputError",
            "ModelError",
            "OutputError",
            "RecipeError",
            "TapError",
            "TargetError",
        )
    },
    "bridges.signed_map": "explanation.Explanation.signed_map",
    "bridges.spread": "integrations._attribution.spread_over_channels",
    "cam.integrate": "explain_trace",
    "methods.method": "get_method",
    "methods.methods": "list_methods",
    "run.Patience": "run.RetryPolicy",
    "targets.Several": "targets.Targets",
    "targets.check_several": "targets.check_targets",
    "targets.favourites": "targets.top_classes",
}
"""Old name to new name, both below this package."""

MODULES: Mapping[str, str] = {
    "bias": "",
    "bridges": "integrations",
    "evaluate.dataset": "evaluate._dataset",
    "evaluate.peers": "integrations",
    "fusion": "_maps.fusion",
    "models.exported": "models._exported",
    "models.image": "models._image",
    "readout": "_maps.readout",
    "render.plots": "render._plots",
    "report": "reports",
    "streams": "",
    "taps": "",
    "trace": "",
    "traced": "",
    "weighting": "",
}
"""Old module to the one that has its names now, both below this package; "" is the package itself."""

_ROOT = "integrative_cam"
_SKIPPED = (_ROOT, "importlib", "dataclasses", "copy")
"""Packages whose frames stand between a user's line and the warning."""


def warn_deprecated(message: str) -> None:
    """Issue a DeprecationWarning; see `warn_user`."""
    warn_user(message, DeprecationWarning)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points at the user's line: the first frame outside of this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _SKIPPED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def is_called_by_user() -> bool:
    """Whether the function that asks was called from outside of this package."""
    return sys._getframe(2).f_globals.get("__name__", "").partition(".")[0] not in _SKIPPED


def deprecated_names(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package, for its old names and old modules."""

    def value_of(name: str) -> Any:
        old = f"{package}.{name}"
        return sys.modules[old] if old.removeprefix(f"{_ROOT}.") in MODULES else _value(old)

    return value_of


def _value(old: str) -> Any:
    """What an old name, or a name in an old module, stands for."""
    short = old.removeprefix(f"{_ROOT}.")
    module, _, name = short.rpartition(".")
    new = RENAMED.get(short) or (f"{MODULES[module]}.{name}".lstrip(".") if module in MODULES else None)
    try:
        value = resolve_name(f"{_ROOT}.{new}") if new else None
    except (ImportError, AttributeError):
        new = None
    if new is None:
        raise AttributeError(f"module {old.rpartition('.')[0]!r} has no attribute {old.rpartition('.')[2]!r}")
    warn_deprecated(f"{old} is now {_ROOT}.{new}; the old name goes with the next release.")
    return value.fget if isinstance(value, property) else value


class _OldModule(ModuleType):
    """Stands in `sys.modules` for a module that is gone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _value(f"{self.__name__}.{name}")


class CallableModule(ModuleType):
    """A package that has the name of an old function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _value(self.__name__)(*arguments, **options)


for _name in MODULES:
    sys.modules[f"{_ROOT}.{_name}"] = _OldModule(f"{_ROOT}.{_name}")
