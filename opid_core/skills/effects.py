"""What each skill did: how far it moved the policy's log-probs, and how much of the advantage it gave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from opid_core.samples import Ragged

COLUMNS = {
    "skills": ("skill_id", "kind", "text"),
    "routes": ("trajectory_id", "step", "skill_id"),
    "scores": ("trajectory_id", "step", "old_log_probs", "skill_log_probs", "skill_advantages", "trained"),
}
"""What is read of each table."""


@dataclass(frozen=True)
class SkillEffect:
    """All steps that were scored under skills of one kind and text."""

    kind: str
    text: str
    steps: int
    raised: int
    """Steps whose response became likelier under the skill."""
    delta: float
    """Mean log-prob of the response under the skill less without it, in nats."""
    advantage: float
    """The sum of |skill advantage| over the response tokens of the steps that were trained on."""


def skill_effects(iterations: Iterable[Mapping[str, pa.Table]]) -> list[SkillEffect]:
    """The skills of the tables `skills`, `routes` and `scores` of some iterations (`COLUMNS`), most advantage first.

    A step counts for the skill that it is routed to; one that is added to it (`method.routing: additive`) is left out.
    """
    deltas: dict[tuple[str, str], list[float]] = defaultdict(list)
    given: dict[tuple[str, str], float] = defaultdict(float)
    for tables in iterations:
        ids, kinds, texts = _columns(tables["skills"], "skills")
        named = dict(zip(ids, zip(kinds, texts, strict=True), strict=True))
        trajectories, steps, skill_ids = _columns(tables["routes"], "routes")
        routed = dict(zip(zip(trajectories, steps, strict=True), skill_ids, strict=True))
        scores = tables["scores"]
        delta = _sums(scores, "skill_log_probs") - _sums(scores, "old_log_probs")
        advantage = _sums(scores, "skill_advantages", absolute=True)
        has_skill = scores.column("skill_log_probs").is_valid().to_pylist()
        keys = (scores.column(name).to_pylist() for name in ("trajectory_id", "step", "trained"))
        for row, (trajectory_id, step, trained) in enumerate(zip(*keys, strict=True)):
            if has_skill[row]:
                skill = named[routed[trajectory_id, step]]
                deltas[skill].append(float(delta[row]))
                given[skill] += float(advantage[row]) if trained else 0.0
    effects = [
        SkillEffect(kind, text, len(d), sum(x > 0 for x in d), float(np.mean(d)), given[kind, text])
        for (kind, text), d in deltas.items()
    ]
    return sorted(effects, key=lambda effect: (-effect.advantage, -effect.steps, effect.kind, effect.text))


def _columns(table: pa.Table, name: str) -> list[list]:
    return [table.column(column).to_pylist() for column in COLUMNS[name]]


def _sums(scores: pa.Table, name: str, *, absolute: bool = False) -> np.ndarray:
    """The sum of each row's tokens; 0 where there are none."""
    rows = Ragged.from_arrow(scores.column(name))
    values = rows.values.astype(np.float64)
    owner = np.repeat(np.arange(len(rows)), rows.lengths)
    return np.bincount(owner, np.abs(values) if absolute else values, len(rows))
