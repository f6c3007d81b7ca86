"""The page in a real browser, as a visitor uses it. Screenshots are in test-output/page."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image
from serving import browser, served

from integrative_cam import IntegrativeCAM
from integrative_cam.models import Network

gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'integrative-cam[app]'")

OUT = Path("test-output/page")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("server") / "log.txt") as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    OUT.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        yield opened


class Visitor:
    """A browser window of its own, which notes where it sends requests."""

    def __init__(self, chromium: Any, address: str, **options: Any) -> None:
        self.context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.hosts: set[str] = set()
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(address)
        self.page.get_by_text("Drop a photograph here").wait_for()

    def give(self, name: str, content: bytes) -> None:
        self.page.locator("#icam-stage input[type=file]").set_input_files(
            {"name": name, "mimeType": "image/png", "buffer": content}
        )

    def opened(self, content: bytes) -> Visitor:
        self.give("photo.png", content)
        self.page.locator("#icam-stage figure").wait_for()
        self.page.locator("#icam-top label").first.wait_for()
        return self

    def maps(self) -> list[str]:
        return [image.get_attribute("src") for image in self.page.locator("#icam-stage figure img").all()]

    def code(self) -> str:
        return self.page.locator("#icam-code .cm-content").inner_text()

    def until_changed(self, before: list[str]) -> list[str]:
        self.page.wait_for_function(
            "before => { const now = [...document.querySelectorAll('#icam-stage figure img')].map((each) => each.src);"
            " return now.length && now.join() !== before.join(); }",
            arg=before,
        )
        return self.maps()

    def shot(self, name: str) -> None:
        self.page.screenshot(path=OUT / f"{name}.png", full_page=True)


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Any]:
    opened: list[Visitor] = []

    def make(**options: Any) -> Visitor:
        opened.append(Visitor(chromium, address, **options))
        return opened[-1]

    yield make
    for each in opened:
        assert each.hosts <= {urlsplit(address).netloc, ""}, f"asked other hosts: {each.hosts}"
        each.context.close()


@pytest.fixture(scope="module")
def cat(photographs: Path) -> bytes:
    return (photographs / "chelsea.png").read_bytes()


@pytest.fixture(scope="module")
def cup(photographs: Path) -> bytes:
    return (photographs / "coffee.png").read_bytes()


def test_first_load_and_a_photograph(visit: Any, cat: bytes, lite0: Network) -> None:
    visitor = visit()
    assert visitor.page.locator("#icam-top").count() == 0 or not visitor.page.locator("#icam-top").is_visible()
    visitor.shot("first")
    visitor.opened(cat)
    figure = visitor.page.locator("#icam-stage figure")
    assert "tiger cat" in figure.inner_text()
    assert visitor.page.locator("#icam-top label").count() == 5
    layers = IntegrativeCAM(lite0.model).taps(torch.zeros(1, 3, 224, 224))
    assert visitor.page.locator("#icam-profile .icam-bars input").count() == len(layers) > 20
    assert visitor.maps()[0].startswith("data:image/webp;base64,")
    assert "from the photograph" in visitor.page.locator(".icam-numbers").inner_text()
    # The photograph stands under the map, as large as it.
    style = visitor.page.locator(".icam-photograph").evaluate("e => getComputedStyle(e, '::before').backgroundImage")
    assert style.startswith('url("data:image/webp')
    visitor.shot("desktop")


def test_a_top_class_and_a_class_by_search(visit: Any, cat: bytes) -> None:
    visitor = visit().opened(cat)
    first = visitor.maps()
    visitor.page.locator("#icam-top label", has_text="Egyptian cat").click()
    second = visitor.until_changed(first)
    assert "Egyptian cat" in visitor.page.locator("figcaption").inner_text()
    assert "target=285" in visitor.code()
    visitor.page.locator("#icam-search input").press_sequentially("espresso mak")
    visitor.page.get_by_role("option", name=re.compile("espresso maker")).click()
    visitor.until_changed(second)
    assert "espresso maker" in visitor.page.locator("figcaption").inner_text()
    assert visitor.page.locator("#icam-top input:checked").count() == 0


def test_a_click_on_a_layer_shows_its_map(visit: Any, cat: bytes) -> None:
    visitor = visit().opened(cat)
    first = visitor.maps()
    bars = visitor.page.locator("#icam-profile .icam-bars label")
    bars.nth(2).click()
    second = visitor.until_changed(first)
    assert visitor.page.locator("#icam-profile output").inner_text().startswith("Layer 3: ")
    assert "layer 3" in visitor.page.locator("figcaption").inner_text()
    assert "presented_layer" in visitor.code()
    # The layer stays while an ingredient changes: bias layers leave its map alone, the read-out does not.
    visitor.page.get_by_label("identity", exact=True).click()
    visitor.until_changed(second)
    assert "layer 3" in visitor.page.locator("figcaption").inner_text()
    visitor.shot("layer")
    visitor.page.locator("#icam-profile .icam-all").click()
    visitor.page.wait_for_function("() => !document.querySelector('figcaption').innerText.includes('layer')")


def test_switches_change_the_map_and_the_way_back_restores_it(visit: Any, cat: bytes) -> None:
    visitor = visit().opened(cat)
    first = visitor.maps()
    now = first
    for label, line in (
        ("none", "bias='none'"),
        ("softplus", "readout='softplus'"),
        ("uniform", "weighting='uniform'"),
    ):
        visitor.page.get_by_label(label, exact=True).click()
        now = visitor.until_changed(now)
        assert line in visitor.code()
    visitor.page.get_by_label("number input for Negative share").fill("0")
    now = visitor.until_changed(now)
    assert "negative_share=0" in visitor.code()
    visitor.page.locator("#icam-reset").click()
    assert visitor.until_changed(now) == first


def test_opacity_changes_at_once_and_without_the_server(visit: Any, cat: bytes) -> None:
    visitor = visit().opened(cat)
    before = visitor.maps()
    visitor.page.get_by_label("number input for Opacity of the map").fill("0.25")
    visitor.page.wait_for_function(
        "() => getComputedStyle(document.querySelector('.icam-seen img')).opacity === '0.25'"
    )
    assert visitor.maps() == before


def test_two_maps_are_measured_and_taken_home(visit: Any, cat: bytes) -> None:
    visitor = visit().opened(cat)
    first = visitor.maps()
    visitor.page.get_by_label("two methods").click()
    both = visitor.until_changed(first)
    assert len(both) == 2
    assert both[0] != both[1]
    visitor.page.locator("#icam-measure").click()
    visitor.page.locator("#icam-curves polyline").first.wait_for(timeout=180_000)  # 100 runs of the network
    assert visitor.page.locator("#icam-curves polyline").count() == 4
    visitor.shot("compare")
    visitor.page.get_by_label("one map").click()
    visitor.page.locator("#icam-opacity input[type=number]").fill("0")
    with visitor.page.expect_download() as picture:
        visitor.page.locator("#icam-picture").click()
    assert picture.value.suggested_filename == "photo-map.png"
    found = Image.open(picture.value.path())
    assert found.format == "PNG"
    assert found.convert("RGB").tobytes() == Image.open(io.BytesIO(cat)).convert("RGB").tobytes()
    visitor.page.get_by_label("two methods").click()
    with visitor.page.expect_download() as archive:
        visitor.page.locator("#icam-archive").click()
    names = zipfile.ZipFile(archive.value.path()).namelist()
    assert {"explanation/manifest.json", "explanation/arrays.safetensors", "other/manifest.json", "again.py"} <= set(
        names
    )


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes whose head promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def test_a_bad_file_is_told_and_the_page_goes_on(visit: Any, cat: bytes) -> None:
    visitor = visit().opened(cat)
    first = visitor.maps()
    bad = [
        ("notes.jpg", b"these are words, no picture", "not an image that can be read"),
        ("bomb.png", bomb(60_000), "megapixels"),
        ("half.png", cat[: len(cat) // 3], "broken"),
    ]
    for name, content, message in bad:
        visitor.give(name, content)
        visitor.page.get_by_text(re.compile(message)).first.wait_for()
        assert visitor.maps() == first
    assert "Traceback" not in visitor.page.content()
    visitor.shot("bad")
    visitor.page.locator("#icam-top label").nth(1).click()
    visitor.until_changed(first)


def test_a_file_over_the_limit_is_not_even_sent(visit: Any) -> None:
    visitor = visit()
    visitor.page.locator("#icam-stage input[type=file]").evaluate(
        """field => {
          const given = new DataTransfer();
          given.items.add(new File([new Uint8Array(21 * 2 ** 20)], "large.png"));
          field.files = given.files;
          field.dispatchEvent(new Event("change", { bubbles: true }));
        }"""
    )
    visitor.page.get_by_text("photographs up to 20 MB").wait_for()


def test_two_visitors_see_their_own_photograph(visit: Any, cat: bytes, cup: bytes) -> None:
    one, two = visit().opened(cat), visit().opened(cup)
    assert "tiger cat" in one.page.locator("figcaption").inner_text()
    assert "cat" not in two.page.locator("figcaption").inner_text()
    # Each goes on with its own, also when they act in turn.
    first, second = one.maps(), two.maps()
    one.page.get_by_label("none", exact=True).click()
    two.page.get_by_label("none", exact=True).click()
    one.until_changed(first), two.until_changed(second)
    assert "tiger cat" in one.page.locator("figcaption").inner_text()
    assert "cat" not in two.page.locator("figcaption").inner_text()
    pictures = [
        each.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--icam-photograph')")
        for each in (one, two)
    ]
    assert pictures[0] != pictures[1]


def test_on_a_phone_nothing_is_wider_than_it(visit: Any, cat: bytes) -> None:
    visitor = visit(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True)
    visitor.shot("phone-first")
    visitor.opened(cat)
    visitor.page.get_by_label("two methods").tap()
    visitor.page.locator("figure").nth(1).wait_for()
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    first, second = visitor.page.locator("figure").all()
    assert first.bounding_box()["y"] + first.bounding_box()["height"] <= second.bounding_box()["y"]
    visitor.page.locator("#icam-measure").tap()
    visitor.page.locator("#icam-curves polyline").first.wait_for(timeout=180_000)  # 100 runs of the network
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.shot("phone")


def test_by_keyboard_alone(visit: Any) -> None:
    visitor = visit()
    keyboard = visitor.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if visitor.page.evaluate("selector => !!document.activeElement?.closest(selector)", selector):
                return
            keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#icam-stage input[type=file]")
    tab_to("[data-example]")
    keyboard.press("Enter")
    visitor.page.locator("figure").wait_for()
    first = visitor.maps()
    tab_to("#icam-profile")
    keyboard.press("ArrowRight")
    second = visitor.until_changed(first)
    assert visitor.page.locator("#icam-profile output").inner_text().startswith("Layer 1: ")
    keyboard.press("ArrowRight")
    visitor.until_changed(second)
    assert visitor.page.locator("#icam-profile output").inner_text().startswith("Layer 2: ")
    tab_to("#icam-top")
    # In Gradio's fields Tab walks and Space chooses.
    keyboard.press("Tab")
    keyboard.press("Space")
    visitor.page.wait_for_function("() => document.querySelector('figcaption').innerText.includes('Egyptian')")


def test_dark_follows_the_system(visit: Any, cat: bytes) -> None:
    visitor = visit(color_scheme="dark").opened(cat)
    brightness = visitor.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3"
    )
    assert brightness < 60
    visitor.shot("dark")
