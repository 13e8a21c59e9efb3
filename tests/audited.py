"""Campaigns of made-up episodes in a real store, through the real schema: what the audit is shown with."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infra.manifest import BrokenExpectation, GateResult, Manifest
from infra.store import CampaignStore, manifests, open_campaign
from opid_core import schema
from opid_core.evaluation import rollout_metrics
from opid_core.skills.counts import analysis_metrics, skill_metrics
from tests.factories import commit_rows, row

TOKENIZER = Path(__file__).resolve().parents[1] / "configs" / "policies" / "alfworld_tiny" / "tokenizer.json"
TASK_TYPES = ("pick", "clean", "heat")
CONFIG = {
    "campaign": "audited",
    "iterations": 3,
    "seed": 0,
    "policy": "configs/policies/alfworld_tiny",
    "environment": {"name": "alfworld"},
    "method": {"name": "opid"},
    "analyzer": {"backend": "hindsight"},
}
WORDS = ["go", "to", "desk", "shelf", "take", "put", "mug", "lamp", "open", "close", "look", "at", "then", "1", "2"]


def unpacked(text: str) -> Any:
    """What `packed` was given, as a page's script reads it."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


@dataclass(frozen=True)
class Shape:
    """How large an iteration is."""

    tasks: int = 2
    group_size: int = 3
    steps: int = 3
    tokens: int = 8
    """Of a response; about."""


@dataclass
class Texts:
    """Where texts come from: random words; tests put in their own."""

    generator: random.Random
    special: list[str] = field(default_factory=list)
    """Used up first, in turn, by whatever asks for text."""

    def words(self, count: int) -> str:
        if self.special:
            return self.special.pop(0)
        return " ".join(self.generator.choice(WORDS) for _ in range(count))


def make_campaign(
    root: Path,
    iterations: int,
    shape: Shape,
    *,
    name: str = "audited",
    seed: int = 0,
    tokenizer: bool = True,
    full: Callable[[int], bool] = lambda iteration: True,
    special: Sequence[str] = (),
    degraded: int | None = None,
    placebo: float | None = None,
) -> tuple[CampaignStore, list[Manifest]]:
    """A committed campaign. Iterations that are not `full` have the small tables only (their pages cannot be made).

    `special` texts stand first in the last iteration; iteration `degraded` is marked so and has findings.
    Skills have placebos that make each token likelier by `placebo` nats (None: they have none).
    """
    store = open_campaign(root, name, {**CONFIG, "campaign": name, "iterations": iterations})
    encode = _encoder()
    previous, before = None, set()
    for iteration in range(iterations + 1):
        texts = Texts(random.Random(f"{seed}/{iteration}"), list(special) if iteration == iterations else [])
        rows: dict[str, list[dict[str, Any]]] = {
            "metrics": [],
            "evaluations": _evaluations(iteration, texts.generator),
        }
        if iteration:
            rows |= iteration_rows(name, iteration, shape, texts, encode, full(iteration))
            for scores in rows.get("scores", []) if placebo is not None else []:
                if scores["skill_log_probs"] is not None:
                    scores["placebo_log_probs"] = scores["old_log_probs"] + placebo
        rows["metrics"] = _metrics(iteration, rows, before)
        previous = commit_rows(
            store,
            root,
            previous,
            rows,
            gates=[_gate(iteration == degraded)],
            degraded=["skills: 2 of 6 analyses failed"] if iteration == degraded else [],
            metrics={row["name"]: row["value"] for row in rows["metrics"]},
            tokenizer=TOKENIZER.read_bytes() if tokenizer else False,
        )
        before = {skill["text"] for skill in rows.get("skills", [])}
    return store, manifests(store)


def iteration_rows(
    campaign: str,
    iteration: int,
    shape: Shape,
    texts: Texts,
    encode: Callable[[str], list[int]],
    full: bool,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of an iteration's tables: every trajectory has an episode skill and a step skill for its middle step, but
    the analysis of each group's last one failed, and the first step of each is routed to nothing."""
    generator = texts.generator
    noise = np.random.default_rng(generator.getrandbits(32))
    tables: dict[str, list[dict[str, Any]]] = {"trajectories": [], "skills": []}
    if full:
        tables |= {"steps": [], "routes": [], "scores": []}
    for task in range(shape.tasks):
        task_id, task_type = f"train/{(iteration - 1) * shape.tasks + task:06d}", TASK_TYPES[task % len(TASK_TYPES)]
        task_text = texts.words(8)
        for copy in range(shape.group_size):
            trajectory_id = f"{iteration:06d}-{task:04d}-{copy:02d}"
            outcome = ("success", "failure", "truncated")[generator.randrange(3)]
            common = {"campaign": campaign, "iteration": iteration, "group_id": f"{iteration:06d}-{task:04d}"}
            common |= {"trajectory_id": trajectory_id, "task_id": task_id, "task_type": task_type}
            analyzed = copy < shape.group_size - 1
            tables["skills"] += _skills(trajectory_id, outcome, shape, texts, analyzed)
            tokens = 0
            for step in range(shape.steps if full else 0):
                route = "none" if not analyzed or step == 0 else "step" if step == shape.steps // 2 else "episode"
                response = texts.words(shape.tokens - 2)
                ids = [*encode(response), 0]
                tokens += len(ids)
                keys = {"trajectory_id": trajectory_id, "step": step}
                scores = row("scores", **keys, **_log_probs(len(ids), route, noise))
                tables["scores"].append(scores)
                reason = {"none": "no skill", "step": "has a step skill", "episode": "no step skill here"}[route]
                name = {"none": None, "step": f"{trajectory_id}/step{step}", "episode": f"{trajectory_id}/episode"}[
                    route
                ]
                tables["routes"].append(row("routes", **keys, route=route, skill_id=name, reason=reason))
                is_last = step == shape.steps - 1
                tables["steps"].append(
                    row(
                        "steps",
                        **common,
                        step=step,
                        task_text=task_text,
                        observation=texts.words(60),
                        response_text=response,
                        response_ids=ids,
                        rollout_log_probs=scores["old_log_probs"],
                        action=texts.words(4),
                        reward=float(outcome == "success" and is_last),
                        done=outcome == "success" and is_last,
                        truncated=outcome == "truncated" and is_last,
                        policy_version=iteration - 1,
                    )
                )
            tables["trajectories"].append(
                row("trajectories", **common, outcome=outcome, steps=shape.steps, tokens=tokens)
            )
    return tables


def _encoder() -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    # each character of a text stands for itself, also where the text spells a special token
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _skills(trajectory_id: str, outcome: str, shape: Shape, texts: Texts, analyzed: bool) -> list[dict[str, Any]]:
    middle = shape.steps // 2
    given = [("episode", None, f"{trajectory_id}/episode"), ("step", middle, f"{trajectory_id}/step{middle}")]
    kinds = given if analyzed else [("failed", None, f"{trajectory_id}/failed")]
    reply = texts.words(60)
    return [
        row(
            "skills",
            skill_id=skill_id,
            trajectory_id=trajectory_id,
            kind=kind,
            step=step,
            text=texts.words(25) if analyzed else "",
            outcome=outcome,
            analyzer="llm",
            model="made-up",
            prompt_hash="0" * 64,
            tokens=100,
            prompt_tokens=80,
            completion_tokens=20,
            cost=0.001,
            seconds=0.5,
            error=None if analyzed else "AnalyzerReplyError: the reply holds no JSON object",
            raw_reply=reply,
        )
        for kind, step, skill_id in kinds
    ]


def _log_probs(length: int, route: str, noise: np.random.Generator) -> dict[str, Any]:
    """The columns of a row of `scores` that follow from its route."""
    old = -noise.exponential(0.5, length).astype(np.float32)
    if route == "none":
        return {"old_log_probs": old, "outcome_advantage": 0.5}
    skill = np.minimum(0, old + noise.normal(0, 0.2, length)).astype(np.float32)
    return {
        "old_log_probs": old,
        "outcome_advantage": 0.5,
        "skill_log_probs": skill,
        "skill_prompt_ids": [1, 9, 2],
        "skill_advantages": 0.01 * (skill - old),
    }


def _evaluations(policy_version: int, generator: random.Random) -> list[dict[str, Any]]:
    return [
        row(
            "evaluations",
            policy_version=policy_version,
            temperature=temperature,
            task_id=f"valid/{number:06d}",
            task_type=TASK_TYPES[number % len(TASK_TYPES)],
            outcome="success" if generator.random() < 0.3 + policy_version / 300 else "failure",
        )
        for temperature in (0.4, 1.0)
        for number in range(12)
    ]


def _metrics(iteration: int, rows: dict[str, list[dict[str, Any]]], before: set[str]) -> list[dict[str, Any]]:
    metrics: dict[str, float] = {"evaluation/0.4/success_micro": 0.5}
    if "steps" in rows:
        made = {name: schema.from_rows(name, rows[name]) for name in ("steps", "trajectories", "skills", "routes")}
        metrics |= rollout_metrics(made["steps"], made["trajectories"])
        metrics |= skill_metrics(made["trajectories"], made["skills"], made["routes"])
        metrics |= analysis_metrics(made["skills"], before)
    elif iteration:
        metrics |= {"routes/step": 0.1 + 0.0005 * iteration, "skills/coverage": 0.9, "update/kl_k3": 0.001 * iteration}
    return [{"iteration": iteration, "name": name, "value": value} for name, value in sorted(metrics.items())]


def _gate(broken: bool) -> GateResult:
    row = {"trajectory_id": "000001-0000-00", "text": "<b>too short</b>"}
    length = BrokenExpectation(
        expectation="value_lengths_between", column="text", severity="warn", failing_rows=(row,), observed=1
    )
    held = [("values_unique", "skill_id", None)]
    if not broken:
        held.append(("value_lengths_between", "text", None))
    return GateResult(table="skills", passed=True, held=tuple(held), broken=(length,) if broken else ())
