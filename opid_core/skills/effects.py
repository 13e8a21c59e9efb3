"""What each skill did: how far it moved the policy's log-probs, and how much of the advantage it gave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from opid_core.samples import Ragged

COLUMNS = {
    "skills": ("skill_id", "kind", "text"),
    "routes": ("trajectory_id", "step", "skill_id"),
    "trajectories": ("trajectory_id", "outcome"),
    "scores": (
        *("trajectory_id", "step", "old_log_probs", "skill_log_probs", "placebo_log_probs", "skill_advantages"),
        "trained",
    ),
}
"""What is read of each table."""


@dataclass(frozen=True)
class SkillEffect:
    """All steps that were scored under skills of one kind and text."""

    kind: str
    text: str
    steps: int
    raised: int
    """Steps whose response became likelier under the skill: the policy did what the skill asks for."""
    raised_won: int
    """Those of them whose episodes succeeded."""
    other_won: int
    """Of the steps whose response became no likelier, those whose episodes succeeded."""
    delta: float
    """Mean log-prob of the response under the skill less without it, in nats."""
    delta_per_token: float
    """The same for a token: the sum over all responses by their tokens."""
    placebo_delta: float | None
    """As `delta`, under the skill's placebo, of the steps that were scored under one; None of none."""
    advantage: float
    """The sum of |skill advantage| over the response tokens of the steps that were trained on."""
    first: int
    """The first of the iterations that were looked at in which a step was scored under it."""
    last: int

    @property
    def won_if_raised(self) -> float | None:
        """Share of `raised` in episodes that succeeded; None of none."""
        return self.raised_won / self.raised if self.raised else None

    @property
    def won_if_not(self) -> float | None:
        """Share of the other steps in episodes that succeeded; None of none."""
        others = self.steps - self.raised
        return self.other_won / others if others else None


def skill_effects(iterations: Iterable[tuple[int, Mapping[str, pa.Table]]]) -> list[SkillEffect]:
    """The skills of some iterations, each its number and its tables (`COLUMNS`), most advantage first.

    A step counts for the skill that it is routed to; one that is added to it (`method.routing: additive`) is left out.
    """
    seen: dict[tuple[str, str], list[_Step]] = defaultdict(list)
    given: dict[tuple[str, str], float] = defaultdict(float)
    for iteration, tables in iterations:
        ids, kinds, texts = _columns(tables["skills"], "skills")
        named = dict(zip(ids, zip(kinds, texts, strict=True), strict=True))
        trajectories, steps, skill_ids = _columns(tables["routes"], "routes")
        routed = dict(zip(zip(trajectories, steps, strict=True), skill_ids, strict=True))
        ids, outcomes = _columns(tables["trajectories"], "trajectories")
        won = {trajectory_id for trajectory_id, outcome in zip(ids, outcomes, strict=True) if outcome == "success"}
        scores = tables["scores"]
        old, under, placebo = (_sums(scores, f"{name}_log_probs") for name in ("old", "skill", "placebo"))
        advantage = _sums(scores, "skill_advantages", absolute=True)
        lengths = Ragged.from_arrow(scores.column("old_log_probs")).lengths
        has_skill, has_placebo = (
            scores.column(f"{name}_log_probs").is_valid().to_pylist() for name in ("skill", "placebo")
        )
        keys = (scores.column(name).to_pylist() for name in ("trajectory_id", "step", "trained"))
        for row, (trajectory_id, step, trained) in enumerate(zip(*keys, strict=True)):
            if has_skill[row]:
                skill = named[routed[trajectory_id, step]]
                seen[skill].append(
                    _Step(
                        delta=float(under[row] - old[row]),
                        placebo_delta=float(placebo[row] - old[row]) if has_placebo[row] else None,
                        tokens=int(lengths[row]),
                        won=trajectory_id in won,
                        iteration=iteration,
                    )
                )
                given[skill] += float(advantage[row]) if trained else 0.0
    effects = [_effect(*skill, steps, given[skill]) for skill, steps in seen.items()]
    return sorted(effects, key=lambda effect: (-effect.advantage, -effect.steps, effect.kind, effect.text))


def effect_rows(effects: Sequence[SkillEffect]) -> list[dict[str, Any]]:
    """The effects as rows of a table to sort: with their shares, None of nothing."""
    total = sum(effect.advantage for effect in effects)
    return [
        {
            "kind": effect.kind,
            "text": effect.text,
            "steps": effect.steps,
            "raised": effect.raised / effect.steps,
            "delta": effect.delta,
            "delta_per_token": effect.delta_per_token,
            "placebo_delta": effect.placebo_delta,
            "won_if_raised": effect.won_if_raised,
            "won_if_not": effect.won_if_not,
            "first": effect.first,
            "last": effect.last,
            "share": effect.advantage / total if total else None,
        }
        for effect in effects
    ]


@dataclass(frozen=True)
class _Step:
    """A step that was scored under a skill; its deltas are sums over the response."""

    delta: float
    placebo_delta: float | None
    tokens: int
    won: bool
    iteration: int


def _effect(kind: str, text: str, steps: list[_Step], advantage: float) -> SkillEffect:
    delta = sum(step.delta for step in steps)
    under_placebo = [step.placebo_delta for step in steps if step.placebo_delta is not None]
    return SkillEffect(
        kind=kind,
        text=text,
        steps=len(steps),
        raised=sum(step.delta > 0 for step in steps),
        raised_won=sum(step.delta > 0 and step.won for step in steps),
        other_won=sum(step.delta <= 0 and step.won for step in steps),
        delta=delta / len(steps),
        delta_per_token=delta / sum(step.tokens for step in steps),
        placebo_delta=sum(under_placebo) / len(under_placebo) if under_placebo else None,
        advantage=advantage,
        first=min(step.iteration for step in steps),
        last=max(step.iteration for step in steps),
    )


def _columns(table: pa.Table, name: str) -> list[list]:
    return [table.column(column).to_pylist() for column in COLUMNS[name]]


def _sums(scores: pa.Table, name: str, *, absolute: bool = False) -> np.ndarray:
    """The sum of each row's tokens; 0 where there are none."""
    rows = Ragged.from_arrow(scores.column(name))
    values = rows.values.astype(np.float64)
    owner = np.repeat(np.arange(len(rows)), rows.lengths)
    return np.bincount(owner, np.abs(values) if absolute else values, len(rows))
