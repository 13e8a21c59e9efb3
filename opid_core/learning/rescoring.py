"""From tables to training samples: skill prompts, the three log-probs of every response, advantages.

One policy, the old one, scores with and without the skill; a rollout engine's log-probs never enter (ALGORITHM, 5).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from envs.base import PromptParts
from opid_core.config import CampaignConfig
from opid_core.learning import methods
from opid_core.learning.advantages import outcome_scores, tie_rate, tied_samples
from opid_core.learning.scoring import TokenSequence
from opid_core.rollout.prompting import EncodedPrompt, encode, inject
from opid_core.schema import from_rows
from opid_core.skills.analyzers import step_returns

if TYPE_CHECKING:
    from opid_core.learning.learner import TrainingSample

Score = Callable[[Sequence[TokenSequence]], list[np.ndarray]]
"""Log-probs (nats) of each sequence's response tokens."""


def rescore_steps(
    steps: pa.Table,
    trajectories: pa.Table,
    skills: pa.Table,
    routes: pa.Table,
    *,
    prompt_parts: Callable[..., PromptParts],
    tokenizer: Any,
    score: Score,
    score_reference: Score | None,
    config: CampaignConfig,
    iteration: int,
) -> tuple[pa.Table, dict[str, float]]:
    """The `scores` table (one row a row of `steps`, in its order) and metrics.

    `score` is the policy that sampled; `score_reference` None leaves the reference out; `iteration` counts from 0.
    Source: ALGORITHM, sections 5, 6 and 8.
    """
    rows = steps.to_pylist()
    prompts, added_prompts = (
        skill_prompts(rows, skills, routes, prompt_parts, tokenizer, config, added=added) for added in (False, True)
    )
    plain = [TokenSequence(row["prompt_ids"], row["response_ids"]) for row in rows]
    with_skill, with_added = _sequences(rows, prompts), _sequences(rows, added_prompts)
    scored = iter(score([*plain, *with_skill.values(), *with_added.values()]))
    old = list(itertools.islice(scored, len(plain)))
    under_skill = dict(zip(with_skill, itertools.islice(scored, len(with_skill)), strict=True))
    under_added = dict(zip(with_added, scored, strict=True))
    reference = score_reference(plain) if score_reference is not None else [None] * len(plain)

    outcome_of = dict(zip(*(trajectories.column(c).to_pylist() for c in ("trajectory_id", "outcome")), strict=True))
    outcomes = [outcome_of[row["trajectory_id"]] for row in rows]
    broken = broken_groups(trajectories)
    intact = np.array([row["group_id"] not in broken for row in rows], bool)
    batch = _batch(rows, steps, routes, old, under_skill, under_added, outcomes, config, iteration)
    method = methods.get(config.method.name)
    tied = tied_samples(batch.outcomes, batch.group_ids, batch.trajectory_ids) & intact
    trained = intact & ~tied if method.filters_ties else intact
    kept = np.flatnonzero(trained)
    learned = _select(batch, kept)
    found = method.advantages(learned, config.method)
    place = {int(index): position for position, index in enumerate(kept)}

    out = []
    for i, row in enumerate(rows):
        length, prompt = len(row["response_ids"]), prompts[i]
        at = place.get(i)
        out.append(
            {
                "trajectory_id": row["trajectory_id"],
                "step": row["step"],
                "old_log_probs": old[i],
                "skill_log_probs": under_skill.get(i),
                "added_log_probs": under_added.get(i),
                "reference_log_probs": reference[i],
                "skill_prompt_ids": None if prompt is None else prompt.ids,
                "history_dropped": 0 if prompt is None else prompt.history_dropped,
                "outcome_advantage": 0.0 if at is None else float(found.outcome[at]),
                "step_advantage": 0.0 if at is None else float(found.step[at]),
                "skill_advantages": np.zeros(length, np.float32) if at is None else found.skill[at, :length],
                "trained": bool(trained[i]),
            }
        )
    whole = _select(batch, np.flatnonzero(intact))
    groups = {
        "rollout/groups_trained": len(set(learned.group_ids)),
        "rollout/groups_filtered": len(set(whole.group_ids)) - len(set(learned.group_ids)),
        "rollout/tie_rate": tie_rate(whole.outcomes, whole.group_ids, whole.trajectory_ids),
    }
    shares = methods.shares(found, learned.response_mask)
    metrics = {f"advantage_share/{name}": share for name, share in shares.items()} | groups
    return from_rows("scores", out), metrics | _metrics(rows, [*prompts, *added_prompts], old, under_skill, under_added)


def skill_prompts(
    rows: Sequence[dict[str, Any]],
    skills: pa.Table,
    routes: pa.Table,
    prompt_parts: Callable[..., PromptParts],
    tokenizer: Any,
    config: CampaignConfig,
    *,
    added: bool = False,
) -> list[EncodedPrompt | None]:
    """The prompt of each row of `steps` with its routed skill in it (with its `added` episode skill instead); None
    where there is no such skill.

    Prompts are rebuilt from the rows of their trajectory, so that history can be dropped for length and nothing else.
    """
    texts = dict(zip(skills.column("skill_id").to_pylist(), skills.column("text").to_pylist(), strict=True))
    routed = {(r["trajectory_id"], r["step"]): r for r in routes.to_pylist()}
    history: dict[str, list[tuple[str, str]]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        history.setdefault(row["trajectory_id"], []).append((row["observation"], row["action"]))
    prompts: list[EncodedPrompt | None] = []
    for row in rows:
        own = routed[row["trajectory_id"], row["step"]]
        kind, skill_id = ("episode", own["added_skill_id"]) if added else (own["route"], own["skill_id"])
        if skill_id is None:
            prompts.append(None)
            continue
        parts = prompt_parts(
            row["task_text"],
            history[row["trajectory_id"]][: row["step"]],
            row["observation"],
            row["admissible_actions"],
            config.environment.history_length,
        )
        with_skill = inject(parts, kind, texts[skill_id])
        prompts.append(encode(tokenizer, with_skill, config.rollout.max_prompt_tokens, may_exceed=True))
    return prompts


def training_samples(steps: pa.Table, scores: pa.Table) -> list[TrainingSample]:
    """The learner's samples of an iteration, in the order of the tables; what `scores.trained` says is left out."""
    from opid_core.learning.learner import TrainingSample

    samples = []
    columns = ["trajectory_id", "step", "prompt_ids", "response_ids"]
    for step, scored in zip(steps.select(columns).to_pylist(), scores.to_pylist(), strict=True):
        assert (step["trajectory_id"], step["step"]) == (scored["trajectory_id"], scored["step"])
        if not scored["trained"]:
            continue
        reference, skill = scored["reference_log_probs"], scored["skill_log_probs"]
        per_step = np.float32(scored["outcome_advantage"]) + np.float32(scored["step_advantage"])
        samples.append(
            TrainingSample(
                prompt_ids=step["prompt_ids"],
                response_ids=step["response_ids"],
                old_log_probs=np.asarray(scored["old_log_probs"], np.float32),
                reference_log_probs=None if reference is None else np.asarray(reference, np.float32),
                advantages=per_step + np.asarray(scored["skill_advantages"], np.float32),
                skill_log_probs=None if skill is None else np.asarray(skill, np.float32),
            )
        )
    return samples


def broken_groups(trajectories: pa.Table) -> set[str]:
    """Groups in which an environment broke: nothing is learned from them, because their other members would be compared
    with too few (the rollout samples each once more)."""
    columns = (trajectories.column(name).to_pylist() for name in ("group_id", "outcome"))
    return {group_id for group_id, outcome in zip(*columns, strict=True) if outcome == "broken"}


def _sequences(rows, prompts: Sequence[EncodedPrompt | None]) -> dict[int, TokenSequence]:
    """What is scored under each prompt that there is, by the place of its row."""
    return {i: TokenSequence(p.ids, rows[i]["response_ids"]) for i, p in enumerate(prompts) if p is not None}


def _batch(
    rows,
    steps: pa.Table,
    routes: pa.Table,
    old,
    under_skill: dict[int, np.ndarray],
    under_added: dict[int, np.ndarray],
    outcomes: list[str],
    config: CampaignConfig,
    iteration: int,
) -> methods.Batch:
    width = max((len(row["response_ids"]) for row in rows), default=0)
    mask = np.zeros((len(rows), width), bool)
    old_log_probs, skill_log_probs, added_log_probs = np.zeros((3, len(rows), width), np.float32)
    for i, row in enumerate(rows):
        length = len(row["response_ids"])
        mask[i, :length] = True
        old_log_probs[i, :length] = old[i]
        for found, log_probs in ((under_skill, skill_log_probs), (under_added, added_log_probs)):
            if i in found:
                log_probs[i, :length] = found[i]
    won = np.array([outcome == "success" for outcome in outcomes])
    route_of = {(r["trajectory_id"], r["step"]): r["route"] for r in routes.to_pylist()}
    environment = config.environment
    return methods.Batch(
        iteration=iteration,
        scores=outcome_scores(
            won,
            np.array([row["is_valid"] for row in rows]),
            environment.success_reward,
            environment.invalid_action_penalty,
        ),
        outcomes=won.astype(np.float32),
        returns=step_returns(steps, config.method.gamma, environment.invalid_action_penalty),
        states=[row["observation"] for row in rows],
        group_ids=[row["group_id"] for row in rows],
        trajectory_ids=[row["trajectory_id"] for row in rows],
        response_mask=mask,
        old_log_probs=old_log_probs,
        skill_log_probs=skill_log_probs,
        added_log_probs=added_log_probs,
        routes=[route_of[row["trajectory_id"], row["step"]] for row in rows],
        added=np.array([i in under_added for i in range(len(rows))], bool),
    )


def _select(batch: methods.Batch, indices: np.ndarray) -> methods.Batch:
    """The batch's samples at `indices`."""

    def taken(values: Any) -> Any:
        return values[indices] if isinstance(values, np.ndarray) else [values[i] for i in indices]

    per_sample = (field.name for field in fields(batch) if field.name != "iteration")
    return replace(batch, **{name: taken(getattr(batch, name)) for name in per_sample})


def _metrics(rows, prompts, old, under_skill, under_added) -> dict[str, float]:
    gaps = [np.abs(np.asarray(row["rollout_log_probs"], np.float32) - old[i]) for i, row in enumerate(rows)]
    deltas = [under_skill[i] - old[i] for i in under_skill]
    delta = np.concatenate(deltas) if deltas else np.zeros(0)
    dropped_before = [row["history_dropped"] for row in rows] * 2
    return {
        "rescore/engine_gap_mean": float(np.concatenate(gaps).mean()) if any(gap.size for gap in gaps) else 0.0,
        "rescore/engine_gap_max": float(max((gap.max() for gap in gaps if gap.size), default=0.0)),
        "rescore/skill_delta_mean": float(delta.mean()) if delta.size else 0.0,
        "rescore/skill_delta_std": float(delta.std()) if delta.size else 0.0,
        "rescore/prompts_cut": sum(
            prompt is not None and prompt.history_dropped > before
            for prompt, before in zip(prompts, dropped_before, strict=True)
        ),
        "tokens/rescore": sum(map(len, (*old, *under_skill.values(), *under_added.values()))),
    }
