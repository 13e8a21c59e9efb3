"""A finished episode as the algorithm sees it, rebuilt from the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True)
class Step:
    """One decision: what the policy saw, what it answered, what came of it. `step_return` is the discounted return."""

    step: int
    observation: str
    admissible_actions: tuple[str, ...]
    response_text: str
    action: str
    is_valid: bool
    reward: float
    step_return: float = 0.0


@dataclass(frozen=True)
class Trajectory:
    """One episode; `outcome` is one of `schema.OUTCOMES`. Trajectories of one `group_id` share the task and its
    initial state."""

    trajectory_id: str
    group_id: str
    task_id: str
    task_type: str
    task_text: str
    outcome: str
    steps: tuple[Step, ...] = field(repr=False)

    @property
    def won(self) -> bool:
        return self.outcome == "success"


def from_tables(
    steps: pa.Table, trajectories: pa.Table, step_returns: Sequence[float] | None = None
) -> list[Trajectory]:
    """The trajectories of an iteration, in the order of the `trajectories` table, their steps in order.

    `step_returns` [rows of `steps`], when given, becomes each step's `step_return`.
    """
    rows = steps.to_pylist()
    returns = step_returns if step_returns is not None else [0.0] * len(rows)
    by_trajectory: dict[str, list[Step]] = {}
    task_texts: dict[str, str] = {}
    for row, step_return in zip(rows, returns, strict=True):
        trajectory_id = row["trajectory_id"]
        task_texts[trajectory_id] = row["task_text"]
        by_trajectory.setdefault(trajectory_id, []).append(
            Step(
                step=row["step"],
                observation=row["observation"],
                admissible_actions=tuple(row["admissible_actions"]),
                response_text=row["response_text"],
                action=row["action"],
                is_valid=row["is_valid"],
                reward=row["reward"],
                step_return=float(step_return),
            )
        )
    return [
        Trajectory(
            trajectory_id=row["trajectory_id"],
            group_id=row["group_id"],
            task_id=row["task_id"],
            task_type=row["task_type"],
            task_text=task_texts.get(row["trajectory_id"], ""),
            outcome=row["outcome"],
            steps=tuple(sorted(by_trajectory.get(row["trajectory_id"], ()), key=lambda s: s.step)),
        )
        for row in trajectories.to_pylist()
    ]
