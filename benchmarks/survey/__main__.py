"""Explain every network of a library with random weights, and check each map: `make survey`."""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing as mp
import platform
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from integrative_cam import __version__
from integrative_cam.errors import InputError
from integrative_cam.storage import written_whole
from survey.checks import Surveyed, failed, survey
from survey.families import SOURCES, names

FORMATS = (".csv", ".md")


def run_survey(source: str, pattern: str, seed: int, out: Path | None, processes: int) -> int:
    """Survey networks, print and write the table; 0 where every map came out right, else 1."""
    if source not in (*SOURCES, "all"):
        raise InputError(f"--source must be one of {', '.join(SOURCES)}, all, but got {source!r}.")
    if out is not None and out.suffix not in FORMATS:
        raise InputError(f"--out must end in {' or '.join(FORMATS)}, but got {out}.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows: list[Surveyed] = []
    with Progress(*columns, console=Console(stderr=True)) as bar:
        chosen: list[str] = []
        for each in SOURCES if source == "all" else (source,):
            counting = bar.add_task(f"weighing {each}", total=None)
            chosen += names(each, pattern, lambda done, of, task=counting: bar.update(task, completed=done, total=of))  # type: ignore[misc]
            bar.remove_task(counting)
        if not chosen:
            raise InputError(f"--models {pattern!r} matches no network of {source}.")
        surveying = bar.add_task("surveying", total=len(chosen))
        for row in isolated(chosen, seed, processes):
            rows.append(row)
            bar.console.print(f"{row.name}: {row.verdict}", style="" if row.ok else "red", highlight=False)
            bar.update(surveying, advance=1)
            if out is not None:
                _write(_ordered(rows, chosen), out)
    rows = _ordered(rows, chosen)
    print(markdown(rows))
    return 0 if all(row.ok for row in rows) else 1


def isolated(chosen: Sequence[str], seed: int, processes: int) -> Iterator[Surveyed]:
    """Rows as they come, each from a process of its own, so that what kills one network's leaves the others alone."""
    context: Any = mp.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(["survey.checks", "timm", "torchvision"])
    waiting = list(reversed(chosen))
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                name = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_survey, args=(name, seed, torch.get_num_threads(), theirs))
                process.start()
                theirs.close()
                running[ours] = name, process
            ready = set(wait(list(running)))
            for ours in [each for each in running if each in ready]:
                name, process = running.pop(ours)
                try:
                    row: Surveyed | None = ours.recv()
                except EOFError:
                    row = None
                process.join()
                yield row or failed(name, f"its process died with code {process.exitcode}")
    finally:
        for _, process in running.values():
            process.terminate()


def _survey(name: str, seed: int, threads: int, reply: Connection) -> None:
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    reply.send(survey(name, seed))


def _ordered(rows: Sequence[Surveyed], chosen: Sequence[str]) -> list[Surveyed]:
    place = {name: at for at, name in enumerate(chosen)}
    return sorted(rows, key=lambda row: place[row.name])


def markdown(rows: Sequence[Surveyed]) -> str:
    """The table, the counts above it and the versions below it."""
    columns = list(rows[0].row())
    lines = [counts(rows), "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row.row().values()).replace(chr(10), ' ')} |" for row in rows]
    return "\n".join([*lines, "", versions()])


def counts(rows: Sequence[Surveyed]) -> str:
    """How many of how many are ok, by source; and of those that convolve."""
    parts = []
    for source in SOURCES:
        of = [row for row in rows if row.name.startswith(f"{source}/")]
        if of:
            conv = [row for row in of if row.convolutional]
            parts.append(
                f"{source}: {sum(row.ok for row in of)} of {len(of)} ok; "
                f"of the convolutional ones {sum(row.ok for row in conv)} of {len(conv)}."
            )
    return " ".join(parts)


def versions() -> str:
    """What the table was made with."""
    import timm
    import torchvision

    return (
        f"integrative-cam {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"timm {timm.__version__}, Python {platform.python_version()}."
    )


def _write(rows: Sequence[Surveyed], out: Path) -> None:
    if out.suffix == ".md":
        text = markdown(rows) + "\n"
    else:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0].row()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.row() for row in rows)
        text = table.getvalue()
    written_whole(out, text)


def main() -> int:
    """Parse the command line and survey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--source", default="all", help="torchvision, timm (the smallest of each family) or all")
    parser.add_argument("--models", default="*", help="a glob over the networks' names")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--out", "-o", type=Path, help="FILE.md or FILE.csv, rewritten after each network")
    parser.add_argument("--processes", type=int, default=1, help="how many networks at once")
    asked = parser.parse_args()
    return run_survey(asked.source, asked.models, asked.seed, asked.out, asked.processes)


if __name__ == "__main__":
    sys.exit(main())
