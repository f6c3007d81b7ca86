"""The bar of a command that works through many images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ..run import Progress


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "- images/s")


@contextmanager
def progress_bar(verb: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error, which starts with the first call: an error before it is printed alone.

    What an earlier run has done is in the first call, so that it does not count as speed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    bars = Bars(*columns, console=Console(stderr=True))

    def report(progress: Progress) -> None:
        if not bars.task_ids:
            bars.start()
            bars.add_task(verb, completed=progress.done, total=progress.total)
        failed = f", {progress.failed} failed" if progress.failed else ""
        (bar,) = bars.task_ids
        bars.update(bar, completed=progress.done, total=progress.total, description=f"{verb}{failed}")

    try:
        yield report
    finally:
        if bars.task_ids:
            bars.stop()
