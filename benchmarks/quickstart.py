"""What the quickstart's runs won, game by game: OPID beside its twin, and each method beside the start.

    python -m benchmarks.quickstart docs/measurements/quickstart.json
    python -m benchmarks.quickstart docs/measurements/quickstart.json --runs panel

Sign-flip tests over games of a seed, or of the mean over seeds, corrected by Holm for the rows of a table; intervals
over seeds and games, of a single seed over its games (`opid_core.comparison.difference`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flows.reports.paired import holm
from opid_core.comparison import PairedDifference, difference
from opid_core.evaluation import wilson_interval
from tasks.markdown import markdown_table

METHODS = ("opid", "grpo", "placebo")
TEMPERATURES = ("1", "0.4")
_COLUMNS = ("start", "GRPO", "OPID", "difference in points", "p", "p (Holm)", "detectable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="docs/measurements/quickstart.json")
    parser.add_argument("--runs", default="since_dd80165", help="a key of the file: which runs (default: the newest)")
    arguments = parser.parse_args()
    runs = json.loads(arguments.file.read_text(encoding="utf-8"))[arguments.runs]
    print("\n\n".join("\n".join(table(runs)) for table in TABLES))


def won(runs: Sequence[Mapping[str, Any]], policy: str, temperature: str) -> Float[np.ndarray, "seeds tasks"]:
    """Which games `policy` won: of each run the text of its games, 1 or 0 each."""
    return np.array([[float(game) for game in run[policy][temperature]] for run in runs])


def against_twin(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table with a row for each run and temperature: success of start, twin and OPID, and OPID less its twin."""
    cases = [(temperature, run) for temperature in TEMPERATURES for run in runs]
    found = [difference(won([run], "opid", t), won([run], "grpo", t)) for t, run in cases]
    header = ["temperature", "seed", *_COLUMNS]
    rows = []
    for (temperature, run), of, adjusted in zip(cases, found, holm([one.p_value for one in found]), strict=True):
        success = [_success(run[policy][temperature]) for policy in ("start", "grpo", "opid")]
        detectable = "" if of.detectable is None else f"{100 * of.detectable:.1f}"
        p_values = [f"{of.p_value:.2g}", f"{adjusted:.2g}"]
        rows.append([temperature, str(run["seed"]), *success, _points(of), *p_values, detectable])
    return markdown_table(header, rows)


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table with a row for each temperature: the means over seeds and games, and OPID less its twin."""
    found = [difference(won(runs, "opid", t), won(runs, "grpo", t)) for t in TEMPERATURES]
    header = ["temperature", "seeds", *_COLUMNS]
    rows = []
    for t, of, adjusted in zip(TEMPERATURES, found, holm([one.p_value for one in found]), strict=True):
        success = [f"{won(runs, policy, t).mean():.1%}" for policy in ("start", "grpo", "opid")]
        detectable = "" if of.detectable is None else f"{100 * of.detectable:.1f}"
        rows.append([t, str(len(runs)), *success, _points(of), f"{of.p_value:.2g}", f"{adjusted:.2g}", detectable])
    return markdown_table(header, rows)


def against_start(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table with a row for each method and temperature at which it was played: its last policy less the start."""
    pairs = [
        (f"{method} less start", temperature, won(runs, method, temperature), won(runs, "start", temperature))
        for temperature in TEMPERATURES
        for method in METHODS
        if temperature in runs[0].get(method, {})
    ]
    over_all = [difference(one, start) for _, _, one, start in pairs]
    adjusted = holm([found.p_value for found in over_all])
    seeds = [f"seed {run['seed']}" for run in runs]
    header = ["difference in points", "temperature", "all seeds", "p", "p (Holm)", *seeds]
    rows = []
    for (name, temperature, one, start), found, p_value in zip(pairs, over_all, adjusted, strict=True):
        alone = [difference(one[[seed]], start[[seed]]) for seed in range(len(runs))]
        points = [_points(of) for of in (found, *alone)]
        rows.append([name, temperature, points[0], f"{found.p_value:.2g}", f"{p_value:.2g}", *points[1:]])
    return markdown_table(header, rows)


def placebos(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table with a row for each run, and one over them: success at temperature 1 with placebos in place of skills,
    and what that is less without any signal and less OPID."""
    cases = [[run] for run in runs] + ([[*runs]] if len(runs) > 1 else [])
    found = [[difference(won(case, "placebo", "1"), won(case, m, "1")) for m in ("grpo", "opid")] for case in cases]
    # Single seeds are one family, what is over all of them another.
    alone = [holm([of[side].p_value for of in found[: len(runs)]]) for side in (0, 1)]
    header = ["seed", "placebo", "GRPO", "OPID"]
    header += [f"placebo less {of}{column}" for of in ("GRPO", "OPID") for column in ("", ", p", ", p (Holm)")]
    rows = []
    for number, (case, of) in enumerate(zip(cases, found, strict=True)):
        is_one = number < len(runs)
        means = [f"{won(case, method, '1').mean():.1%}" for method in ("placebo", "grpo", "opid")]
        sides = [
            [_points(one), f"{one.p_value:.2g}", f"{alone[side][number]:.2g}" if is_one else ""]
            for side, one in enumerate(of)
        ]
        rows.append([str(case[0]["seed"]) if is_one else "all", *means, *sides[0], *sides[1]])
    return markdown_table(header, rows)


TABLES = (against_twin, over_seeds, against_start, placebos)


def _success(games: str) -> str:
    low, high = wilson_interval(games.count("1"), len(games))
    return f"{games.count('1') / len(games):.1%} ({low:.1%} to {high:.1%})"


def _points(of: PairedDifference) -> str:
    mean, low, high = (100 * value for value in (of.estimate.mean, of.estimate.low, of.estimate.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
