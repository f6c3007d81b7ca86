"""HTML from Jinja templates; pages extend base.html.jinja."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from ..errors import import_extra
from ..models._image import encode_image

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image


def environment(package: str) -> Environment:
    """The templates beside the modules of `package`: all text is escaped, and a missing name is an error.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = import_extra("jinja2", "The report", "evaluate")
    folders = [jinja2.PackageLoader(name, ".") for name in (package, "integrative_cam.render")]
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=jinja2.ChoiceLoader(folders), **options)  # type: ignore[no-any-return]


def data_uri(picture: Image, format: str = "webp", **options: int) -> str:
    """A picture as a data URI; the options are Pillow's, such as quality."""
    return f"data:image/{format};base64,{base64.b64encode(encode_image(picture, format, **options)).decode()}"
