"""`opid trace`: the whole life of a skill, from the trajectory it was made from to the update that used it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from flows.reports.printing import plain
from infra.manifest import START, ExpectationResult, FolderRecord, Manifest
from infra.store import CampaignStore, find_campaign, list_campaigns, manifests, read_object, read_table
from opid_core.errors import ConfigError

MOST_MOVED = 5
"""Tokens shown of each step."""
TABLES = ("trajectories", "steps", "routes", "scores", "metrics")
Row = Mapping[str, Any]


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
class Life:
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


def find_life(root: str, endpoint_url: str | None, campaign: str | None, skill_id: str) -> Life:
    """The life of a skill of a campaign (None: the only one under `root` that has it).

    Raises ConfigError for an unknown skill, naming the ids most like it, and for one that several campaigns have.
    """
    names = [campaign] if campaign is not None else list_campaigns(root, endpoint_url)
    if not names:
        raise ConfigError(f"root: there is no campaign in {root}")
    lives: list[Life] = []
    known: list[str] = []
    for name in names:
        store = find_campaign(root, name, endpoint_url)
        chain = manifests(store)
        place = _place(chain, skill_id)
        if place == 0:
            continue
        records = chain[place].tables
        skills = read_table(store, records["skills"])
        ids = skills.column("skill_id").to_pylist()
        known += ids
        if skill_id in ids:
            tables = {"skills": skills, **{table: read_table(store, records[table]) for table in TABLES}}
            load = partial(token_texts, store, chain[place - 1].policy)
            lives.append(life(name, chain[place], tables, skill_id, load))
    if len(lives) > 1:
        raise ConfigError(
            f"skill {skill_id!r}: several campaigns in {root} have one of this name "
            f"({', '.join(found.campaign for found in lives)}); name yours with --campaign"
        )
    if not lives:
        nearest = difflib.get_close_matches(skill_id, sorted(set(known)), n=3, cutoff=0.0)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else "no skill is committed"
        raise ConfigError(f"skill: no skill {skill_id!r} in {', '.join(names)} under {root}; {hint}")
    return lives[0]


def life(
    campaign: str,
    manifest: Manifest,
    tables: Mapping[str, pa.Table],
    skill_id: str,
    load_texts: Callable[[], Callable[[int], str] | None],
) -> Life:
    """The life of a skill of the iteration of `manifest`. `load_texts` gives the text of a token id, if it is known;
    it is called for skills that were used."""
    assert manifest.iteration != START
    skill = next(row for row in tables["skills"].to_pylist() if row["skill_id"] == skill_id)
    own = {name: _rows_of(table, skill["trajectory_id"]) for name, table in tables.items() if name != "metrics"}
    steps, scores = ({row["step"]: row for row in own[name]} for name in ("steps", "scores"))
    routed = {row["step"]: _log_probs_column(row, skill_id) for row in own["routes"]}
    texts = load_texts() if any(routed.values()) else None
    told = {"skill_id", "trajectory_id", "kind", "step", "text", "outcome"}
    return Life(
        skill_id=skill_id,
        campaign=campaign,
        iteration=manifest.iteration,
        kind=skill["kind"],
        step=skill["step"],
        text=skill["text"],
        trajectory={**own["trajectories"][0], "task_text": next((row["task_text"] for row in own["steps"]), None)},
        made_by={name: value for name, value in skill.items() if name not in told and value is not None},
        used=tuple(
            _used(row, column, steps[row["step"]], scores[row["step"]], texts)
            for row in own["routes"]
            if (column := routed[row["step"]])
        ),
        others=tuple(
            OtherStep(row["step"], row["route"], row["skill_id"], row["reason"])
            for row in own["routes"]
            if not routed[row["step"]]
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
            for result in gate.expectations
            for row in _naming(result, skill)
        ),
    )


def token_texts(store: CampaignStore, policy: FolderRecord) -> Callable[[int], str] | None:
    """The text of a token id by the policy's stored tokenizer; None where it has no `tokenizer.json`."""
    path = f"{policy.uri}/tokenizer.json"
    data = read_object(store, path) if any(file.path == path for file in policy.files) else None
    if data is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(data.decode())
    return lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False)


def show_trace(
    root: str, endpoint_url: str | None, campaign: str | None, skill_id: str, as_json: bool, console: Console
) -> None:
    """Print the life of a skill, as text or as one JSON object."""
    found = find_life(root, endpoint_url, campaign, skill_id)
    if as_json:
        console.print(json.dumps(asdict(found), indent=2), markup=False, highlight=False, soft_wrap=True)
        return
    for line in describe(found):
        console.print(plain(line), soft_wrap=True)


def describe(found: Life) -> list[str]:
    """The life of a skill, line by line."""
    t = found.trajectory
    where = f" of step {found.step}" if found.step is not None else ""
    lines = [
        f"Skill {found.skill_id}: {found.kind}{where}, campaign {found.campaign}, iteration {found.iteration}",
        f"  {found.text}" if found.text else "  no skill: the analysis failed",
        "",
        f"From trajectory {t['trajectory_id']}: {t['outcome']}, return {t['return']:g}, {t['steps']} steps, "
        f"{t['tokens']} tokens, sampled by policy {found.policy_before}",
        f"  task {t['task_id']} ({t['task_type']}): {t['task_text'] or ''}".rstrip(),
        "Made by",
        *(f"  {name}: {_brief(name, value)}" for name, value in found.made_by.items()),
        "",
        f"Used at {len(found.used)} of {len(found.used) + len(found.others)} steps of its trajectory"
        + (" (delta: what the skill adds to a token's log-prob, in nats)" if found.used else ""),
    ]
    for step in found.used:
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
    for step in found.others:
        lines.append(f"  step {step.step} (route {step.route}: {step.reason}): {step.skill_id or 'no skill'} instead")
    trained = any(step.trained for step in found.used)
    lines += [
        "",
        f"Update: policy {found.policy_before} -> policy {found.policy_after} ({found.policy}), committed "
        f"{found.committed_at}{'' if trained else '; no token of this skill was in it'}",
        *(f"  {name}: {'undefined' if value is None else f'{value:.5g}'}" for name, value in found.update.items()),
        "Gates: " + ", ".join(f"{name} {'passed' if ok else 'failed'}" for name, ok in found.gates.items()),
        *(f"  {line}" for line in found.named_by_gates),
    ]
    return lines


def _brief(name: str, value: Any) -> str:
    if name == "raw_reply":
        return f"{len(value)} characters (--json has them)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _place(chain: list[Manifest], skill_id: str) -> int:
    """The place in `chain` of the iteration that a skill id begins with, or else of the newest; 0: there is none."""
    number = re.match(r"([0-9]{1,9})-", skill_id)
    place = int(number[1]) + 1 if number else len(chain) - 1
    return max(0, place if place < len(chain) else len(chain) - 1)


def _rows_of(table: pa.Table, trajectory_id: str) -> list[dict[str, Any]]:
    own = [name == trajectory_id for name in table.column("trajectory_id").to_pylist()]
    return table.filter(pa.array(own, pa.bool_())).to_pylist()


def _log_probs_column(route: Row, skill_id: str) -> str | None:
    """Where the log-probs under the skill are: a step may be scored under a skill and, added to it, another."""
    if route["skill_id"] == skill_id:
        return "skill_log_probs"
    return "added_log_probs" if route["added_skill_id"] == skill_id else None


def _used(route: Row, column: str, step: Row, scored: Row, texts: Callable[[int], str] | None) -> UsedStep:
    delta = np.subtract(scored[column], scored["old_log_probs"], dtype=np.float64)
    largest = np.argsort(-np.abs(delta), kind="stable")[:MOST_MOVED].tolist()
    ids = step["response_ids"]
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
            MovedToken(place, ids[place], texts(ids[place]) if texts else None, float(delta[place]))
            for place in largest
        ),
        outcome_advantage=scored["outcome_advantage"],
        step_advantage=scored["step_advantage"],
        skill_advantage_sum=float(np.sum(scored["skill_advantages"], dtype=np.float64)),
        trained=scored["trained"],
    )


def _naming(result: ExpectationResult, skill: Row) -> list[dict[str, Any]]:
    """Failing rows that name the skill, or its trajectory as a whole."""
    return [
        row
        for row in result.failing_rows
        if row.get("skill_id") == skill["skill_id"]
        or ("skill_id" not in row and row.get("trajectory_id") == skill["trajectory_id"])
    ]
