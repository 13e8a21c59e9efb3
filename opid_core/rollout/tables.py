"""Played episodes as tables."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from envs.base import is_offered
from opid_core.rollout.episodes import Episode
from opid_core.schema import from_rows


def steps_table(episodes: Sequence[Episode], campaign: str, iteration: int, policy_version: int) -> pa.Table:
    """The `steps` table: one row a decision, in the order of episodes and turns."""
    rows = []
    for episode in episodes:
        for index, turn in enumerate(episode.turns):
            is_last = index == len(episode.turns) - 1
            rows.append(
                {
                    "campaign": campaign,
                    "iteration": iteration,
                    "group_id": episode.request.group_id,
                    "trajectory_id": episode.request.trajectory_id,
                    "step": index,
                    "task_id": episode.request.task.task_id,
                    "task_type": episode.request.task.task_type,
                    "task_text": episode.task_text,
                    "observation": turn.observation,
                    "admissible_actions": list(turn.admissible_actions),
                    "prompt_text": turn.prompt.text,
                    "prompt_ids": turn.prompt.ids,
                    "history_dropped": turn.prompt.history_dropped,
                    "response_text": turn.response_text,
                    "response_ids": turn.response_ids,
                    "rollout_log_probs": turn.log_probs,
                    "action": turn.action,
                    "is_valid": turn.is_valid,
                    "reward": turn.reward,
                    "done": is_last,
                    "truncated": is_last and episode.outcome == "truncated",
                    "policy_version": policy_version,
                    "seed": turn.seed,
                }
            )
    return from_rows("steps", rows)


def trajectories_table(episodes: Sequence[Episode], campaign: str, iteration: int) -> pa.Table:
    """The `trajectories` table: one row an episode."""
    return from_rows(
        "trajectories",
        [
            {
                "campaign": campaign,
                "iteration": iteration,
                "group_id": episode.request.group_id,
                "trajectory_id": episode.request.trajectory_id,
                "task_id": episode.request.task.task_id,
                "task_type": episode.request.task.task_type,
                "outcome": episode.outcome,
                "return": episode.episode_return,
                "steps": len(episode.turns),
                "tokens": episode.tokens,
                "seconds": episode.seconds,
                "error": episode.error,
            }
            for episode in episodes
        ],
    )


def evaluations_table(
    episodes: Sequence[Episode], policy_version: int, temperature: float, repetition: int = 0
) -> pa.Table:
    """The `evaluations` table of one pass over the panel."""
    return from_rows(
        "evaluations",
        [
            {
                "policy_version": policy_version,
                "temperature": temperature,
                "repetition": repetition,
                "task_id": episode.request.task.task_id,
                "task_type": episode.request.task.task_type,
                "outcome": episode.outcome,
                "return": episode.episode_return,
                "steps": len(episode.turns),
                "valid_actions": sum(turn.is_valid for turn in episode.turns),
                "admissible_actions": sum(is_offered(turn.action, turn.admissible_actions) for turn in episode.turns),
                "tokens": episode.tokens,
                "seed": episode.request.seed,
            }
            for episode in episodes
        ],
    )
