"""HTML from Jinja templates; pages extend base.html.jinja."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from ..errors import MissingExtraError
from ..models._image import encode_image

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


def data_uri(picture: Image, format: str = "webp", **options: int) -> str:
    """A picture as a data URI; the options are Pillow's, such as quality."""
    return f"data:image/{format};base64,{base64.b64encode(encode_image(picture, format, **options)).decode()}"
