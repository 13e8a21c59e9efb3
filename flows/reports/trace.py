"""What became of a skill (`opid trace`), from the trajectory it was made from to the update that used it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc

from flows.reports.audit.data import ScoreRow, score_rows
from flows.reports.audit.tokens import tokenizer_json
from flows.reports.chains import Tables, read_chain, read_tables
from flows.reports.standing import none_readable
from infra.manifest import BrokenExpectation, FolderRecord, Manifest
from infra.objects import address_of
from infra.store import CampaignStore, known_campaigns, list_campaigns
from opid_core.errors import ConfigError, DataError

MOST_MOVED = 5
"""Tokens shown of each step."""
TABLES = ("trajectories", "steps", "skills", "routes", "scores", "metrics")
TableRow = Mapping[str, Any]


@dataclass(frozen=True)
class MovedToken:
    """A response token and what the skill did to its log-prob."""

    position: int
    """In the response, from 0."""
    token_id: int
    text: str | None
    """None where the store holds no tokenizer of the policy."""
    delta: float
    """Nats; positive where the skill makes the token likelier."""


@dataclass(frozen=True)
class UsedStep:
    """A step that was scored under the skill. Deltas are log pi_old(token | skill) - log pi_old(token), in nats."""

    step: int
    route: str
    reason: str
    action: str
    tokens: int
    delta_sum: float
    delta_mean: float
    delta_min: float
    delta_max: float
    most_moved: tuple[MovedToken, ...]
    """Those with the largest |delta|, largest first."""
    outcome_advantage: float
    """Of each token, as is the next."""
    step_advantage: float
    skill_advantage_sum: float
    """Sum over the tokens of what all skills of the step give, lambda included."""
    trained: bool


@dataclass(frozen=True)
class OtherStep:
    """A step of the trajectory that was not scored under the skill, and why."""

    step: int
    route: str
    skill_id: str | None
    reason: str


@dataclass(frozen=True)
class SkillTrace:
    """Everything that the store knows about a skill."""

    skill_id: str
    campaign: str
    iteration: int
    kind: str
    step: int | None
    text: str
    trajectory: dict[str, Any]
    """The row of `trajectories`, and the task's text."""
    made_by: dict[str, Any]
    """What the row of `skills` says about the analysis: analyzer, model, prompt hash, attempts, tokens, cost ..."""
    used: tuple[UsedStep, ...]
    others: tuple[OtherStep, ...]
    policy_before: int
    """Version of the policy that sampled the trajectory."""
    policy_after: int
    """Version of the policy that the update made."""
    policy: str
    """Where that one lies, relative to the campaign."""
    committed_at: str
    update: dict[str, float | None]
    """Metrics of the update."""
    gates: dict[str, bool]
    """Table -> whether its gate passed."""
    named_by_gates: tuple[str, ...]
    """Broken expectations whose failing rows name the skill or its trajectory."""


def trace_skill(
    root: str,
    endpoint_url: str | None,
    campaign: str | None,
    skill_id: str,
    say: Callable[[str], None] = lambda line: None,
) -> SkillTrace:
    """What became of a skill of a campaign (None: the only one under `root` that has it; one that cannot be read, as
    those of another version, is left out, which `say` is told).

    Raises ConfigError for an unknown skill, naming the ids most like it, and for one that several campaigns have;
    DataError where no campaign can be read.
    """
    where = address_of(root, endpoint_url)
    names = [campaign] if campaign is not None else list_campaigns(root, endpoint_url)
    if not names:
        raise ConfigError(f"root: no campaign in {where}; {known_campaigns(root, endpoint_url)}")
    traces: list[SkillTrace] = []
    known: set[str] = set()
    left_out: dict[str, str] = {}
    for name in names:
        try:
            store, chain = read_chain(root, name, endpoint_url)
            index = _index_of_skill(chain, skill_id)
            skills = read_tables(store, chain[index], ["skills"])["skills"] if index else None
        except DataError as error:
            if campaign is not None:
                raise
            left_out[name] = str(error)
            say(f"Left out: {name}: {error}")
            continue
        if skills is None:
            continue
        ids = skills.column("skill_id").to_pylist()
        known.update(ids)
        if skill_id in ids:
            tables = read_tables(store, chain[index], TABLES)
            load = partial(token_texts, store, chain[index - 1].policy)
            traces.append(skill_trace(name, chain[index], tables, skill_id, load))
    if len(left_out) == len(names):
        raise none_readable(where, left_out)
    if len(traces) > 1:
        raise ConfigError(
            f"skill {skill_id!r}: several campaigns in {where} have one of this name "
            f"({', '.join(trace.campaign for trace in traces)}); name yours with --campaign"
        )
    if not traces:
        nearest = difflib.get_close_matches(skill_id, sorted(known), n=3, cutoff=0.0)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else "no skill is committed"
        read = [name for name in names if name not in left_out]
        raise ConfigError(f"skill: no skill {skill_id!r} in {', '.join(read)} under {where}; {hint}")
    return traces[0]


def skill_trace(
    campaign: str,
    manifest: Manifest,
    tables: Tables,
    skill_id: str,
    load_texts: Callable[[], Callable[[int], str] | None],
) -> SkillTrace:
    """What became of a skill of the iteration of `manifest`. `load_texts` gives the text of a token id, if it is known;
    it is called for skills that were used."""
    skill = next(row for row in tables["skills"].to_pylist() if row["skill_id"] == skill_id)
    of_trajectory = {
        name: table.filter(pc.call_function("equal", [table.column("trajectory_id"), skill["trajectory_id"]]))
        for name, table in tables.items()
        if name != "metrics"
    }
    rows = {name: of_trajectory[name].to_pylist() for name in ("trajectories", "steps", "routes")}
    steps = {row["step"]: row for row in rows["steps"]}
    scores = {step: score for (_, step), score in score_rows(of_trajectory["scores"]).items()}
    used = [row for row in rows["routes"] if skill_id in (row["skill_id"], row["added_skill_id"])]
    texts = load_texts() if used else None
    shown_apart = {"skill_id", "trajectory_id", "kind", "step", "text", "outcome"}
    return SkillTrace(
        skill_id=skill_id,
        campaign=campaign,
        iteration=manifest.iteration,
        kind=skill["kind"],
        step=skill["step"],
        text=skill["text"],
        trajectory={**rows["trajectories"][0], "task_text": next((row["task_text"] for row in rows["steps"]), None)},
        made_by={name: value for name, value in skill.items() if name not in shown_apart and value is not None},
        used=tuple(
            _used(row, 0 if row["skill_id"] == skill_id else -1, steps[row["step"]], scores[row["step"]], texts)
            for row in used
        ),
        others=tuple(
            OtherStep(row["step"], row["route"], row["skill_id"], row["reason"])
            for row in rows["routes"]
            if row not in used
        ),
        policy_before=manifest.policy_version - 1,
        policy_after=manifest.policy_version,
        policy=manifest.policy.uri,
        committed_at=manifest.created_at,
        update={
            row["name"]: row["value"] for row in tables["metrics"].to_pylist() if row["name"].startswith("update/")
        },
        gates={name: gate.passed for name, gate in sorted(manifest.gates.items())},
        named_by_gates=tuple(
            f"{name}: {result.severity}: {result.expectation} on {result.column or 'the table'}: {json.dumps(row)}"
            for name, gate in sorted(manifest.gates.items())
            for result in gate.broken
            for row in _naming(result, skill)
        ),
    )


def token_texts(store: CampaignStore, policy: FolderRecord) -> Callable[[int], str] | None:
    """The text of a token id by the policy's stored tokenizer; None where it has no `tokenizer.json`."""
    data = tokenizer_json(store, policy)
    if data is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(data.decode())
    return lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False)


def describe(trace: SkillTrace) -> list[str]:
    """A skill's trace in words, line by line."""
    t = trace.trajectory
    where = f" of step {trace.step}" if trace.step is not None else ""
    lines = [
        f"Skill {trace.skill_id}: {trace.kind}{where}, campaign {trace.campaign}, iteration {trace.iteration}",
        f"  {trace.text}" if trace.text else "  no skill: the analysis failed",
        "",
        f"From trajectory {t['trajectory_id']}: {t['outcome']}, return {t['return']:g}, {t['steps']} steps, "
        f"{t['tokens']} tokens, sampled by policy {trace.policy_before}",
        f"  task {t['task_id']} ({t['task_type']}): {t['task_text'] or ''}".rstrip(),
        "Made by",
        *(f"  {name}: {_brief(name, value)}" for name, value in trace.made_by.items()),
        "",
        f"Used at {len(trace.used)} of {len(trace.used) + len(trace.others)} steps of its trajectory"
        + (" (delta: what the skill adds to a token's log-prob, in nats)" if trace.used else ""),
    ]
    for step in trace.used:
        moved = ", ".join(
            f"{f'#{m.token_id}' if m.text is None else json.dumps(m.text, ensure_ascii=False)} {m.delta:+.4f}"
            for m in step.most_moved
        )
        lines += [
            f"  step {step.step} (route {step.route}: {step.reason}): {step.action}",
            f"    delta over {step.tokens} tokens: sum {step.delta_sum:+.4f}, mean {step.delta_mean:+.4f}, "
            f"min {step.delta_min:+.4f}, max {step.delta_max:+.4f}",
            f"    most moved: {moved}",
            f"    advantage: outcome {step.outcome_advantage:+.4f} and step {step.step_advantage:+.4f} a token, skill "
            f"{step.skill_advantage_sum:+.6f} in sum; {'trained on' if step.trained else 'not trained on'}",
        ]
    for step in trace.others:
        lines.append(f"  step {step.step} (route {step.route}: {step.reason}): {step.skill_id or 'no skill'} instead")
    trained = any(step.trained for step in trace.used)
    lines += [
        "",
        f"Update: policy {trace.policy_before} -> policy {trace.policy_after} ({trace.policy}), committed "
        f"{trace.committed_at}{'' if trained else '; no token of this skill was in it'}",
        *(f"  {name}: {'undefined' if value is None else f'{value:.5g}'}" for name, value in trace.update.items()),
        "Gates: " + ", ".join(f"{name} {'passed' if ok else 'failed'}" for name, ok in trace.gates.items()),
        *(f"  {line}" for line in trace.named_by_gates),
    ]
    return lines


def _brief(name: str, value: Any) -> str:
    if name in ("raw_reply", "reasoning"):
        return f"{len(value)} characters (--json has them)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _index_of_skill(chain: list[Manifest], skill_id: str) -> int:
    """The index in `chain` of the iteration that a skill id begins with, or else of the newest; 0: there is none."""
    number = re.match(r"([0-9]{1,9})-", skill_id)
    newest = max(0, len(chain) - 1)
    return min(int(number[1]), newest) if number else newest


def _used(route: TableRow, which: int, step: TableRow, score: ScoreRow, texts: Callable[[int], str] | None) -> UsedStep:
    """A step, with `which` of its deltas is the skill's: one may be scored under a second skill, added to the first."""
    delta, ids = score.deltas[which], step["response_ids"]
    largest = np.argsort(-np.abs(delta), kind="stable")[:MOST_MOVED].tolist()
    return UsedStep(
        step=route["step"],
        route=route["route"],
        reason=route["reason"],
        action=step["action"],
        tokens=len(delta),
        delta_sum=float(delta.sum()),
        delta_mean=float(delta.sum()) / max(1, len(delta)),
        delta_min=min(delta.tolist(), default=0.0),
        delta_max=max(delta.tolist(), default=0.0),
        most_moved=tuple(
            MovedToken(position, ids[position], texts(ids[position]) if texts else None, float(delta[position]))
            for position in largest
        ),
        outcome_advantage=score.outcome_advantage,
        step_advantage=score.step_advantage,
        skill_advantage_sum=float(score.skill_advantages.sum()),
        trained=score.trained,
    )


def _naming(result: BrokenExpectation, skill: TableRow) -> list[dict[str, Any]]:
    """Failing rows that name the skill, or its trajectory as a whole."""
    return [
        row
        for row in result.failing_rows
        if row.get("skill_id") == skill["skill_id"]
        or ("skill_id" not in row and row.get("trajectory_id") == skill["trajectory_id"])
    ]
