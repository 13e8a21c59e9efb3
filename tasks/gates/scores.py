"""Suites of what routing and re-scoring write: `routes`, `scores`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from opid_core.samples import one_chunk
from opid_core.schema import ROUTE_NAMES
from tasks.gates.columns import plain
from tasks.gates.expectations import Expectation, equal, flag, has_text, in_range, in_set, is_finite, log_probs, warn
from tasks.gates.frame import STEP_KEY, Frame, Limits, coverage, frame_of, step_keys
from tasks.gates.knowledge import knowledge


def routes(table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The suite of `routes`: every step once, and a routed one with a skill of its own trajectory and kind."""
    rows = plain(table)
    skills = related["skills"].select(["skill_id", "trajectory_id", "kind"]).to_pylist()
    owner_of = {skill["skill_id"]: (skill["trajectory_id"], skill["kind"]) for skill in skills}
    wanted = zip(rows["trajectory_id"], rows["route"], strict=True)
    found = [owner_of.get(skill_id) for skill_id in rows["skill_id"]]
    rows = rows.assign(
        skill_fits_route=[
            skill is None and pd.isna(skill_id) if route == "none" else skill == (trajectory_id, route)
            for (trajectory_id, route), skill, skill_id in zip(wanted, found, rows["skill_id"], strict=True)
        ],
        added_skill_fits=[
            pd.isna(added) or (route == "step" and owner_of.get(added) == (trajectory_id, "episode"))
            for trajectory_id, route, added in zip(
                rows["trajectory_id"], rows["route"], rows["added_skill_id"], strict=True
            )
        ],
    )
    is_text = rows["placebo"].fillna("").str.strip() != ""
    rows = rows.assign(placebo_fits=rows["placebo"].isna() | ((rows["route"] != "none") & is_text))
    suite = (
        in_set("route", ROUTE_NAMES),
        flag("skill_fits_route"),
        flag("added_skill_fits"),
        flag("placebo_fits"),
        has_text("reason"),
    )
    return [frame_of("routes", rows, *suite), coverage(rows, step_keys(related["steps"]))]


def scores(table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The suite of `scores`: log-probs and advantages of every step, as it was routed; with what skills know."""
    deltas = _deltas(table)
    rows = plain(table).assign(max_skill_delta=deltas["largest"])
    steps = plain(related["steps"].select([*STEP_KEY, "response_ids"]))[[*STEP_KEY, "n_response_ids"]]
    routes = related["routes"].select([*STEP_KEY, "route", "added_skill_id", "placebo"]).to_pandas()
    trajectories = related["trajectories"].select(["trajectory_id", "outcome"]).to_pandas()
    for other in (steps, routes, trajectories):
        key = [column for column in STEP_KEY if column in other]
        rows = rows.merge(pd.DataFrame(other).drop_duplicates(key), how="left", on=key)
    routed, scored = rows["route"].isin(["step", "episode"]), rows["n_skill_log_probs"].notna()
    added, added_scored = rows["added_skill_id"].notna(), rows["n_added_log_probs"].notna()
    placebo, placebo_scored = rows["placebo"].notna(), rows["n_placebo_log_probs"].notna()
    rows = rows.assign(
        scored_as_routed=np.where(rows["trained"], scored == routed, ~scored | routed),
        added_scored_as_routed=np.where(rows["trained"], added_scored == added, ~added_scored | added),
        placebo_scored_as_routed=np.where(rows["trained"], placebo_scored == placebo, ~placebo_scored | placebo),
        signal_without_skill=~scored & (rows["n_nonzero_skill_advantages"].fillna(0) > 0),
        broken_but_trained=(rows["outcome"] == "broken") & rows["trained"],
        has_reference=rows["n_reference_log_probs"].notna(),
    )
    suite = (
        *(e for name in ("old", "skill", "added", "placebo", "reference") for e in log_probs(f"{name}_log_probs")),
        equal("n_skill_advantages", "n_response_ids"),
        flag("n_not_finite_skill_advantages", 0),
        is_finite("outcome_advantage"),
        is_finite("step_advantage"),
        warn(in_range("max_skill_delta", high=limits.settings.max_skill_delta)),
        *(flag(f"{kind}scored_as_routed") for kind in ("", "added_", "placebo_")),
        flag("signal_without_skill", False),
        flag("broken_but_trained", False),
        Expectation("ExpectColumnUniqueValueCountToBeBetween", {"column": "has_reference", "max_value": 1}),
        in_range("history_dropped", low=0),
    )
    known = rows[list(STEP_KEY)].assign(delta=deltas["sum"], tokens=rows["n_response_ids"])
    known = pd.DataFrame(known[rows["trained"].eq(True) & np.isfinite(known["delta"])])
    return [frame_of("scores", rows, *suite), coverage(rows, step_keys(related["steps"])), knowledge(known, related)]


def _deltas(table: pa.Table) -> dict[str, np.ndarray]:
    """Of each row the `sum` of skill log-prob - old log-prob over its tokens and the `largest` |difference|, in nats,
    [rows]; nan where there is none to tell."""
    found = {name: np.full(table.num_rows, np.nan) for name in ("sum", "largest")}
    old, skill = (one_chunk(table.column(name)) for name in ("old_log_probs", "skill_log_probs"))
    old_lengths, skill_lengths = (
        pc.call_function("list_value_length", [column]).fill_null(0).to_numpy(zero_copy_only=False)
        for column in (old, skill)
    )
    compared = np.flatnonzero((old_lengths == skill_lengths) & (old_lengths > 0))
    if not len(compared):
        return found
    values = [
        pc.call_function("list_flatten", [column.take(pa.array(compared))]).to_numpy(zero_copy_only=False)
        for column in (old, skill)
    ]
    deltas = values[1] - values[0]
    starts = np.concatenate([[0], np.cumsum(old_lengths[compared])[:-1]])
    found["largest"][compared] = np.fmax.reduceat(np.where(np.isfinite(deltas), np.abs(deltas), np.nan), starts)
    found["sum"][compared] = np.add.reduceat(deltas.astype(np.float64), starts)
    return found
