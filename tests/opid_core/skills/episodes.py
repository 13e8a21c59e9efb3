"""Finished episodes as samples, as analyzers get them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from opid_core.samples import Samples


def episode(
    trajectory_id: str,
    actions: Sequence[str],
    outcome: str = "success",
    observations: Mapping[int, str] | None = None,
    *,
    states: Sequence[str] | None = None,
    invalid: Collection[int] = (),
    critical: Collection[int] = (),
    offered: Sequence[Sequence[str]] | None = None,
    rewards: Sequence[float] | None = None,
    responses: Sequence[str] | None = None,
    task_text: str = "put a clean apple in the fridge",
    group_id: str = "g",
    iteration: int = 1,
) -> Samples:
    """The samples of one trajectory. Observations are a function of the actions so far, unless given by step; `states`
    are the environment's keys; `invalid` and `critical` are steps; a broken trajectory is not analysed."""
    given = observations or {}
    steps = range(len(actions))
    columns = {
        "iteration": pa.array([iteration for _ in steps], pa.int32()),
        "group_id": pa.array([group_id for _ in steps], pa.string()),
        "trajectory_id": pa.array([trajectory_id for _ in steps], pa.string()),
        "step": pa.array(steps, pa.int32()),
        "task_id": pa.array([f"task of {group_id}" for _ in steps], pa.string()),
        "task_type": pa.array(["pick" for _ in steps], pa.string()),
        "task_text": pa.array([task_text for _ in steps], pa.string()),
        "observation": pa.array([given.get(n, "after: " + " / ".join(actions[:n])) for n in steps], pa.string()),
        "state": pa.array(states or [None for _ in steps], pa.string()),
        "admissible_actions": pa.array(offered or [[] for _ in steps], pa.list_(pa.string())),
        "response_text": pa.array(responses or [f"<action>{action}</action>" for action in actions], pa.string()),
        "action": pa.array(actions, pa.string()),
        "is_valid": pa.array([n not in invalid for n in steps], pa.bool_()),
        "reward": pa.array(rewards or [0.0 for _ in steps], pa.float32()),
        "outcome": pa.array([outcome for _ in steps], pa.string()),
        "critical": pa.array([n in critical for n in steps], pa.bool_()),
        "analyzed": pa.array([outcome != "broken" for _ in steps], pa.bool_()),
        "discounted_return": pa.array([0.5 for _ in steps], pa.float32()),
    }
    return Samples(pa.table(columns))


def together(*episodes: Samples) -> Samples:
    """The samples of several trajectories."""
    return Samples(pa.concat_tables([one.table for one in episodes]))
