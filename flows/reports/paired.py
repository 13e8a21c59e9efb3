"""Methods of a study held against each other, seed by seed and task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opid_core.comparison import PairedDifference, difference
from opid_core.errors import ConfigError
from opid_core.evaluation import wins_by_task

if TYPE_CHECKING:
    from flows.reports.chains import Panel
    from flows.reports.study import MethodRow, SeedRun

ByTask = Callable[[pa.Table], Mapping[str, Sequence[float]]]
"""What is compared, of each task's episodes: `wins_by_task` or `scores_by_task`."""


def of_tasks(
    runs: Sequence[SeedRun], panel: Panel, by_task: ByTask = wins_by_task
) -> tuple[Float[np.ndarray, "seeds tasks"], list[str]]:
    """The mean of each task's repetitions (of wins, their share), and the tasks' types. A task for which some run has
    no number, because it only broke there, is left out."""
    found = [by_task(run.final[panel]) for run in runs]
    if any(tasks.keys() != found[0].keys() for tasks in found):
        raise ConfigError("the campaigns of a study were evaluated on different tasks: they cannot be compared")
    kept = [task for task in sorted(found[0]) if all(tasks[task] for tasks in found)]
    final = runs[0].final[panel]
    types = dict(zip(*(final.column(name).to_pylist() for name in ("task_id", "task_type")), strict=True))
    means = np.array([[np.mean(tasks[task]) for task in kept] for tasks in found])
    return means, [types[task] for task in kept]


def paired(
    runs: Sequence[SeedRun], others: Sequence[SeedRun], panel: Panel, by_task: ByTask = wins_by_task
) -> PairedDifference | None:
    """The difference of two methods over the seeds that both have; None where they have none, or no number."""
    one, other = of_shared_seeds(runs, others), of_shared_seeds(others, runs)
    if not one:
        return None
    means, _ = of_tasks([*one, *other], panel, by_task)
    return difference(means[: len(one)], means[len(one) :]) if means.size else None


def of_shared_seeds(runs: Sequence[SeedRun], others: Sequence[SeedRun]) -> list[SeedRun]:
    """Those of `runs` whose seed `others` have too."""
    seeds = {run.seed for run in others}
    return [run for run in runs if run.seed in seeds]


COMPARED = ("against_baseline", "against_twin", "score_against_baseline")
"""The fields of a method's row that hold a comparison."""


def corrected(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """The rows of a study with p-values that are corrected for all of its comparisons together."""
    places = [(number, name) for number, row in enumerate(rows) for name in COMPARED if getattr(row, name) is not None]
    adjusted = holm([getattr(rows[number], name).p_value for number, name in places])
    found = list(rows)
    for (number, name), p_value in zip(places, adjusted, strict=True):
        found[number] = replace(found[number], **{name: replace(getattr(found[number], name), adjusted_p=p_value)})
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values such that those below a level are found wrong with that chance at most in any of the comparisons: of m,
    the k-th smallest times m - k + 1, no smaller than those before. Source: Holm, 1979."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted
