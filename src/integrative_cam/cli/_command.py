"""Commands as plain functions: their signature names the options, their docstring is the help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from copy import copy
from functools import wraps
from typing import Annotated, Any, get_args, get_origin

import typer

FLAGS: Mapping[str, tuple[str, ...]] = {
    "model": ("--model", "-m"),
    "models": ("--model", "-m"),
    "target": ("--target", "-t"),
    "out": ("--out", "-o"),
    "as_json": ("--json",),
    "every": ("--all",),
    "browse": ("--open/--no-open",),
    "signed": ("--signed/--unsigned",),
}
"""How options are written whose name alone does not say it."""

SHARED: Mapping[str, str] = {
    "as_json": "Print one JSON document instead of tables.",
    "debug": "Show tracebacks of errors.",
    "methods": "Names with commas between them; see icam methods.",
    "out": "Folder for the results.",
}
"""Help of options that mean the same in several commands."""

DEBUG = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function in the form that typer reads.

    A parameter before `*` is an argument, one after it an option, described by the docstring's section "Args:". One
    of type Annotated[type, function] stands for the options of that function, whose result it gets; the function's
    docstring begins with their heading. Every command has --debug, which `main` looks for.
    """
    groups: dict[str, Callable[..., Any]] = {}
    options: list[inspect.Parameter] = []
    text, meanings = described(function)
    signature = inspect.signature(function, eval_str=True)
    for parameter in signature.parameters.values():
        group = getattr(parameter.annotation, "__metadata__", (None,))[0]
        if callable(group):
            groups[parameter.name] = group
            heading, meanings_in_group = described(group)
            for member in inspect.signature(group).parameters.values():
                options.append(option(member, meanings_in_group, heading.partition(".")[0]))
        else:
            options.append(option(parameter, meanings))
    if "debug" not in signature.parameters:
        options.append(option(DEBUG, meanings))

    @wraps(function)
    def flat(**values: Any) -> None:
        if "debug" not in signature.parameters:
            del values["debug"]
        for name, group in groups.items():
            values[name] = group(**{member: values.pop(member) for member in inspect.signature(group).parameters})
        function(**values)

    flat.__doc__ = text
    flat.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in options}
    return flat


def described(documented: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """A docstring's text before "Args:", and what it says there of each parameter, as text without quotation marks."""
    text, _, arguments = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")
    entries = re.findall(r"^ {4}(\w+): (.*)", re.sub(r"\n {5,}", " ", arguments), re.MULTILINE)
    return text, {name: (meaning[0].upper() + meaning[1:]).replace('"', "") for name, meaning in entries}


def option(parameter: inspect.Parameter, meanings: Mapping[str, str], panel: str | None = None) -> inspect.Parameter:
    """The parameter with what typer needs to know of it, added to what its annotation says already."""
    name, annotation = parameter.name, parameter.annotation
    is_annotated = get_origin(annotation) is Annotated
    kind = get_args(annotation)[0] if is_annotated else annotation
    is_option = parameter.kind is parameter.KEYWORD_ONLY
    info = copy(annotation.__metadata__[0]) if is_annotated else typer.Option() if is_option else typer.Argument()
    info.help, info.rich_help_panel = meanings.get(name) or SHARED.get(name) or info.help, panel
    if is_option:
        info.param_decls = FLAGS.get(name, (f"--{name.replace('_', '-')}",))
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])
