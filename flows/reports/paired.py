"""Methods of a study held against each other, seed by seed and task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from opid_core.errors import ConfigError
from opid_core.evaluation import PairedDifference, difference, wins_by_task

if TYPE_CHECKING:
    from flows.reports.study import SeedRun

ByTask = Callable[[pa.Table], Mapping[str, Sequence[float]]]
"""What is compared, of each task's episodes: `wins_by_task` or `scores_by_task`."""


def of_tasks(
    runs: Sequence[SeedRun], temperature: float, by_task: ByTask = wins_by_task
) -> tuple[Float[np.ndarray, "seeds tasks"], list[str]]:
    """The mean of each task's repetitions (of wins, their share), and the tasks' types. A task for which some run has
    no number, because it only broke there, is left out."""
    found = [by_task(run.final[temperature]) for run in runs]
    if any(panel.keys() != found[0].keys() for panel in found):
        raise ConfigError("the campaigns of a study were evaluated on different tasks: they cannot be compared")
    kept = [task for task in sorted(found[0]) if all(panel[task] for panel in found)]
    final = runs[0].final[temperature]
    types = dict(zip(*(final.column(name).to_pylist() for name in ("task_id", "task_type")), strict=True))
    means = np.array([[np.mean(panel[task]) for task in kept] for panel in found])
    return means, [types[task] for task in kept]


def paired(
    runs: Sequence[SeedRun], others: Sequence[SeedRun], temperature: float, by_task: ByTask = wins_by_task
) -> PairedDifference | None:
    """The difference of two methods over the seeds that both have; None where they have none, or no number."""
    shared = {run.seed for run in runs} & {run.seed for run in others}
    if not shared:
        return None
    one, other = ([run for run in method if run.seed in shared] for method in (runs, others))
    means, _ = of_tasks([*one, *other], temperature, by_task)
    return difference(means[: len(one)], means[len(one) :]) if means.size else None
