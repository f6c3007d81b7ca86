"""Additions to the site: formulas as MathML, the command's reference, llms.txt."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

COMMAND = "<!-- the help of every command -->"
"""The place in a page where the reference of `icam` is inserted."""

_navigation: list[Navigation] = []


def on_config(config: MkDocsConfig) -> None:
    """Convert fences called `math`, which GitHub shows too, without a script or font from elsewhere."""
    fence = {"name": "math", "class": "math", "format": _formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_nav(nav: Navigation, **_: Any) -> None:
    """Keep the order of the pages for `llms.txt`."""
    _navigation[:] = [nav]


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Insert the command's help where a page asks for it, and keep the Markdown for `llms.txt`."""
    if COMMAND in markdown:
        markdown = markdown.replace(COMMAND, command_reference())
    page.meta["source"] = markdown
    return markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Write `llms.txt` (llmstxt.org) in the order of the navigation, and the Markdown files that it names."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    (nav,) = _navigation
    loose = [item for item in nav.items if isinstance(item, Page)]
    sections = [item for item in nav.items if isinstance(item, Section)]
    for title, pages in [("Start", loose), *((section.title, _pages(section)) for section in sections)]:
        lines += [f"## {title}", "", *(_entry(page, site) for page in pages), ""]
    (site / "llms.txt").write_text("\n".join(lines))


def command_reference() -> str:
    """The help of every command as Markdown, one level below a page's title."""
    command = [sys.executable, "-m", "typer", "integrative_cam.cli._app", "utils", "docs", "--name", "icam"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The page has its own title, and GitHub needs no entities.
    return html.unescape(printed.partition("\n")[2])


def _formula(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="formula">{convert(source.strip(), display="block")}</div>'


def _pages(section: Section) -> list[Page]:
    pages: list[Page] = []
    for item in section.children:
        pages += _pages(item) if isinstance(item, Section) else [item] if isinstance(item, Page) else []
    return pages


def _entry(page: Page, site: Path) -> str:
    """A line of `llms.txt`; it names the Markdown of a page, or its HTML where mkdocstrings fills it."""
    source, address = str(page.meta["source"]), page.file.dest_uri
    if not re.search(r"^::: ", source, re.MULTILINE):
        address = page.file.src_uri
        (site / address).write_text(source)
    return f"- [{page.title}]({address}): {_first_sentence(source)}"


def _first_sentence(markdown: str) -> str:
    """The first sentence of the first paragraph that is prose, without link targets."""
    for block in re.split(r"\n\s*\n", re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.DOTALL | re.MULTILINE)):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(block.split()))
        if re.match(r"[\w*`\"]", text) and not block.startswith((" ", "\t")):
            return re.split(r"(?<=[.:;])\s", text)[0].rstrip(".:;") + "."
    return ""
