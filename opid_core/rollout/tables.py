"""Played episodes as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from envs.base import is_offered
from opid_core.rollout.episodes import Episode, Turn
from opid_core.samples import Ragged
from opid_core.schema import STEPS, from_rows


def steps_table(episodes: Sequence[Episode], campaign: str, iteration: int, policy_version: int) -> pa.Table:
    """The `steps` table: one row a decision, in the order of episodes and turns."""
    turns = [turn for episode in episodes for turn in episode.turns]
    counts = np.array([len(episode.turns) for episode in episodes], np.int64)
    rows = int(counts.sum())
    step = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
    is_last = step == np.repeat(counts, counts) - 1
    was_truncated = np.repeat([episode.outcome == "truncated" for episode in episodes], counts).astype(bool)

    def of_episode(value: Callable[[Episode], str]) -> pa.Array:
        return pa.array([value(episode) for episode in episodes], pa.string()).take(
            np.repeat(np.arange(len(counts)), counts)
        )

    def tokens(value: Callable[[Turn], Sequence[float]], dtype: type[np.generic]) -> pa.Array:
        return Ragged.from_rows([value(turn) for turn in turns], dtype).to_arrow()

    columns: dict[str, Any] = {
        "campaign": pa.repeat(campaign, rows),
        "iteration": np.full(rows, iteration),
        "group_id": of_episode(lambda episode: episode.request.group_id),
        "trajectory_id": of_episode(lambda episode: episode.request.trajectory_id),
        "step": step,
        "task_id": of_episode(lambda episode: episode.request.task.task_id),
        "task_type": of_episode(lambda episode: episode.request.task.task_type),
        "task_text": of_episode(lambda episode: episode.task_text),
        "observation": [turn.observation for turn in turns],
        "state": pa.array([turn.state for turn in turns], pa.string()),
        "admissible_actions": [turn.admissible_actions for turn in turns],
        "prompt_text": [turn.prompt.text for turn in turns],
        "prompt_ids": tokens(lambda turn: turn.prompt.ids, np.int32),
        "history_dropped": [turn.prompt.history_dropped for turn in turns],
        "response_text": [turn.response_text for turn in turns],
        "response_ids": tokens(lambda turn: turn.response_ids, np.int32),
        "rollout_log_probs": tokens(lambda turn: turn.log_probs, np.float32),
        "action": [turn.action for turn in turns],
        "is_valid": [turn.is_valid for turn in turns],
        "reward": [turn.reward for turn in turns],
        "done": is_last,
        "truncated": is_last & was_truncated,
        "policy_version": np.full(rows, policy_version),
        "seed": [turn.seed for turn in turns],
    }
    return pa.table(columns, schema=STEPS)


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
                "score": episode.score,
                "steps": len(episode.turns),
                "tokens": episode.tokens,
                "seconds": episode.seconds,
                "error": episode.error,
            }
            for episode in episodes
        ],
    )


def evaluations_table(
    episodes: Sequence[Episode], policy_version: int, split: str, temperature: float, repetition: int = 0
) -> pa.Table:
    """The `evaluations` table of one pass over a split's panel."""
    return from_rows(
        "evaluations",
        [
            {
                "policy_version": policy_version,
                "split": split,
                "temperature": temperature,
                "repetition": repetition,
                "task_id": episode.request.task.task_id,
                "task_type": episode.request.task.task_type,
                "outcome": episode.outcome,
                "return": episode.episode_return,
                "score": episode.score,
                "steps": len(episode.turns),
                "valid_actions": sum(turn.is_valid for turn in episode.turns),
                "admissible_actions": sum(is_offered(turn.action, turn.admissible_actions) for turn in episode.turns),
                "tokens": episode.tokens,
                "seed": episode.request.seed,
            }
            for episode in episodes
        ],
    )
