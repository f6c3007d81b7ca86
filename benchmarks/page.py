"""Time from a switch on the page to its new picture, as a ratio to a full run: photograph, network, map, picture.

python benchmarks/page.py            # in process
python benchmarks/page.py --server   # and through a server on this machine, as a browser asks it
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from integrative_cam import explain_trace, trace
from integrative_cam.app._photograph import photograph
from integrative_cam.app._screen import Screen, Selection, screen_of
from integrative_cam.app._server import example, offer_of
from integrative_cam.app._session import Session, SessionStore
from integrative_cam.models import DEFAULT
from integrative_cam.recipe import Recipe

REPEATS = 15
CHANGES = [
    {"readout": "identity"},
    {"bias": "none"},
    {"bias": "complete"},
    {"weighting": "uniform"},
    {"negative_share": 0.0},
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", action="store_true", help="also measure through a server")
    through = parser.parse_args().server
    torch.set_num_threads(1)
    path = example()
    assert path is not None
    sessions = SessionStore(offer_of([DEFAULT], {}))

    def full() -> Session:
        session = sessions.open(photograph(path.read_bytes(), path.name))
        show(session, selection(session))
        return session

    whole = median(full)
    session = full()
    first = selection(session)
    print(f"full run: {whole:.0f} ms (photograph, network once, map, picture)")
    for change in CHANGES:
        chosen = replace(first, recipe=replace(Recipe(), **change))

        def opened() -> None:
            # What was made of a choice before is not used again.
            session.computed.forget(session.key)
            show(session, first)

        def switched(chosen: Selection = chosen) -> None:
            show(session, chosen)

        print(row(str(change), median(switched, opened), whole))

    found = session._trace(DEFAULT, first.target, Recipe())
    model, seen = session.network(DEFAULT).model, session.seen(DEFAULT)
    print("\nof which")
    print(row("network forward and gradient", median(lambda: trace(model, seen.tensor, first.target)), whole))
    print(row("integrate", median(lambda: explain_trace(found, Recipe())), whole))
    print(row("map over the photograph, as HTML", median(screen_of(session, first).stage), whole))
    print(row("photograph read and shrunk", median(lambda: photograph(path.read_bytes(), path.name)), whole))
    if through:
        print(row("\na switch through the server", through_server(path), whole))


def selection(session: Session) -> Selection:
    """What the page shows first."""
    return Selection(DEFAULT, session.ranking(DEFAULT).classes[0].index, "integrative", Recipe())


def show(session: Session, chosen: Selection) -> tuple[str, ...]:
    """All parts of the page for a selection."""
    screen: Screen = screen_of(session, chosen)
    return screen.stage(), screen.profile(), screen.numbers(), screen.code()


def median(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Milliseconds of the processor: what else the machine does meanwhile does not count, nor what is done before."""
    before()
    work()
    times = []
    for _ in range(REPEATS):
        before()
        start = time.process_time()
        work()
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times)


def row(name: str, milliseconds: float, whole: float) -> str:
    """One line of the table."""
    return f"{name:34} {milliseconds:7.1f} ms   {milliseconds / whole:.2f} of a full run"


def through_server(path: Path) -> float:
    """A switch in Chromium, from the click to the new picture."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from serving import browser, served

    log = Path("test-output") / "page-benchmark.txt"
    log.parent.mkdir(exist_ok=True)
    with served(log) as address, browser() as opened:
        page = opened.new_page()
        page.goto(address)
        page.locator("#icam-stage input[type=file]").set_input_files(path)
        page.locator("#icam-stage figure").wait_for()
        page.get_by_label("identity", exact=True).wait_for()
        times: list[float] = page.evaluate(
            """async (labels) => {
              const times = [];
              const image = () => document.querySelector("#icam-stage figure img").src;
              for (const label of labels) {
                const before = image(), start = performance.now();
                [...document.querySelectorAll("input[type=radio]")].find((each) => each.value === label).click();
                while (image() === before) await new Promise((next) => setTimeout(next, 2));
                times.push(performance.now() - start);
                await new Promise((next) => setTimeout(next, 200));
              }
              return times;
            }""",
            ["identity", "none", "uniform", "complete", "softplus", "average", "residual", "product"],
        )
    return statistics.median(times)


if __name__ == "__main__":
    main()
