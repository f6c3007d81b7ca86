"""Explain networks that move what they look at, and count how many maps are right: `python -m benchmarks.moved`."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import sys
from collections.abc import Sequence
from functools import partial

import torch
from rich.progress import track

from .trial import VERDICTS, WRONG, Trial, rejudged, tried


def table(trials: Sequence[Trial]) -> str:
    """For each kind of step, how many compositions with it got which verdict."""
    kinds = sorted({kind for trial in trials for kind in trial.kinds})
    lines = [f"| kind | n | {' | '.join(VERDICTS)} |", f"|---|{'---:|' * (1 + len(VERDICTS))}"]
    for kind in [*kinds, ""]:
        of = [trial for trial in trials if not kind or kind in trial.kinds]
        counts = [sum(trial.verdict == verdict for trial in of) for verdict in VERDICTS]
        lines.append(f"| {kind or '**all**'} | {len(of)} | {' | '.join(map(str, counts))} |")
    share = sum(trial.verdict == "right" for trial in trials) / len(trials)
    vanished = [str(trial.seed) for trial in trials if trial.vanished]
    lines += ["", f"{share:.1%} right. Fewer layers than activations, without a warning, in {len(vanished)}."]
    return "\n".join(lines)


def failures(trials: Sequence[Trial]) -> str:
    """The seeds of what was not right, by verdict."""
    lines = []
    for verdict in VERDICTS[1:]:
        seeds = [str(trial.seed) for trial in trials if trial.verdict == verdict]
        lines += [f"{verdict}: {' '.join(seeds)}"] if seeds else []
    vanished = [str(trial.seed) for trial in trials if trial.vanished and trial.verdict == "right"]
    lines += [f"right with fewer layers than activations, without a warning: {' '.join(vanished)}"] if vanished else []
    return "\n".join(lines)


def described(trial: Trial) -> str:
    """One composition's recipe, verdict and what the library said."""
    gone = f", {trial.vanished} activations vanished" if trial.vanished else ""
    lines = [f"seed {trial.seed}: {trial.verdict}{gone}", f"  {trial.recipe}"]
    lines += [f"  {trial.reason}"] if trial.reason else []
    return "\n".join([*lines, *(f"  warning: {each}" for each in trial.said)])


def main() -> int:
    """Parse the command line, try the compositions and print the table; 0 where nothing is silently wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="number of compositions")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--moves", type=int, help="moves per composition, instead of 0 to 4")
    parser.add_argument("--only", type=int, nargs="+", help="try these seeds and print each network and its verdict")
    parser.add_argument("--show", choices=VERDICTS, nargs="*", default=(), help="print each network of these verdicts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = options.only or range(options.seed, options.seed + options.n)
    trial_of = partial(tried, moves=options.moves)
    found: list[Trial]
    if options.jobs > 1:
        with mp.get_context("fork").Pool(options.jobs) as pool:
            found = list(track(pool.imap(trial_of, seeds, 8), total=len(seeds), disable=not sys.stderr.isatty()))
    else:
        found = [trial_of(seed) for seed in track(seeds, disable=not sys.stderr.isatty())]
    if sum(trial.verdict == "silently wrong" for trial in found) <= max(5, 0.05 * len(found)):  # a second each
        found = [rejudged(trial, options.moves) for trial in found]
    for trial in found:
        if options.only or trial.verdict in options.show:
            print(described(trial))
    if not options.only:
        print(f"{table(found)}\n\n{failures(found)}")
    return int(any(trial.verdict in WRONG for trial in found))


if __name__ == "__main__":
    sys.exit(main())
