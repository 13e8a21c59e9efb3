"""What a `skills` table holds, in numbers for the manifest: reports of long campaigns read no older tables."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from opid_core.evaluation import skill_kinds

COLUMNS = ("trajectory_id", "text", "error", "tokens", "seconds", "cost")
"""Of `skills`, what is counted."""


def skill_metrics(trajectories: pa.Table, skills: pa.Table, routes: pa.Table) -> dict[str, float]:
    """How many trajectories have skills, how many analyses failed, how long skills are, and what the steps were routed
    to; of step skills also how many name what the step did (`own`) or something else (`other`)."""
    kinds = skills.column("kind").to_pylist()
    route_names = routes.column("route").to_pylist()
    count = max(1, trajectories.num_rows)
    chars = [len(t) for t, kind in zip(skills.column("text").to_pylist(), kinds, strict=True) if kind != "failed"]
    shares = {name: route_names.count(name) / max(1, len(route_names)) for name in ("step", "episode", "none")}
    kind_of = skill_kinds(skills)
    routed = [kind_of.get(skill_id) for skill_id in routes.column("skill_id").to_pylist()]
    return {
        "skills/coverage": kinds.count("episode") / count,
        "skills/failed": kinds.count("failed") / count,
        "skills/step_skills": kinds.count("step") / count,
        "skills/chars": sum(chars) / len(chars) if chars else math.nan,
        **{f"routes/{name}": share for name, share in shares.items()},
        **{f"routes/step_{kind}": routed.count(kind) / max(1, len(routed)) for kind in ("own", "other")},
        "routes/added": (routes.num_rows - routes.column("added_skill_id").null_count) / max(1, routes.num_rows),
    }


def skill_texts(skills: pa.Table) -> set[str]:
    """The texts of a `skills` table (failed analyses have none)."""
    return {text for text in skills.column("text").to_pylist() if text}


def analysis_metrics(skills: pa.Table, before: Collection[str]) -> dict[str, float]:
    """How many analyses there are, how many ended in an error (with those that hindsight stood in for), their tokens,
    seconds and cost, replayed ones too (nan where none has a cost), and how many texts are not among `before`, those
    of the iteration before."""
    calls = _analyses(skills)
    costs = [row["cost"] for row in calls if row["cost"] is not None]
    return {
        "analyses/count": float(len(calls)),
        "analyses/with_error": float(sum(row["error"] is not None for row in calls)),
        "analyses/tokens": float(sum(row["tokens"] or 0 for row in calls)),
        "analyses/cost": sum(costs) if costs else math.nan,
        "seconds/analyses_s": sum(row["seconds"] or 0.0 for row in calls),
        "skills/new_texts": float(len(skill_texts(skills).difference(before))),
    }


def _analyses(skills: pa.Table) -> list[dict[str, Any]]:
    """One row for each analysis (all skills of a trajectory repeat its tokens, cost and reply)."""
    return list({row["trajectory_id"]: row for row in skills.select(COLUMNS).to_pylist()}.values())
