"""What training changed in the quickstart: each method's final policies against the start, on the same games.

    python -m benchmarks.against_start docs/measurements/quickstart.json

Sign-flip tests over games of the mean over seeds, corrected by Holm for the rows of the table; intervals over seeds and
games, of a single seed over games (`opid_core.evaluation.difference`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flows.reports.paired import holm
from opid_core.comparison import difference

METHODS = ("opid", "grpo", "placebo")


def won(runs: Sequence[Mapping[str, Any]], policy: str, temperature: str) -> Float[np.ndarray, "seeds tasks"]:
    """Which games `policy` won: of each run the text of its games, 1 or 0 each."""
    return np.array([[float(game) for game in run[policy][temperature]] for run in runs])


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each method and each temperature at which it was played."""
    pairs = [
        (f"{method} less start", temperature, won(runs, method, temperature), won(runs, "start", temperature))
        for temperature in ("1", "0.4")
        for method in METHODS
        if temperature in runs[0][method]
    ]
    over_all = [difference(one, start) for _, _, one, start in pairs]
    adjusted = holm([comparison.p_value for comparison in over_all])
    seeds = [f"seed {run['seed']}" for run in runs]
    rows = [["difference in points", "temperature", "all seeds", "p", "p (Holm)", *seeds]]
    rows.append(["---"] * len(rows[0]))
    for (name, temperature, one, start), comparison, p_value in zip(pairs, over_all, adjusted, strict=True):
        alone = [difference(one[[seed]], start[[seed]]) for seed in range(len(runs))]
        points = [_points(of.estimate.mean, of.estimate.low, of.estimate.high) for of in (comparison, *alone)]
        rows.append([name, temperature, points[0], f"{comparison.p_value:.2g}", f"{p_value:.2g}", *points[1:]])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["panel"]), end="")
