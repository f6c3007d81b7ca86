"""HTML pages from the Jinja templates of this package; all of them extend base.html.jinja."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from jinja2 import Environment


def environment() -> Environment:
    """The package's templates: all text is escaped, and a missing name is an error.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError.of("The report", "evaluate", error) from error
    return Environment(
        loader=PackageLoader("integrative_cam.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
