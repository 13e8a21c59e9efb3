"""The audit's tables for machines: flat, joined, one file each for all asked iterations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from flows.reports.audit.data import ScoreRow, score_rows
from flows.reports.chains import Tables, read_tables
from infra.local_objects import faults
from infra.manifest import Manifest
from infra.store import CampaignStore
from opid_core.skills.counts import skill_texts

TableFormat = Literal["json", "csv", "parquet"]

_text, _i32, _i64, _f64, _flag = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
_COLUMNS = (
    ("campaign", _text),
    ("iteration", _i32),
    *((name, _text) for name in ("group_id", "trajectory_id")),
    ("step", _i32),
    *((name, _text) for name in ("task_id", "task_type", "task_text", "outcome")),
    ("return", _f64),
    ("score", _f64),
    *((name, _text) for name in ("observation", "response_text", "action")),
    ("is_valid", _flag),
    ("reward", _f64),
    *((name, _flag) for name in ("done", "truncated")),
    ("policy_version", _i32),
    *((name, _text) for name in ("route", "reason", "skill_id", "added_skill_id", "skill_kind", "skill_text")),
    ("response_tokens", _i32),
    *((name, _f64) for name in ("delta_sum", "delta_mean", "outcome_advantage", "step_advantage")),
    *((name, _f64) for name in ("skill_advantage_mean", "advantage_mean")),
    ("trained", _flag),
)
STEP_COLUMNS = pa.schema(_COLUMNS)
"""One step sample a row. Deltas (nats, of the skill `skill_id`) are null where nothing was routed; means are over the
response's tokens; `advantage_mean` is the sum of its three components."""


def write_tables(
    store: CampaignStore, chain: Sequence[Manifest], iterations: Sequence[int], folder: Path, kind: TableFormat
) -> list[Path]:
    """Write `steps`, `skills` and `metrics` of the iterations into `folder`; returns the files, which are replaced."""
    parts: dict[str, list[pa.Table]] = {"steps": [], "skills": [], "metrics": []}
    for iteration in iterations:
        tables = read_tables(store, chain[iteration])
        before = read_tables(store, chain[iteration - 1], ["skills"])  # the start has none
        known = skill_texts(before["skills"]) if before else set()
        parts["steps"].append(steps_table(tables))
        parts["skills"].append(skills_table(store.campaign, iteration, tables, parts["steps"][-1], known))
        metrics = tables["metrics"]
        parts["metrics"].append(metrics.add_column(0, "campaign", pa.array([store.campaign] * len(metrics), _text)))
    paths = [folder / f"{name}.{kind}" for name in parts]
    with faults(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        for path, of_iterations in zip(paths, parts.values(), strict=True):
            _WRITERS[kind](pa.concat_tables(of_iterations).replace_schema_metadata(None).combine_chunks(), path)
    return paths


def steps_table(tables: Tables) -> pa.Table:
    """The steps of an iteration with outcome, route, skill, delta and advantages."""
    trajectories = {row["trajectory_id"]: row for row in tables["trajectories"].to_pylist()}
    skills = {row["skill_id"]: row for row in tables["skills"].select(["skill_id", "kind", "text"]).to_pylist()}
    routes = {(row["trajectory_id"], row["step"]): row for row in tables["routes"].to_pylist()}
    scores = score_rows(tables["scores"])
    rows = []
    for step in tables["steps"].drop_columns(["prompt_ids", "rollout_log_probs", "admissible_actions"]).to_pylist():
        key = (step["trajectory_id"], step["step"])
        trajectory, route = trajectories[step["trajectory_id"]], routes[key]
        skill = skills.get(route["skill_id"], {"kind": None, "text": None})
        joined = {
            **step,
            **{name: trajectory[name] for name in ("outcome", "return", "score")},
            **{name: route[name] for name in ("route", "reason", "skill_id", "added_skill_id")},
            **{"skill_kind": skill["kind"], "skill_text": skill["text"], "response_tokens": len(step["response_ids"])},
            **_flat_score(scores[key]),
        }
        rows.append({name: joined[name] for name in STEP_COLUMNS.names})
    return pa.Table.from_pylist(rows, schema=STEP_COLUMNS)


def _flat_score(score: ScoreRow) -> dict[str, Any]:
    """A row of `scores` with its lists as sums and means."""
    delta = score.deltas[0] if score.deltas and score.deltas[0].size else None
    mean = float(np.mean(score.skill_advantages)) if score.skill_advantages.size else 0.0
    return {
        "delta_sum": None if delta is None else float(delta.sum()),
        "delta_mean": None if delta is None else float(delta.mean()),
        "outcome_advantage": score.outcome_advantage,
        "step_advantage": score.step_advantage,
        "skill_advantage_mean": mean,
        "advantage_mean": score.outcome_advantage + score.step_advantage + mean,
        "trained": score.trained,
    }


def skills_table(campaign: str, iteration: int, tables: Tables, steps: pa.Table, before: set[str]) -> pa.Table:
    """The skills of an iteration with all that `schema.SKILLS` has, what was scored under each, and whether its text is
    `new`: not among those of the iteration before."""
    skills = tables["skills"]
    used: dict[str, list[dict[str, Any]]] = {}
    for row in steps.select(["skill_id", "response_tokens", "delta_sum"]).to_pylist():
        used.setdefault(row["skill_id"], []).append(row)
    scored = [used.get(skill_id, []) for skill_id in skills.column("skill_id").to_pylist()]
    tokens = [sum(row["response_tokens"] for row in rows) for rows in scored]
    sums = [sum(row["delta_sum"] or 0.0 for row in rows) for rows in scored]
    new = [bool(text) and text not in before for text in skills.column("text").to_pylist()]
    added = {
        "steps_scored": pa.array([len(rows) for rows in scored], _i64),
        "tokens_scored": pa.array(tokens, _i64),
        "delta_mean": pa.array([s / t if t else None for s, t in zip(sums, tokens, strict=True)], _f64),
        "new": pa.array(new, _flag),
    }
    first = {"campaign": pa.array([campaign] * len(new), _text), "iteration": pa.array([iteration] * len(new), _i32)}
    return pa.table({**first, **{name: skills.column(name) for name in skills.column_names}, **added})


def _write_json(table: pa.Table, path: Path) -> None:
    """A JSON array, one row a line; numbers that are none are null."""
    rows = [{name: _finite(value) for name, value in row.items()} for row in table.to_pylist()]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(table: pa.Table, path: Path) -> None:
    """CSV in which no text is a formula: where a spreadsheet would take one for it, an apostrophe comes first."""
    import pyarrow.compute as pc
    import pyarrow.csv

    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            safe = pc.replace_substring_regex(table.column(index), r"^([=+\-@\t\r\n])", r"'\1")  # pyright: ignore
            table = table.set_column(index, field, safe)
    pyarrow.csv.write_csv(table, path)


def _write_parquet(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path, compression="zstd")


_WRITERS: dict[TableFormat, Callable[[pa.Table, Path], None]] = {
    "json": _write_json,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
