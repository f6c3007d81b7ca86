"""HTML from Jinja templates; pages extend base.html.jinja."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image


def environment(package: str) -> Environment:
    """The templates beside the modules of `package`: all text is escaped, and a missing name is an error.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError.of("The report", "evaluate", error) from error
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("integrative_cam.render", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(picture: Image, **options: int) -> str:
    """A picture as a data URI of WebP; the options are Pillow's, such as quality."""
    stored = io.BytesIO()
    picture.save(stored, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"
