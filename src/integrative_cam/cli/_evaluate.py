"""`icam evaluate`: `evaluate_dataset` with a bar while it measures, and tables when it has."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..evaluate import Evaluation, Interval, evaluate_dataset
from ..evaluate._benchmark import ALL
from ..evaluate._evaluation import FILES
from ._options import weights_by_model
from ._printed import progress_bar, report_failures


def run_evaluation(models: tuple[str, ...], weights: tuple[str, ...], **settings: Any) -> int:
    """Measure, print the summary and what was written where; 0, or 1 if any photograph failed."""
    files = weights_by_model(weights, models)
    with progress_bar("Measuring") as progress:
        evaluation = evaluate_dataset(models={name: files.get(name) for name in models}, progress=progress, **settings)
    for note in evaluation.notes:
        print(f"icam: {note}", file=sys.stderr)
    for reason, count in evaluation.left_out.items():
        print(f"Left out: {count} x {reason}")
    if evaluation.scores:
        print_summary(evaluation)
        print("Written:")
        for name in FILES:
            print(f"  {settings['out'] / name}")
    else:
        print("Nothing could be measured.")
    return report_failures(evaluation.failures, evaluation.attempted)


def print_summary(evaluation: Evaluation) -> None:
    """Per network and pooled: each metric's mean for each method, the reference's advantage, how often it wins."""
    # Narrower tables would break intervals in two.
    console = Console(width=max(100, Console().width), markup=False)
    for model in dict.fromkeys(score.model for score in evaluation.scores):
        scores = [score for score in evaluation.scores if score.model == model]
        count = max(score.mean.n for score in scores)
        title = f"{model or 'all networks'}, n = {count}: mean [95 % bootstrap interval]"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("metric", "method", "mean", f"{evaluation.reference} minus it", "wins"):
            table.add_column(column)
        for metric in dict.fromkeys(score.metric for score in scores):
            title = ALL[metric].title(metric)
            for score in scores:
                if score.metric == metric:
                    table.add_row(
                        title,
                        score.method,
                        _shown(score.mean) + (f", n = {score.mean.n}" if score.mean.n < count else ""),
                        _shown(score.difference, "+") if score.difference else "",
                        f"{score.win_rate.mean:.0%}" if score.win_rate else "",
                    )
                    title = ""
            table.add_section()
        console.print(table)
        ranks = sorted(evaluation.mean_ranks(model).items(), key=lambda pair: pair[1])
        if len(ranks) > 1:
            shown = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks)
            console.print(f"Mean rank: {shown}\n", highlight=False, soft_wrap=True)


def _shown(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
