"""The screenshots of docs/page.md: `python benchmarks/page_pictures.py`. Needs Chromium and Playwright."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from integrative_cam.app._server import example

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT / "tests"))

from serving import browser, served  # noqa: E402


def main() -> None:
    """Serve the page, visit it as a desktop, in the dark and as a phone, and write the pictures."""
    log = ROOT / "test-output" / "page-pictures.txt"
    log.parent.mkdir(exist_ok=True)
    with served(log) as address, browser() as opened:
        taken(_opened(opened, address, viewport={"width": 1280, "height": 900}), "page-desktop")
        page = _opened(opened, address, viewport={"width": 1280, "height": 900}, color_scheme="dark")
        page.get_by_label("two methods").click()
        page.locator("#icam-stage figure").nth(1).wait_for()
        page.locator("#icam-measure").click()
        page.locator("#icam-curves polyline").first.wait_for()
        taken(page, "page-dark")
        phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
        page = _opened(opened, address, **phone)
        page.locator("#icam-profile .icam-bars label").last.tap()
        page.get_by_text("against", exact=True).wait_for()
        taken(page, "page-phone", full=False)


def _opened(browser: Any, address: str, **options: Any) -> Any:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator("#icam-stage input[type=file]").set_input_files(example())
    page.locator("#icam-stage figure").wait_for()
    page.locator("#icam-top label").first.wait_for()
    return page


def taken(page: Any, name: str, full: bool = True) -> None:
    """Write the picture, and say where."""
    page.wait_for_timeout(1000)
    path = IMAGES / f"{name}.jpg"
    page.screenshot(path=path, full_page=full, type="jpeg", quality=82)
    print(path)


if __name__ == "__main__":
    main()
