"""Suites of what a rollout writes: `steps`, `trajectories`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from opid_core.schema import OUTCOMES
from tasks.gates.columns import plain
from tasks.gates.expectations import equal, flag, in_range, in_set, is_finite, log_probs, only
from tasks.gates.frame import Frame, Limits, coverage, frame_of


def steps(table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The suite of `steps`: tokens and their log-probs within the limits, and every step of each trajectory once."""
    trimmed = pc.utf8_trim_whitespace(table["prompt_text"])  # pyright: ignore[reportAttributeAccessIssue]
    rows = plain(table).assign(prompt_is_blank=pc.equal(trimmed, "").to_numpy())  # pyright: ignore[reportAttributeAccessIssue]
    suite = (
        in_range("step", low=0),
        is_finite("reward"),
        flag("prompt_is_blank", False),
        in_range("n_prompt_ids", low=1, high=limits.max_prompt_tokens),
        in_range("n_response_ids", low=1, high=limits.max_response_tokens),
        in_range("history_dropped", low=0),
        *log_probs("rollout_log_probs"),
        *only("iteration", limits.iteration),
        *(only("policy_version", limits.policy_version) or [in_range("policy_version", low=0)]),
    )
    return [frame_of("steps", rows, *suite), coverage(rows, _expected_steps(related["trajectories"]))]


def trajectories(table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The suite of `trajectories`: known outcomes, as many steps as there are rows, whole groups."""
    rows = plain(table)
    found = related["steps"].column("trajectory_id").to_pandas().value_counts()
    rows = rows.assign(
        n_step_rows=rows["trajectory_id"].map(found).fillna(0).astype(int),
        group_members=rows.groupby("group_id")["trajectory_id"].transform("size"),
        broken_without_error=(rows["outcome"] == "broken") & rows["error"].isna(),
    )
    suite = (
        in_set("outcome", OUTCOMES),
        is_finite("return"),
        in_range("score", low=0, high=1),
        *(in_range(column, low=0) for column in ("steps", "tokens", "seconds")),
        equal("steps", "n_step_rows"),
        flag("broken_without_error", False),
        *only("group_members", limits.group_size),
        *only("iteration", limits.iteration),
    )
    return [frame_of("trajectories", rows, *suite)]


def _expected_steps(trajectories: pa.Table) -> pd.DataFrame:
    counts = trajectories.column("steps").to_numpy()
    ids = np.repeat(trajectories.column("trajectory_id").to_numpy(zero_copy_only=False), counts)
    steps = np.concatenate([np.arange(0), *(np.arange(count) for count in counts)])
    return pd.DataFrame({"trajectory_id": ids, "step": steps.astype(np.int32)})
