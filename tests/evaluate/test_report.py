"""From rows to tables, plots and the page: numbers by hand, a page that loads nothing, the same bytes for the same."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars
import pytest

from integrative_cam.evaluate._benchmark import ALL
from integrative_cam.evaluate._evaluation import Evaluation
from integrative_cam.evaluate._report import Example, html, verdict
from integrative_cam.evaluate._statistics import Interval
from integrative_cam.evaluate._summary import MethodScore, mean_ranks, summarise, tidy
from integrative_cam.render._colours import INK
from integrative_cam.render._plots import Dot, dot_plot, svg


def row(model: str, image: str, method: str, metric: str, value: float | list[int], name: str = "") -> dict[str, Any]:
    about = {"model": model, "image": image, "object": name or None, "target": 3, "method": method, "metric": metric}
    return {**about, **({"hits": value} if isinstance(value, list) else {"value": value})}


ROWS = [
    row(model, image, method, metric, value)
    for metric, table in {
        # Networks one and two, photographs a and b under the first, a alone under the second.
        "insertion": {"ours": (0.5, 0.7, 0.9), "theirs": (0.5, 0.1, 0.4)},
        "drop": {"ours": (0.0, 0.5, 0.2), "theirs": (1.0, 0.5, 0.2)},
        "area": {"ours": (0.1, 0.2, 0.3), "theirs": (0.2, 0.3, 0.4)},
    }.items()
    for method, values in table.items()
    for (model, image), value in zip((("one", "a"), ("one", "b"), ("two", "a")), values, strict=True)
]


def line(lines: list[MethodScore], model: str | None, metric: str, method: str) -> MethodScore:
    (found,) = [each for each in lines if (each.model, each.metric, each.method) == (model, metric, method)]
    return found


def test_lines_by_hand() -> None:
    lines = summarise(tidy(ROWS), "ours")
    assert len(lines) == 3 * 3 * 2
    one = line(lines, "one", "insertion", "theirs")
    assert one.mean.mean == pytest.approx(0.3)
    assert one.difference is not None
    # 0 and 0.6: a tie and a win.
    assert (one.difference.mean, one.difference.low, one.difference.high) == pytest.approx((0.3, 0, 0.6))
    assert one.win_rate is not None
    assert one.win_rate.mean == 0.75
    drop = line(lines, "one", "drop", "theirs")
    assert drop.difference is not None
    assert drop.win_rate is not None
    # -1 is a win, since lower is better, and 0 a tie.
    assert drop.difference.mean == pytest.approx(-0.5)
    assert drop.win_rate.mean == 0.75
    area = line(lines, "one", "area", "theirs")
    assert area.difference is not None
    assert area.win_rate is None
    ours = line(lines, "one", "drop", "ours")
    assert (ours.difference, ours.win_rate) == (None, None)


def test_networks_are_pooled_photograph_by_photograph() -> None:
    """Ours: a (0.5 + 0.9) / 2, b 0.7; theirs: a 0.45, b 0.1. Two photographs, whatever the number of networks."""
    lines = summarise(tidy(ROWS), "ours")
    pooled = line(lines, None, "insertion", "theirs")
    assert pooled.mean.n == 2
    ours = line(lines, None, "insertion", "ours").mean
    assert (ours.low, ours.mean, ours.high) == pytest.approx((0.7, 0.7, 0.7))
    assert pooled.mean.mean == pytest.approx(0.275)
    assert pooled.difference is not None
    assert (pooled.difference.low, pooled.difference.high) == pytest.approx((0.25, 0.6))
    only = summarise(tidy([each for each in ROWS if each["model"] == "one"]), "ours")
    assert {each.model for each in only} == {"one"}


def test_objects_of_a_photograph_are_paired_with_themselves() -> None:
    """Rows in another order for each method."""
    rows = [row("one", "a", "ours", "energy", 0.75, "dog"), row("one", "a", "ours", "energy", 0.25, "cat")]
    rows += [row("one", "a", "theirs", "energy", 0.125, "cat"), row("one", "a", "theirs", "energy", 0.625, "dog")]
    frame = tidy(rows)
    ours, theirs = (frame.filter(polars.col("method") == name) for name in ("ours", "theirs"))
    for each in (frame, polars.concat([ours, theirs.reverse()])):
        ahead = line(summarise(each, "ours"), "one", "energy", "theirs").difference
        assert ahead == Interval(0.125, 0.125, 0.125, 2)


def test_box_hits_are_counted_at_the_best_common_threshold() -> None:
    """Threshold 7 finds two of ours, 9 two of theirs; the image without a hit keeps its row."""
    hits = {"ours": ([3, 7], [7, 8], []), "theirs": ([9], [1, 9], [2])}
    rows = [
        row("one", image, method, "maxboxacc", found)
        for method, images in hits.items()
        for image, found in zip("abc", images, strict=True)
    ]
    frame = tidy(rows)
    values = {method: frame.filter(polars.col("method") == method).sort("image")["value"].to_list() for method in hits}
    assert values == {"ours": [1, 1, 0], "theirs": [1, 1, 0]}
    assert frame.columns == ["model", "image", "object", "target", "method", "metric", "value"]
    mixed = tidy([*rows, row("two", "a", "ours", "maxboxacc", [5])])
    assert mixed.filter(polars.col("model") == "two")["value"].to_list() == [1]


def test_ranks_by_hand() -> None:
    lines = summarise(tidy(ROWS), "ours")
    # Under the first network ours has the higher insertion and the lower drop; area has no better side.
    assert mean_ranks(lines, "one") == {"ours": 1.0, "theirs": 2.0}
    # Under the second the drops are equal.
    assert mean_ranks(lines, "two") == {"ours": 1.25, "theirs": 1.75}
    partial = [*lines, MethodScore("one", "insertion", "control", Interval(9, 9, 9, 2), None, None)]
    assert mean_ranks(partial, "one") == {"ours": 1.0, "theirs": 2.0}
    assert mean_ranks([each for each in lines if each.metric == "area"], "one") == {}


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("insertion", 0.1, 0.2, "ahead"),
        ("insertion", -0.2, -0.1, "behind"),
        ("insertion", -0.1, 0.2, ""),
        ("insertion", 0.0, 0.2, ""),
        ("drop", -0.2, -0.1, "ahead"),
        ("drop", 0.1, 0.2, "behind"),
        ("area", 0.1, 0.2, ""),
    ],
)
def test_verdicts(metric: str, low: float, high: float, expected: str) -> None:
    ahead = Interval((low + high) / 2, low, high, 5)
    assert verdict(MethodScore("one", metric, "theirs", ahead, ahead, None)) == expected
    assert verdict(MethodScore("one", metric, "ours", ahead, None, None)) == ""


# --- plots


DOTS = [Dot("ours", "one", 0.5, 0.25, 0.75), Dot("theirs", "one", 0.1, 0.0, 0.3), Dot("ours", None, 0.4, 0.35, 0.5)]


def test_dots_lie_at_their_values() -> None:
    axes = dot_plot(DOTS, "insertion ↑", zero=True).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "theirs"]
    one, pooled = axes.containers
    assert one[0].get_xdata().tolist() == [0.5, 0.1]
    ends = [segment[:, 0].tolist() for segment in one[2][0].get_segments()]
    assert ends == [pytest.approx([0.25, 0.75]), pytest.approx([0.0, 0.3])]
    # From top to bottom, the whole below its parts.
    low, high = axes.get_ylim()
    assert low > high
    assert pooled[0].get_ydata()[0] > one[0].get_ydata()[0]
    assert round(pooled[0].get_ydata()[0]) == round(one[0].get_ydata()[0]) == 0
    assert (one.get_label(), pooled.get_label()) == ("one", "all networks")
    assert [list(drawn.get_xdata()) for drawn in axes.lines if list(drawn.get_xdata()) == [0, 0]]
    plain = dot_plot(DOTS, "insertion ↑").axes[0]
    assert not [drawn for drawn in plain.lines if list(drawn.get_xdata()) == [0, 0]]


def test_the_same_numbers_give_the_same_bytes() -> None:
    first, second = (svg(dot_plot(DOTS, "insertion ↑")) for _ in range(2))
    assert first == second
    assert ">theirs</text>" in first
    assert "<dc:date>" not in first


# --- the page


class Page(HTMLParser):
    """What a page's tags ask for, and the texts of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def page(**changes: Any) -> str:
    models = {"one": "", "two": "w.pth"}
    settings = {"dataset": "some/photos", "models": models, "target": "top1", "limit": None, "torch": "9.9"}
    rows = tidy(ROWS)
    contents: dict[str, Any] = {
        "out": "out",
        "settings": settings,
        "reference": "ours",
        "rows": rows,
        "scores": tuple(summarise(rows, "ours")),
        "failures": ((Path("x.png"), "<script>alert(1)</script>"),),
        "left_out": {"no dog within the network's top 20": 4},
        "notes": (),
        "attempted": 2,
    }
    plots = {"insertion ↑": svg(dot_plot(DOTS, "insertion ↑"), transparent=True)}
    examples = changes.pop("examples", [Example("a <b>.png", {"photograph": "data:image/jpeg;base64,AAAA"})])
    return html(Evaluation(**{**contents, **changes}), plots, examples, "the ends")


def test_the_page_loads_nothing() -> None:
    text = page()
    for link in Page(text).links:
        assert link.startswith(("data:image/jpeg;base64,", "#")), link
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttp", text)
    assert text == page()


def test_the_page_says_what_was_measured() -> None:
    parsed = Page(page())
    texts = parsed.texts
    assert "all networks, n = 2" in texts
    assert "one, n = 2" in texts
    assert texts.index("all networks, n = 2") < texts.index("one, n = 2")
    for expected in (
        "0.275",
        "[0.100, 0.450]",
        "▲ +0.425",
        "-0.500",
        "75 %",
        "1.25",
        "9.9",
        "the ends",
        "one, two (w.pth)",
    ):
        assert expected in texts, expected
    assert "4 \u00d7 no dog within the network's top 20" in texts
    assert texts.count("ours and other methods on photos") == 1


def test_metrics_are_told_in_the_same_words_on_the_page_and_in_the_docs() -> None:
    told = unescape(page())
    docs = (Path(__file__).parents[2] / "docs/how-to/measure.md").read_text()
    better = {True: " higher ", False: " lower ", None: " "}
    for name, metric in ALL.items():
        assert re.search(rf"^\| `{name}` \|{better[metric.higher_is_better]}\| {re.escape(metric.meaning)}", docs, re.M)
        assert (f"<dt>{name}</dt><dd>{metric.meaning}</dd>" in told) == (name in {"insertion", "drop", "area"})


def test_what_comes_from_files_is_text() -> None:
    text = page()
    assert "<script>alert(1)" not in text
    assert "x.png: &lt;script&gt;" in text
    assert "a &lt;b&gt;.png" in text


def test_plots_take_the_colour_of_the_text() -> None:
    text = page()
    assert INK not in text
    assert "currentColor" in text


def test_nothing_failed_and_no_examples() -> None:
    text = page(failures=(), left_out={}, examples=[])
    assert "Not measured" not in text
    assert "Examples" not in text
