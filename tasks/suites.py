"""What must hold of each table: plain columns derived from it and its related tables, and one suite as data a table.

Pure functions, free of Great Expectations: `tasks.gates` runs the suites.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from opid_core.schema import LOG_PROB_COLUMNS, OUTCOMES, ROUTE_NAMES, SKILL_KINDS

STEP_KEY = ("trajectory_id", "step")
KEYS: dict[str, tuple[str, ...]] = {
    "steps": STEP_KEY,
    "trajectories": ("trajectory_id",),
    "skills": ("skill_id",),
    "routes": STEP_KEY,
    "scores": STEP_KEY,
    "metrics": ("iteration", "name"),
    "evaluations": ("policy_version", "temperature", "task_id"),
}
"""Columns that name a row of each table."""

RELATED: dict[str, tuple[str, ...]] = {
    "steps": ("trajectories",),
    "trajectories": ("steps",),
    "skills": ("steps", "trajectories"),
    "routes": ("steps", "skills"),
    "scores": ("steps", "trajectories", "routes"),
    "metrics": (),
    "evaluations": (),
}
"""Tables that the gate of each table compares it with."""

SKILL_OUTCOMES = (*OUTCOMES, "unknown")

Expectation = tuple[str, dict[str, Any]]
"""Class name in `great_expectations.expectations`, and its arguments."""


@dataclass(frozen=True)
class Limits:
    """What a table must satisfy beyond its schema; None asks nothing."""

    iteration: int | None = None
    policy_version: int | None = None
    group_size: int | None = None
    """Trajectories of each group."""
    max_failure_rate: float | None = None
    """Largest share of failed analyses among the analysed trajectories."""
    analyzed: Collection[str] | None = None
    """Ids of the trajectories that must have skills or a failure; None: those that have rows."""
    required_metrics: Collection[str] | None = None
    panel_size: int | None = None
    """Episodes of an evaluation at each temperature."""


@dataclass(frozen=True)
class Frame:
    """Rows in plain columns, the columns that name a row, and what must hold."""

    rows: pd.DataFrame
    key: tuple[str, ...]
    suite: tuple[Expectation, ...]


# Suites -----------------------------------------------------------------------------------------------------------


def frames(name: str, table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The derived frames of table `name`, each with its suite. Pure."""
    rows = plain(table)
    if name in ("steps", "scores"):
        key_of_steps = _keys(related["steps"]) if name == "scores" else _expected_steps(related["trajectories"])
        return [_FRAMES[name](rows, related, limits), _coverage(rows, key_of_steps)]
    if name == "routes":
        return [_routes(rows, related, limits), _coverage(rows, _keys(related["steps"]))]
    if name == "skills":
        return [_skills(rows, related, limits), _analyses(rows, limits)]
    return [_FRAMES[name](rows, related, limits)]


def _steps(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    return _frame(
        "steps",
        rows,
        in_range("step", low=0),
        is_finite("reward"),
        has_text("prompt_text"),
        in_range("n_prompt_ids", low=1),
        in_range("n_response_ids", low=1),
        in_range("history_dropped", low=0),
        *log_probs("rollout_log_probs", "n_response_ids"),
        *only("iteration", limits.iteration),
        *(only("policy_version", limits.policy_version) or [in_range("policy_version", low=0)]),
    )


def _trajectories(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    found = related["steps"].column("trajectory_id").to_pandas().value_counts()
    rows = rows.assign(
        n_step_rows=rows["trajectory_id"].map(found).fillna(0).astype(int),
        group_members=rows.groupby("group_id")["trajectory_id"].transform("size"),
        broken_without_error=(rows["outcome"] == "broken") & rows["error"].isna(),
    )
    return _frame(
        "trajectories",
        rows,
        in_set("outcome", OUTCOMES),
        is_finite("return"),
        in_range("steps", low=0),
        in_range("tokens", low=0),
        in_range("seconds", low=0),
        equal("steps", "n_step_rows"),
        in_set("broken_without_error", [False]),
        *only("group_members", limits.group_size),
        *only("iteration", limits.iteration),
    )


def _skills(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    known_trajectories = related["trajectories"].column("trajectory_id").to_pylist()
    known_steps = set(_keys(related["steps"]).itertuples(index=False, name=None))
    is_step, is_failed = rows["kind"] == "step", rows["kind"] == "failed"
    has_text_ = rows["text"].fillna("").str.strip() != ""
    pairs = zip(rows["trajectory_id"], rows["step"].fillna(-1).astype(int), strict=True)
    rows = rows.assign(
        trajectory_known=rows["trajectory_id"].isin(known_trajectories),
        step_fits_kind=is_step == rows["step"].notna(),
        step_known=~is_step | np.array([pair in known_steps for pair in pairs], dtype=bool),
        text_fits_kind=has_text_ != is_failed,
        error_fits_kind=~is_failed | rows["error"].notna(),
        subject=np.where(is_step, "step " + rows["step"].astype(str), "episode"),
    )
    return _frame(
        "skills",
        rows,
        in_set("kind", SKILL_KINDS),
        in_set("outcome", SKILL_OUTCOMES),
        unique("trajectory_id", "subject"),
        *(in_set(c, [True]) for c in ("trajectory_known", "step_known", "step_fits_kind")),
        *(in_set(c, [True]) for c in ("text_fits_kind", "error_fits_kind")),
        in_range("attempts", low=0),
        in_range("tokens", low=0),
    )


def _analyses(rows: pd.DataFrame, limits: Limits) -> Frame:
    """One row an analysed trajectory: whether it has an episode skill or a failure, and whether it failed."""
    kinds = rows[["trajectory_id", "kind"]]
    ids = sorted(set(rows["trajectory_id"]) if limits.analyzed is None else {*limits.analyzed})
    done = set(kinds.loc[kinds["kind"] != "step", "trajectory_id"])
    failed = set(kinds.loc[kinds["kind"] == "failed", "trajectory_id"])
    frame = pd.DataFrame(
        {
            "trajectory_id": ids,
            "analysis_present": [i in done for i in ids],
            "analysis_failed": [float(i in failed) for i in ids],
        }
    )
    suite = [in_set("analysis_present", [True])]
    if limits.max_failure_rate is not None and ids:
        arguments = {"column": "analysis_failed", "max_value": limits.max_failure_rate}
        suite.append(("ExpectColumnMeanToBeBetween", arguments))
    return Frame(frame, ("trajectory_id",), tuple(suite))


def _routes(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    skills = related["skills"].select(["skill_id", "trajectory_id", "kind"]).to_pylist()
    owner_of = {skill["skill_id"]: (skill["trajectory_id"], skill["kind"]) for skill in skills}
    wanted = zip(rows["trajectory_id"], rows["route"], strict=True)
    found = [owner_of.get(skill_id) for skill_id in rows["skill_id"]]
    rows = rows.assign(
        skill_fits_route=[
            skill is None and pd.isna(skill_id) if route == "none" else skill == (trajectory_id, route)
            for (trajectory_id, route), skill, skill_id in zip(wanted, found, rows["skill_id"], strict=True)
        ]
    )
    return _frame(
        "routes",
        rows,
        in_set("route", ROUTE_NAMES),
        in_set("skill_fits_route", [True]),
        has_text("reason"),
    )


def _scores(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    steps = plain(related["steps"].select([*STEP_KEY, "response_ids"]))[[*STEP_KEY, "n_response_ids"]]
    routes = related["routes"].select([*STEP_KEY, "route"]).to_pandas()
    trajectories = related["trajectories"].select(["trajectory_id", "outcome"]).to_pandas()
    for other in (steps, routes, trajectories):
        key = [column for column in STEP_KEY if column in other]
        rows = rows.merge(pd.DataFrame(other).drop_duplicates(key), how="left", on=key)
    routed, scored = rows["route"].isin(["step", "episode"]), rows["n_skill_log_probs"].notna()
    rows = rows.assign(
        scored_as_routed=np.where(rows["trained"], scored == routed, ~scored | routed),
        signal_without_skill=~scored & (rows["n_nonzero_skill_advantages"].fillna(0) > 0),
        broken_but_trained=(rows["outcome"] == "broken") & rows["trained"],
        has_reference=rows["n_reference_log_probs"].notna(),
    )
    return _frame(
        "scores",
        rows,
        *log_probs("old_log_probs", "n_response_ids"),
        *log_probs("skill_log_probs", "n_response_ids"),
        *log_probs("reference_log_probs", "n_response_ids"),
        equal("n_skill_advantages", "n_response_ids"),
        in_set("n_not_finite_skill_advantages", [0]),
        is_finite("outcome_advantage"),
        in_set("scored_as_routed", [True]),
        in_set("signal_without_skill", [False]),
        in_set("broken_but_trained", [False]),
        ("ExpectColumnUniqueValueCountToBeBetween", {"column": "has_reference", "max_value": 1}),
        in_range("history_dropped", low=0),
    )


def _metrics(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    required = sorted(limits.required_metrics or ())
    contains = ("ExpectColumnDistinctValuesToContainSet", {"column": "name", "value_set": required})
    return _frame(
        "metrics",
        rows,
        has_text("name"),
        is_finite("value"),
        *([contains] if required else []),
        *only("iteration", limits.iteration),
    )


def _evaluations(rows: pd.DataFrame, related: Mapping[str, pa.Table], limits: Limits) -> Frame:
    keys = ["policy_version", "temperature"]
    rows = rows.assign(episodes_of_panel=rows.groupby(keys)["task_id"].transform("size"))
    return _frame(
        "evaluations",
        rows,
        in_set("outcome", OUTCOMES),
        is_finite("return"),
        in_range("temperature", low=0),
        in_range("tokens", low=0),
        in_range("valid_actions", low=0),
        in_range("admissible_actions", low=0),
        at_least("steps", "valid_actions"),
        at_least("steps", "admissible_actions"),
        ("ExpectTableRowCountToBeBetween", {"min_value": 1}),
        *only("episodes_of_panel", limits.panel_size),
        *(only("policy_version", limits.policy_version) or [in_range("policy_version", low=0)]),
    )


_FRAMES = {
    "steps": _steps,
    "trajectories": _trajectories,
    "scores": _scores,
    "metrics": _metrics,
    "evaluations": _evaluations,
}


def _frame(name: str, rows: pd.DataFrame, *suite: Expectation) -> Frame:
    """The rows of a table with what holds of every table: the key is unique, no value is missing that must be there."""
    return Frame(rows, KEYS[name], (unique(*KEYS[name]), in_set("missing_column", [""]), *suite))


def _coverage(rows: pd.DataFrame, expected: pd.DataFrame) -> Frame:
    """One row a step that has a row or should have one, with both flags."""
    found = rows[list(STEP_KEY)].drop_duplicates().assign(row_present=True)
    both = found.merge(expected.drop_duplicates().assign(row_expected=True), how="outer", on=list(STEP_KEY))
    flags = {name: both[name].notna() for name in ("row_present", "row_expected")}
    return Frame(both.assign(**flags), STEP_KEY, (in_set("row_present", [True]), in_set("row_expected", [True])))


def _keys(steps: pa.Table) -> pd.DataFrame:
    return steps.select(list(STEP_KEY)).to_pandas()


def _expected_steps(trajectories: pa.Table) -> pd.DataFrame:
    counts = trajectories.column("steps").to_numpy()
    ids = np.repeat(trajectories.column("trajectory_id").to_numpy(zero_copy_only=False), counts)
    steps = np.concatenate([np.arange(0), *(np.arange(count) for count in counts)])
    return pd.DataFrame({"trajectory_id": ids, "step": steps.astype(np.int32)})


# Expectations -----------------------------------------------------------------------------------------------------


def unique(*columns: str) -> Expectation:
    if len(columns) == 1:
        return "ExpectColumnValuesToBeUnique", {"column": columns[0]}
    return "ExpectCompoundColumnsToBeUnique", {"column_list": list(columns)}


def in_set(column: str, values: Iterable[Any]) -> Expectation:
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)}


def only(column: str, value: int | None) -> list[Expectation]:
    return [] if value is None else [in_set(column, [value])]


def in_range(column: str, *, low: float | None = None, high: float | None = None) -> Expectation:
    return "ExpectColumnValuesToBeBetween", {"column": column, "min_value": low, "max_value": high}


def has_text(column: str) -> Expectation:
    return "ExpectColumnValuesToMatchRegex", {"column": column, "regex": r"\S"}


def equal(column: str, other: str) -> Expectation:
    arguments = {"column_A": column, "column_B": other, "ignore_row_if": "either_value_is_missing"}
    return "ExpectColumnPairValuesToBeEqual", arguments


def at_least(column: str, other: str) -> Expectation:
    return "ExpectColumnPairValuesAToBeGreaterThanB", {"column_A": column, "column_B": other, "or_equal": True}


def is_finite(column: str) -> Expectation:
    return in_set(f"not_finite_{column}", [False])


def log_probs(column: str, length: str) -> list[Expectation]:
    """As many as response tokens, finite, and no probability above 1."""
    return [equal(f"n_{column}", length), in_set(f"n_not_finite_{column}", [0]), in_range(f"max_{column}", high=0.0)]


# Plain columns ----------------------------------------------------------------------------------------------------


def plain(table: pa.Table) -> pd.DataFrame:
    """`table` with scalar columns only. A list column x [rows, any] becomes n_x (null where x is) and, for floats,
    n_not_finite_x, n_nonzero_x and max_x (null where x is null or empty); a float column x gains not_finite_x (false
    where null); missing_column names a column that is null in this row and must not be."""
    columns: dict[str, Any] = {}
    missing = np.full(table.num_rows, "", dtype=object)
    for field in table.schema:
        column = table.column(field.name).combine_chunks()
        if not field.nullable:
            missing[column.is_null().to_numpy(zero_copy_only=False)] = field.name
        if pa.types.is_list(field.type):
            columns |= _list_columns(field.name, column)
            continue
        columns[field.name] = column.to_pandas()
        if pa.types.is_floating(field.type):
            values = column.to_numpy(zero_copy_only=False)
            columns[f"not_finite_{field.name}"] = ~np.isfinite(values) & column.is_valid().to_numpy(
                zero_copy_only=False
            )
    return pd.DataFrame({**columns, "missing_column": missing})


def _list_columns(name: str, column: Any) -> dict[str, Any]:
    derived = {f"n_{name}": pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)}
    if name not in LOG_PROB_COLUMNS:
        return derived
    values = pc.call_function("list_flatten", [column]).to_numpy(zero_copy_only=False)
    parents = pc.call_function("list_parent_indices", [column]).to_numpy()
    starts = np.flatnonzero(np.diff(parents, prepend=-1))
    maxima = np.full(len(column), np.nan)
    if len(starts):
        maxima[parents[starts]] = np.maximum.reduceat(values, starts)
    counts = functools.partial(np.bincount, parents, minlength=len(column))
    return {
        **derived,
        f"n_not_finite_{name}": counts(weights=~np.isfinite(values)).astype(int),
        f"n_nonzero_{name}": counts(weights=values != 0).astype(int),
        f"max_{name}": maxima,
    }
