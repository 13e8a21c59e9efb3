"""The tables of a study's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flows.reports.formatting import percent, score_text, with_interval
from opid_core.comparison import PairedDifference
from opid_core.evaluation import Estimate
from tasks.markdown import markdown_table

if TYPE_CHECKING:
    from flows.reports.study import MethodRow, SeedRun

TESTS = ("p", "p (Holm)", "detectable")
"""Columns of each comparison."""


def tests(found: PairedDifference) -> list[str]:
    """The cells of `TESTS`; what could be detected in points."""
    adjusted = "" if found.adjusted_p is None else f"{found.adjusted_p:.2g}"
    detectable = "–" if found.detectable is None else f"{100 * found.detectable:.1f} points"
    return [f"{found.p_value:.2g}", adjusted, detectable]


def success_table(rows: Sequence[MethodRow]) -> list[str]:
    return markdown_table(
        ["method", "temperature", "seeds", "tasks", "before", "success (micro)", "success (macro)"],
        [
            [
                *(r.method, f"{r.temperature:g}", str(len(r.seeds)), str(r.tasks), percent(r.before)),
                *(interval(r.micro), interval(r.macro)),
            ]
            for r in rows
        ],
    )


def difference_table(pairs: Sequence[tuple[MethodRow, PairedDifference | None]], *, twins: bool = False) -> list[str]:
    """The rows that have a difference; `twins`: with the label of the twin."""
    header = ["method", *(["twin"] if twins else []), "temperature", "shared seeds", "difference (95%)", *TESTS]
    rows = [
        [
            *(row.method, *([row.twin or ""] if twins else []), f"{row.temperature:g}", str(against.seeds)),
            *(interval(against.estimate), *tests(against)),
        ]
        for row, against in pairs
        if against is not None
    ]
    return markdown_table(header, rows)


def score_table(rows: Sequence[MethodRow], baseline: str) -> list[str]:
    header = ["method", "temperature", "score (95%)", "shared seeds", f"difference to {baseline} (95%)", *TESTS]
    against = [(row, row.score_against_baseline) for row in rows]
    return markdown_table(
        header,
        [
            [
                *(row.method, f"{row.temperature:g}", score_text(row.score)),
                *((str(found.seeds), score_text(found.estimate), *tests(found)) if found else [""] * (2 + len(TESTS))),
            ]
            for row, found in against
        ],
    )


def metric_table(runs: dict[str, list[SeedRun]]) -> list[str]:
    """Shares of the advantage's components, ties, and what each phase took."""
    prefixes = ("advantage_share/", "rollout/tie_rate", "skills/coverage", "seconds/stage/", "tokens/")
    prefixes += ("update/tokens", "update/distillation_loss")
    finished = {label: of_method for label, of_method in runs.items() if of_method}
    names = sorted({name for each in finished.values() for run in each for name in run.numbers})
    rows = []
    for name in (name for name in names if name.startswith(prefixes)):
        values = [[run.numbers[name] for run in each if name in run.numbers] for each in finished.values()]
        rows.append([name, *(_shown(name, float(np.mean(known))) if known else "" for known in values)])
    return markdown_table(["", *finished], rows)


def _shown(name: str, value: float) -> str:
    if name.startswith(("tokens/", "update/tokens")):
        return f"{value:,.0f}"
    if name == "update/distillation_loss":
        return f"{value:.4f}"
    return f"{value:.1f}" if name.startswith("seconds/") else f"{value:.2%}"


def interval(estimate: Estimate) -> str:
    return with_interval(estimate.mean, estimate.low, estimate.high)
