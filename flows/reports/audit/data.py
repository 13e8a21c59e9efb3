"""What the pages show, from committed tables: plain values, small enough to be sent in a mail."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from flows.reports.audit.tokens import ByteTokenizer
from flows.reports.chains import Tables, metrics_of
from opid_core.samples import as_numpy

OLD_STEPS_PER_NAT, DELTA_STEPS_PER_NAT = 1_000, 10_000
"""Old log-probs are sent in steps of 0.001, deltas of 0.0001: the tables hold them whole."""
SCALE_QUANTILE = 0.98
"""The heat map's strongest colour: this quantile of |delta| over the iteration."""


@dataclass(frozen=True)
class ScoreRow:
    """A row of `scores`; arrays are [response tokens], log-probs and deltas in nats."""

    old_log_probs: np.ndarray
    deltas: list[np.ndarray]
    """Log-probs with a skill minus those without: one for each skill that the step was scored under."""
    outcome_advantage: float
    step_advantage: float
    skill_advantages: np.ndarray
    trained: bool


@dataclass(frozen=True)
class IterationData:
    """An iteration as its page needs it: `index` is read when the page opens, a chunk when its trajectory is."""

    index: dict[str, Any]
    chunks: list[dict[str, Any]]
    metrics: dict[str, float | None]
    """The table `metrics`, which stands in the page as it is."""


def new_skills(skills: pa.Table, before: set[str]) -> list[dict[str, Any]]:
    """Skills whose text is not among `before`, each text once, with how often it was given: episode skills first."""
    counts = Counter(
        (row["kind"], row["text"])
        for row in skills.select(["kind", "text"]).to_pylist()
        if row["text"] and row["text"] not in before
    )
    return [{"kind": kind, "text": text, "count": counts[kind, text]} for kind, text in sorted(counts)]


def score_rows(scores: pa.Table) -> dict[tuple[str, int], ScoreRow]:
    """The rows of `scores` by trajectory and step."""
    names = ("old_log_probs", "skill_log_probs", "added_log_probs", "skill_advantages")
    lists = zip(*(_lists(scores, name) for name in names), strict=True)
    plain = ["trajectory_id", "step", "outcome_advantage", "step_advantage", "trained"]
    return {
        (row["trajectory_id"], row["step"]): ScoreRow(
            old_log_probs=old,
            deltas=[under - old for under, is_scored in zip(skills, scored, strict=True) if is_scored],
            outcome_advantage=row["outcome_advantage"],
            step_advantage=row["step_advantage"],
            skill_advantages=advantages,
            trained=row["trained"],
        )
        for row, scored, (old, *skills, advantages) in zip(
            scores.select(plain).to_pylist(), _scored_under(scores), lists, strict=True
        )
    }


def _scored_under(scores: pa.Table) -> list[tuple[bool, bool]]:
    """Whether each row has log-probs under its first and its added skill."""
    first, second = (scores.column(name).is_valid().to_pylist() for name in ("skill_log_probs", "added_log_probs"))
    return list(zip(first, second, strict=True))


def _lists(table: pa.Table, column: str) -> list[np.ndarray]:
    """A column of lists of numbers as float64 arrays; empty where there is none."""
    lists = table.column(column).combine_chunks()
    values, offsets = as_numpy(lists.values).astype(np.float64), lists.offsets.to_pylist()
    return [values[a:b] for a, b in pairwise(offsets)]


def iteration_data(
    campaign: str, iteration: int, tables: Tables, before: set[str], tokenizer: ByteTokenizer | str
) -> IterationData:
    """All that the page of an iteration shows.

    `before` holds the skill texts of the iteration before; `tokenizer` a text where there is none, with its reason.
    """
    trajectories = tables["trajectories"].to_pylist()
    position = {row["trajectory_id"]: number for number, row in enumerate(trajectories)}
    skills = _skills(tables["skills"], position, before)
    numbers = {skill["id"]: number for number, skill in enumerate(skills)}
    chunks: list[dict[str, Any]] = [{"steps": [], "replies": []} for _ in trajectories]
    scale = _fill_steps(tables, position, numbers, skills, chunks, tokenizer)
    for skill, row in zip(skills, tables["skills"].to_pylist(), strict=True):
        replies = chunks[skill["trajectory"]]["replies"]
        if row["raw_reply"] is not None and row["raw_reply"] not in replies:
            replies.append(row["raw_reply"])
        skill["reply"] = None if row["raw_reply"] is None else replies.index(row["raw_reply"])
    texts = {row["task_id"]: row["task_text"] for row in tables["steps"].select(["task_id", "task_text"]).to_pylist()}
    shown = [
        {
            "id": row["trajectory_id"],
            "group": row["group_id"],
            "task": row["task_id"],
            "type": row["task_type"],
            "text": texts.get(row["task_id"], ""),
            "outcome": row["outcome"],
            "return": round(row["return"], 4),
            "score": None if row["score"] is None else round(row["score"], 4),
            "steps": row["steps"],
            "tokens": row["tokens"],
            "error": row["error"],
            "routes": dict(Counter(step["route"] for step in chunk["steps"])),
        }
        for row, chunk in zip(trajectories, chunks, strict=True)
    ]
    index = {
        "campaign": campaign,
        "iteration": iteration,
        "scale": scale,
        "old_steps": OLD_STEPS_PER_NAT,
        "delta_steps": DELTA_STEPS_PER_NAT,
        "no_tokenizer": tokenizer if isinstance(tokenizer, str) else None,
        "trajectories": shown,
        "skills": skills,
        "specials": _specials(tables["steps"], tokenizer),
    }
    return IterationData(index, chunks, metrics_of(tables["metrics"]) if "metrics" in tables else {})


def _skills(skills: pa.Table, position: dict[str, int], before: set[str]) -> list[dict[str, Any]]:
    known = ("skill_id", "trajectory_id", "kind", "step", "text", "raw_reply", "reasoning")
    return [
        {
            "id": row["skill_id"],
            "trajectory": position[row["trajectory_id"]],
            "kind": row["kind"],
            "step": row["step"],
            "text": row["text"],
            "new": bool(row["text"]) and row["text"] not in before,
            "scored": [],
            "delta": None,
            "analysis": {name: value for name, value in row.items() if name not in known and value is not None},
        }
        for row in skills.to_pylist()
    ]


def _fill_steps(
    tables: Tables,
    position: dict[str, int],
    numbers: dict[str, int],
    skills: list[dict[str, Any]],
    chunks: list[dict[str, Any]],
    tokenizer: ByteTokenizer | str,
) -> float:
    """Put each step into the chunk of its trajectory and under its skill, and give each skill the mean delta of the
    responses that were scored under it; returns the heat map's scale in nats."""
    kept = ["trajectory_id", "step", "observation", "action", "is_valid", "reward", "done", "truncated"]
    steps = tables["steps"].select([*kept, "response_text", "response_ids"]).to_pylist()
    routes = {(row["trajectory_id"], row["step"]): row for row in tables["routes"].to_pylist()}
    scores = score_rows(tables["scores"])
    magnitudes, sums = [np.zeros(0)], defaultdict[int, list[float]](list)
    for row in sorted(steps, key=lambda row: (row["trajectory_id"], row["step"])):
        key = (row["trajectory_id"], row["step"])
        score, route, trajectory = scores[key], routes[key], position[row["trajectory_id"]]
        magnitudes += [np.abs(delta) for delta in score.deltas]
        under = [numbers[name] for name in (route["skill_id"], route["added_skill_id"]) if name is not None]
        for number, delta in zip(under, score.deltas, strict=True):
            skills[number]["scored"].append([trajectory, row["step"]])
            sums[number].append(float(delta.sum()))
        ids, text = row["response_ids"], row["response_text"]
        chunks[trajectory]["steps"].append(
            {
                **{name: row[name] for name in kept[1:]},
                "reward": round(row["reward"], 4),
                "route": route["route"],
                "reason": route["reason"],
                "trained": score.trained,
                "response": text,
                "ids": ids,
                "lengths": None if isinstance(tokenizer, str) else tokenizer.lengths(ids, text),
                "old": _whole(score.old_log_probs * OLD_STEPS_PER_NAT),
                "skills": under,
                "deltas": [_whole(delta * DELTA_STEPS_PER_NAT) for delta in score.deltas],
                "outcome_advantage": _short(score.outcome_advantage),
                "step_advantage": _short(score.step_advantage),
                "skill_advantage": _advantage(score.skill_advantages, score.deltas),
            }
        )
    for number, of_steps in sums.items():
        skills[number]["delta"] = _short(sum(of_steps) / len(of_steps))
    every = np.concatenate(magnitudes)
    return _short(float(np.quantile(every, SCALE_QUANTILE))) if every.size else 0.0


def _advantage(advantages: np.ndarray, deltas: Sequence[np.ndarray]) -> float | list[float]:
    """The tokens' skill advantages: as one factor of their deltas where they are that (lambda), else one by one."""
    if not advantages.any():
        return 0.0
    if len(deltas) == 1 and deltas[0].any():
        factor = float(advantages @ deltas[0] / (deltas[0] @ deltas[0]))
        if np.allclose(advantages, factor * deltas[0], rtol=1e-3, atol=1e-7):
            return _short(factor)
    return [_short(value) for value in advantages.tolist()]


def _specials(steps: pa.Table, tokenizer: ByteTokenizer | str) -> dict[int, str]:
    if isinstance(tokenizer, str):
        return {}
    used = np.unique(as_numpy(steps.column("response_ids").combine_chunks().values)).tolist()
    return {token_id: name for token_id in used if (name := tokenizer.name_of(token_id)) is not None}


def _whole(values: np.ndarray) -> list[int]:
    return np.rint(values).astype(int).tolist()


def _short(value: float) -> float:
    return float(f"{value:.4g}")
