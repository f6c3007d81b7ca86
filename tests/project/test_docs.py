"""The documents: Python blocks run, `icam` lines are understood, links lead somewhere, the site builds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gradio_client
import pytest
import torch
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image, ImageOps
from playwright.sync_api import Request
from running import job
from serving import browser, served
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser
from typer.testing import CliRunner

import integrative_cam
from integrative_cam import evaluate, integrations, methods, models, query, render, reports, run, targets
from integrative_cam.cli._app import app
from integrative_cam.models import Network

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md"))]
RECORD = sorted(ROOT.glob("docs/project/*.md"))
"""The project's record, which is on the site but not in its navigation."""
COMMAND: Any = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- Python blocks


def python_of(page: Path) -> Document:
    return Document.parse(str(page), PythonCodeBlockParser())


WITH_PYTHON = [page for page in PAGES if list(python_of(page))]


@pytest.fixture
def folder(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands: a few photographs, no network, no account anywhere."""
    cat, other = Image.open(photographs / "chelsea.png"), Image.open(photographs / "coffee.png")
    (tmp_path / "photos").mkdir()
    cat.save(tmp_path / "photo.jpg")
    other.save(tmp_path / "other.jpg")
    for number, each in enumerate((cat, ImageOps.mirror(cat), cat.crop((60, 0, 420, 300)))):
        each.save(tmp_path / f"photos/{number}.jpg")
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # a store without a database
        "MPLBACKEND": "agg",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    return tmp_path


def readme(request: pytest.FixtureRequest) -> dict[str, Any]:
    network: Network = request.getfixturevalue("lite0")
    return {"model": network.model, "images": torch.rand(2, 3, 64, 64)}


def scale(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `icam run` left in DEST, of a tiny network."""
    folder: Path = request.getfixturevalue("folder")
    (folder / "source/folder").mkdir(parents=True)
    for number in range(17):
        Image.new("RGB", (16, 16), (number * 9, 90, 200)).save(folder / f"source/{number:02}.jpg")
    shutil.copy(folder / "photo.jpg", folder / "source/folder/photo.jpg")
    run.run(job(folder / "source", "DEST", thumbnail=64), workers=0)
    return {}


def command(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `icam explain photo.jpg --out run` left."""
    done = CliRunner().invoke(app, ["explain", "photo.jpg", "--out", "run"])
    assert done.exit_code == 0, done.output
    return {}


def page(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A client of the address in the text finds the page at a free port."""
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    address: str = request.getfixturevalue("address")
    client = gradio_client.Client
    monkeypatch.setattr(gradio_client, "Client", lambda _: client(address, verbose=False))
    return {}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with served(tmp_path / "server.log") as found:
        yield found


GIVEN: dict[str, Callable[[pytest.FixtureRequest], dict[str, Any]]] = {
    "README.md": readme,
    "docs/how-to/command.md": command,
    "docs/page.md": page,
    "docs/scale.md": scale,
}
"""What the text takes for granted; every other page starts from nothing."""


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python_blocks_run(path: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    """In order, with one namespace for a page."""
    if name_of(path) == "docs/migration.md":
        pytest.importorskip("torchcam", reason="needs Python 3.11")
    document = python_of(path)
    document.namespace |= GIVEN.get(name_of(path), lambda _: {})(request)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # others' libraries; a blank map of a random network
        warnings.filterwarnings("error", ".*goes with the next release", DeprecationWarning)  # our own old names
        for example in document:
            example.evaluate()


def test_the_check_of_attention_passes_and_fails_when_it_should(
    folder: Path, lite0: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The how-to's pytest file: green for the same model, red for one that has forgotten a tenth of its layers."""
    monkeypatch.setattr(models, "load", lambda: lite0)
    store, check = (example.parsed for example in python_of(ROOT / "docs/how-to/ci.md"))
    exec(compile(store, "store.py", "exec"), {})
    Path("test_attention.py").write_text(str(check))
    attention = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "test_attention.py::test_it_still_looks_there",
    ]
    assert pytest.main(attention) == pytest.ExitCode.OK
    monkeypatch.delitem(sys.modules, "test_attention")  # it holds the other network
    monkeypatch.setattr(models, "load", lambda: replace(lite0, model=evaluate.randomised(lite0.model, 0.1)))
    assert pytest.main(attention) == pytest.ExitCode.TESTS_FAILED


# ---- Lines for a shell


def tokens_of(page: Path) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        yield token
        yield from token.children or ()


def shell_lines(page: Path) -> list[str]:
    """Of blocks that are in no language or a shell's, indented ones too; and what stands in the text as `icam ...`."""
    blocks = [
        token.content.replace("\\\n", " ")
        for token in tokens_of(page)
        if token.type == "code_block" or (token.type == "fence" and token.info.strip() in ("", "sh", "bash", "console"))
    ]
    lines = [part.strip() for block in blocks for line in block.splitlines() for part in re.split(r"&&| \| ", line)]
    return [*lines, *(token.content for token in tokens_of(page) if token.type == "code_inline")]


WITH_ICAM = [page for page in PAGES if any(line.startswith("icam ") for line in shell_lines(page))]


@pytest.mark.parametrize("path", WITH_ICAM, ids=name_of)
def test_lines_of_icam_are_understood(path: Path) -> None:
    """By the real command: its subcommand, options and their values exist. Arguments may be left out in the text."""
    for line in shell_lines(path):
        if line.startswith("icam "):
            _, *words = shlex.split(line, comments=True)
            understood(words, line)


def understood(words: list[str], line: str) -> None:
    name, *arguments = words
    if name in ("--help", "--version"):
        return
    command = COMMAND.commands.get(name)
    assert command is not None, line
    try:
        command.make_context(name, [each for each in arguments if each != "--help"])
    except Exception as error:
        if type(error).__name__ != "MissingParameter":
            raise AssertionError(f"{line}: {error}") from error


def test_other_lines_for_a_shell_name_what_there_is() -> None:
    """Targets of make, scripts."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for line in shell_lines(path):
            words = line.split()
            if words[:1] == ["make"] and len(words) > 1:
                assert words[1] in targets, (path, line)
            if words[:1] == ["python"] and words[1:2] != ["-m"]:
                assert (ROOT / words[1]).is_file(), (path, line)


# ---- Tables


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_rows_of_a_table_fit_its_head(path: Path) -> None:
    """A row too short is filled up and one too long cut by what draws it, without a word; a row twice is a slip."""
    tables = re.findall(r"(?:^\|.*\n?)+", path.read_text(), re.MULTILINE)
    for head, *rows in map(str.splitlines, tables):
        for row in rows:
            assert cells(row) == cells(head), row
        assert len(set(rows)) == len(rows), head


def cells(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row)))


# ---- Links and the site


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_outside_of_the_site(name: str) -> None:
    """Those within it are checked as built."""
    for token in tokens_of(ROOT / name):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        if target and not urlsplit(target).scheme:
            assert (ROOT / unquote(urlsplit(target).path)).exists(), target


class Built(HTMLParser):
    """What a page of the site links to, what it loads, and where it can be entered."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("script", "img", "iframe", "link", "source", "video") and found.get("rel") not in ("next", "prev"):
            self.loads += [found[name] for name in ("src", "href") if name in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does, without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


def test_the_site(site: Path) -> None:
    """Links lead somewhere, nothing is loaded from elsewhere, every public name and option is there; so is llms.txt."""
    pages = {path: Built(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES) - 1
    for path, found in pages.items():
        for link in [*found.links, *found.loads]:
            parts = urlsplit(link)
            if parts.scheme:
                assert link not in found.loads, f"{path} loads {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].places, f"{path}: {link}"

    reference = (site / "reference/command.html").read_text()
    for name, each in COMMAND.commands.items():
        shown = [parameter for parameter in each.params if not getattr(parameter, "hidden", False)]
        for option in [option for parameter in shown for option in parameter.opts if option.startswith("--")]:
            assert option in reference, f"icam {name} {option}"

    for module in (integrative_cam, evaluate, integrations, methods, models, query, render, reports, run, targets):
        short = module.__name__.removeprefix("integrative_cam").strip(".") or "index"
        places = {place.rpartition(".")[2] for place in pages[site / f"reference/{short}.html"].places}
        elsewhere = set(methods.__all__) if module is integrative_cam else set()
        assert {name for name in module.__all__ if callable(getattr(module, name))} <= places | elsewhere

    llms = (site / "llms.txt").read_text()
    assert re.match(r"# Integrative CAM\n\n> \S", llms)
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+)\): \S", llms, re.MULTILINE)
    assert all((site / each).is_file() for each in listed)
    assert {Path(each).with_suffix("") for each in listed} == {
        path.relative_to(ROOT / "docs").with_suffix("") for path in PAGES if path not in (README, *RECORD)
    }


def test_the_site_opens_from_disk(site: Path) -> None:
    """Without any network: pages, formulas and search work, on a phone nothing is wider than the screen."""
    with browser() as opened:
        page = opened.new_context(offline=True, viewport={"width": 390, "height": 844}).new_page()
        wrong: list[str] = []

        def failed(request: Request) -> None:
            # Going on to the next page breaks off what is still on its way.
            if request.failure != "net::ERR_ABORTED":
                wrong.append(request.url)

        page.on("requestfailed", failed)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        for name in ("index", "method", "troubleshooting", "reference/index", "how-to/target", "comparison"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == 390, name
        page.goto((site / "method.html").as_uri())
        assert page.locator(".formula math mfrac").first.bounding_box()["height"] > 20
        page.locator("label[for=__search]").first.click()
        page.locator("input.md-search__input").press_sequentially("segmentation")
        page.locator(".md-search-result__item a[href*='reference/targets']").first.wait_for(timeout=30_000)
        assert not wrong
