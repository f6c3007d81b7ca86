"""The report of a run: what is read, what is suspicious, the page as text and in a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from serving import browser

from integrative_cam.cli._report import write_report
from integrative_cam.errors import ExplanationError
from integrative_cam.reports import Case, cases_of_explanations, html, read_truth
from integrative_cam.reports._cases import border, thumbnail_side
from integrative_cam.reports._explanations import reasons
from integrative_cam.reports._truth import stands_for

CASE = Case(
    image="a.jpg", explained="cat 90.0%", prediction="cat", confidence=0.9, runner_up=0.05, truth=(), right=None,
    area=0.1, border=0.2, on_object=None, object_area=None, remainder=0.5, model="net", method="integrative",
    picture="data:image/webp;base64,", folder="a",
)  # fmt: skip
NASTY = '<img src=x onerror="document.title=1">'


def write(folder: Path, image: str, saliency: torch.Tensor, top: list[tuple[int, str, float]], **other: Any) -> None:
    (folder / "explanation").mkdir(parents=True)
    save_file({"map": saliency[None]}, folder / "explanation" / "arrays.safetensors")
    Image.effect_noise((400, 300), 80).save(folder / "overlay.png")
    record = {
        "image": image, "size": [40, 20], "seen": [10, 0, 30, 20], "model": "net", "method": "integrative",
        "named": f"{top[0][1]} {top[0][2]:.1%}", "classes": 10, "target": {"classes": [top[0][0]]},
        "top": [{"index": index, "label": label, "probability": value} for index, label, value in top],
        "parts": {"input": -1.0, "bias": 2.0, "remainder": -1.0},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record | other))


def corner() -> torch.Tensor:
    saliency = torch.zeros(10, 10)
    saliency[0, 0], saliency[5, 5] = 1, 0.25
    return saliency


def test_what_is_read(tmp_path: Path) -> None:
    write(tmp_path / "run" / "a", "a.jpg", corner(), [(3, "cat, felis", 0.75), (4, "dog", 0.2)])
    (tmp_path / "truth.csv").write_text("file,label\nelsewhere/a.jpg,Felis\n")
    (case,), unread = cases_of_explanations(tmp_path / "run", read_truth(str(tmp_path / "truth.csv")))
    assert unread == []
    assert (case.prediction, case.confidence, case.runner_up, case.right) == ("cat, felis", 0.75, 0.2, True)
    assert (case.area, case.border, case.remainder) == (0.01, 0.8, 0.25)
    assert (case.truth, case.folder, case.on_object) == (("Felis",), "a", None)
    assert case.picture.startswith("data:image/webp;base64,")
    (case,), _ = cases_of_explanations(tmp_path, read_truth(None))
    assert case.right is None


def test_labels_that_do_not_exclude_each_other_have_no_runner_up(tmp_path: Path) -> None:
    write(tmp_path / "a", "a.jpg", corner(), [(3, "cat", 0.75), (4, "dog", 0.74)], task="multi-label")
    (case,), _ = cases_of_explanations(tmp_path, read_truth(None))
    assert (case.confidence, case.runner_up) == (0.75, None)
    assert "close" not in [reason.kind for reason in reasons(case)]


def test_the_object_is_where_the_network_saw_it(tmp_path: Path) -> None:
    # The network saw the middle, 10 to 30 across: a box from 0 to 20 there is the left half of the map, 10 to 20.
    (tmp_path / "voc" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "voc" / "Annotations").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "voc" / "JPEGImages" / "a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text(
        f"<annotation><object><name>cat</name>{box}</object><object><name>dog</name>{box}</object></annotation>"
    )
    write(tmp_path / "run" / "a", str(tmp_path / "voc" / "JPEGImages" / "a.jpg"), corner(), [(3, "cat", 0.75)])
    (case,), _ = cases_of_explanations(tmp_path / "run", read_truth(str(tmp_path / "voc")))
    assert (case.on_object, case.object_area, case.right, case.truth) == (
        pytest.approx(0.8), 0.5, True, ("cat", "dog"),
    )  # fmt: skip


def test_folders_are_classes(tmp_path: Path) -> None:
    write(tmp_path / "run" / "a", "/data/dog/a.jpg", corner(), [(3, "cat", 0.75)])
    (case,), _ = cases_of_explanations(tmp_path / "run", read_truth("folders"))
    assert (case.truth, case.right) == (("dog",), False)


def test_a_truth_that_no_prediction_agrees_with_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Cat", "dog"):
        write(tmp_path / "run" / name, f"/photos/{name}/1.jpg", corner(), [(3, "cat", 0.75)])
    write_report(tmp_path / "run", "folders", None)
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "run" / "Cat")
    write_report(tmp_path / "run", "folders", None)
    assert capsys.readouterr().err.startswith(
        "icam: no prediction agrees with --truth folders: dog. Its classes must be"
    )


def test_what_icam_run_wrote_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(ExplanationError, match=r"what icam run wrote: integrative_cam.run.Results\('.*'\) reads it"):
        cases_of_explanations(tmp_path, read_truth(None))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path / "good", "a.jpg", corner(), [(3, "cat", 0.75)])
    write(tmp_path / "bad", "b.jpg", corner(), [(3, "cat", 0.75)])
    (tmp_path / "bad" / "overlay.png").unlink()
    (tmp_path / "worse").mkdir()
    (tmp_path / "worse" / "record.json").write_text("{")
    cases, unread = cases_of_explanations(tmp_path, read_truth(None))
    assert [case.image for case in cases] == ["a.jpg"]
    assert [line.split(":")[0] for line in unread] == [str(tmp_path / "bad"), str(tmp_path / "worse")]
    assert all(line in html(cases, unread, "run") for line in [f"{tmp_path / 'worse'}: Expecting"])
    with pytest.raises(ExplanationError, match=r"holds no explanation with a record.json"):
        cases_of_explanations(tmp_path / "good" / "explanation", read_truth(None))


@pytest.mark.parametrize(
    ("truth", "index", "label", "classes", "right"),
    [
        ("3", 3, "x", 10, True), ("3", 33, "3", 10, False), (" Felis ", 3, "cat, felis", 10, True),
        ("fel", 3, "cat, felis", 10, False), ("cat", 282, "tiger cat", 1000, True),
        ("cat", 282, "tiger cat", 999, False),
    ],
)  # fmt: skip
def test_a_class_stands_for_the_truth(truth: str, index: int, label: str, classes: int, right: bool) -> None:
    assert stands_for(truth, index, label, classes) is right


def test_border_of_a_flat_and_of_a_blank_map() -> None:
    assert border(torch.ones(20, 30)) == pytest.approx(0.36)
    assert border(torch.zeros(20, 30)) == 0


def test_thumbnails_together_stay_bounded() -> None:
    assert (thumbnail_side(1), thumbnail_side(1000), thumbnail_side(4000), thumbnail_side(10**6)) == (240, 240, 120, 96)
    assert 2000 * thumbnail_side(2000) ** 2 <= 1000 * 240**2 * 1.01


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        ({"right": True}, []),
        ({"right": False, "truth": ("dog",)}, ["confident and wrong"]),
        ({"right": False, "truth": ("dog",), "confidence": 0.4}, ["wrong"]),
        ({"area": 0.0}, ["blank map"]),
        ({"on_object": 0.2, "object_area": 0.3}, ["off the object"]),
        ({"on_object": 0.3, "object_area": 0.2}, []),
        ({"border": 0.7, "area": 0.6}, ["at the border", "wide map"]),
        ({"confidence": 0.2, "runner_up": 0.19}, ["unsure"]),
        ({"confidence": 0.5, "runner_up": 0.49}, ["close"]),
        ({"confidence": None, "runner_up": None, "remainder": 0.8}, ["large remainder"]),
    ],
)
def test_reasons(changes: dict[str, Any], kinds: list[str]) -> None:
    assert [reason.kind for reason in reasons(replace(CASE, **changes))] == kinds


def test_the_surer_a_wrong_case_the_higher(tmp_path: Path) -> None:
    wrong = {"right": False, "truth": ("dog",)}
    cases = [
        CASE,
        replace(CASE, image="half.jpg", confidence=0.55, **wrong),
        replace(CASE, image="unsure.jpg", confidence=0.1, border=0.9, area=0.6, **wrong),
        replace(CASE, image="sure.jpg", confidence=0.99, **wrong),
    ]
    page = html(cases, [], "run")
    names = ("unsure.jpg", "sure.jpg", "half.jpg", "a.jpg")
    order = [page.index(f'data-name="{name}') for name in names]
    assert order == sorted(order)
    assert "says cat with 99%, but is dog" in page


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_names_are_text_and_nothing_is_loaded() -> None:
    case = replace(
        CASE, image=f"{NASTY}.jpg", explained=NASTY, prediction=f'"{NASTY}', truth=(NASTY,), right=False, model=NASTY,
        folder=f"javascript:{NASTY}",
    )  # fmt: skip
    elements = Elements(html([case], [NASTY], NASTY)).found
    assert not any("onerror" in each for _, each in elements)
    images = [each for tag, each in elements if tag == "img"]
    assert [each["loading"] for each in images] == ["lazy"]
    assert images[0]["src"].startswith("data:")
    links = [each[name] for _, each in elements for name in ("href", "src") if name in each]
    assert [link for link in links if not link.startswith("data:")] == [
        "./javascript%3A%3Cimg%20src%3Dx%20onerror%3D%22document.title%3D1%22%3E/panel.png"
    ]


@pytest.fixture
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


def test_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    cases = [
        replace(CASE, image="b.jpg", prediction="dog", confidence=0.6, right=True, truth=("dog",), area=0.4),
        replace(CASE, image="a.jpg", confidence=0.95, right=False, truth=("dog",)),
        replace(CASE, image=f"c{NASTY}.jpg", confidence=None, area=0.3),
    ]
    (tmp_path / "report.html").write_text(html(cases, [], f"run {NASTY}"))
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())

    def shown() -> list[str]:
        return [
            name[0]
            for name in page.eval_on_selector_all("li.case:not([hidden])", "all => all.map(e => e.dataset.name)")
        ]

    assert shown() == ["a", "b", "c"]
    for option, orders in (("sure", "abc"), ("unsure", "bac"), ("area", "bca"), ("name", "abc")):
        page.select_option("[name=sort]", option)
        assert "".join(shown()) == orders
    page.select_option("[name=class]", "dog")
    assert shown() == ["b"]
    page.click("button[type=reset]")
    page.wait_for_function("document.querySelector('output').value === '3 of 3'")
    page.select_option("[name=verdict]", "wrong")
    assert shown() == ["a"]
    page.select_option("[name=verdict]", "")
    page.select_option("[name=kind]", "confident and wrong")
    assert shown() == ["a"]
    page.select_option("[name=kind]", "")
    page.fill("[name=from]", "70")
    assert shown() == ["a"]
    page.fill("[name=from]", "0")
    page.fill("[name=text]", "C<IMG")
    assert shown() == ["c"]
    assert page.inner_text("output") == "1 of 3"
    page.fill("[name=text]", "")

    # By keyboard: from the first control to the first case's link.
    page.focus("[name=sort]")
    for _ in range(8):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('li').dataset.name") == "a.jpg"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    backgrounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(23, 23, 22)"]
    assert page.title() != "1"
    assert problems == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_two_thousand_cases_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    picture = "data:image/webp;base64," + "A" * 10_000
    cases = [replace(CASE, image=f"{number:04}.jpg", picture=picture) for number in range(2000)]
    (tmp_path / "report.html").write_text(html(cases, [], "run"))
    assert (tmp_path / "report.html").stat().st_size < 25e6
    page = chromium.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.fill("[name=text]", "199")
    assert page.inner_text("output") == "12 of 2000"
