"""From samples with routes to scored samples: skill prompts, the three log-probs of every response, advantages.

One policy, the old one, scores with and without the skill; a rollout engine's log-probs never enter (ALGORITHM, 5).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from envs.base import PromptParts
from opid_core import schema
from opid_core.config import CampaignConfig
from opid_core.learning.advantages import outcome_scores, tie_rate, tied_samples
from opid_core.rollout.conversation import conversation_parts, encode_conversation, inject_turns
from opid_core.rollout.prompting import encode, inject
from opid_core.samples import Ragged, Samples, stacked
from opid_core.skills.analyzers import step_returns

Score = Callable[[Ragged, Ragged], Ragged]
"""Log-probs (nats) of the tokens of responses, given their prompts."""


@dataclass(frozen=True)
class SkillPrompts:
    """The prompts of the samples `rows` with a skill in them; `history_dropped` entries were cut for length."""

    rows: np.ndarray
    ids: Ragged
    history_dropped: np.ndarray


def rescore_samples(
    samples: Samples,
    trajectories: pa.Table,
    skills: pa.Table,
    *,
    prompt_parts: Callable[..., PromptParts],
    tokenizer: Any,
    score: Score,
    score_reference: Score | None,
    config: CampaignConfig,
) -> tuple[pa.Table, dict[str, float]]:
    """The table `scores` (one row a sample, in their order) and metrics; `samples` have their routes.

    `score` is the policy that sampled; `score_reference` None leaves the reference out.
    Source: ALGORITHM, sections 5, 6 and 8.
    """
    texts = dict(zip(skills["skill_id"].to_pylist(), skills["text"].to_pylist(), strict=True))
    kinds = samples.texts("route")
    routed, added, placebo = (
        skill_prompts(samples, of_each, kind_of_each, prompt_parts, tokenizer, config)
        for of_each, kind_of_each in (
            ([texts.get(name) for name in samples.texts("skill_id")], kinds),
            ([texts.get(name) for name in samples.texts("added_skill_id")], ["episode"] * len(samples)),
            (samples.texts("placebo"), kinds),
        )
    )
    responses = samples.response_ids
    # All in one call: micro-batches of equal lengths, whatever the prompt holds.
    scored = score(
        stacked([samples.prompt_ids, *(prompts.ids for prompts in (routed, added, placebo))]),
        stacked([responses, *(responses.take(prompts.rows) for prompts in (routed, added, placebo))]),
    )
    ends = np.cumsum([len(samples), len(routed.rows), len(added.rows), len(placebo.rows)])
    old, under_routed, under_added, under_placebo = (
        scored.between(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    )
    reference = score_reference(samples.prompt_ids, responses) if score_reference is not None else None
    environment = config.environment
    samples = samples.with_columns(
        old_log_probs=old,
        skill_log_probs=_spread(under_routed, routed.rows, len(samples)),
        added_log_probs=_spread(under_added, added.rows, len(samples)),
        placebo_log_probs=_spread(under_placebo, placebo.rows, len(samples)),
        score=outcome_scores(
            samples.won,
            samples.numbers("is_valid"),
            environment.success_reward,
            environment.invalid_action_penalty,
        ),
        discounted_return=step_returns(samples, config.method.gamma, environment.invalid_action_penalty),
    )
    broken = broken_groups(trajectories)
    intact = np.array([group_id not in broken for group_id in samples.group_ids], bool)
    trained = intact
    if config.method.filters_ties:
        trained = intact & ~tied_samples(samples.won, samples.group_ids, samples.trajectory_ids)
    learned = samples.select(trained)
    advantages = config.method.advantages(config.method.against(learned))
    columns = {
        **{name: samples.table[name] for name in ("trajectory_id", "step")},
        **{f"{name}_log_probs": samples.table[f"{name}_log_probs"] for name in ("old", "skill", "added", "placebo")},
        "reference_log_probs": _spread(Ragged.from_rows([], np.float32), np.zeros(0, np.int64), len(samples))
        if reference is None
        else reference.to_arrow(),
        "skill_prompt_ids": _spread(routed.ids, routed.rows, len(samples)),
        "history_dropped": _filled(np.zeros(len(samples), np.int32), routed.rows, routed.history_dropped),
        "outcome_advantage": _filled(np.zeros(len(samples), np.float32), trained, advantages.outcome),
        "step_advantage": _filled(np.zeros(len(samples), np.float32), trained, advantages.step),
        "skill_advantages": Ragged(
            _filled(np.zeros(len(responses.values), np.float32), samples.per_token(trained), advantages.skill),
            responses.offsets,
        ).to_arrow(),
        "trained": trained,
    }
    whole = samples.select(intact)
    groups = {
        "rollout/groups_trained": len(set(learned.group_ids)),
        "rollout/groups_filtered": len(set(whole.group_ids)) - len(set(learned.group_ids)),
        "rollout/tie_rate": tie_rate(whole.won, whole.group_ids, whole.trajectory_ids),
    }
    lengths = learned.response_ids.lengths
    metrics = {
        **{f"advantage_share/{name}": share for name, share in advantages.shares(lengths).items()},
        **{f"advantage_magnitude/{name}": size for name, size in advantages.magnitudes(lengths).items()},
        **groups,
    }
    return pa.table(columns, schema=schema.SCORES), metrics | _metrics(samples, routed, added, placebo)


def skill_prompts(
    samples: Samples,
    texts: Sequence[str | None],
    kinds: Sequence[Any],
    prompt_parts: Callable[..., PromptParts],
    tokenizer: Any,
    config: CampaignConfig,
) -> SkillPrompts:
    """The prompts of the samples that have a text in `texts`, with it in them as a skill of the kind in `kinds` (both
    [samples]).

    Prompts are rebuilt from the samples of their trajectory, so that history can be dropped for length and nothing
    else.
    """
    task_texts, observations, actions, offered = (
        samples.texts(name) for name in ("task_text", "observation", "action", "admissible_actions")
    )
    rows, ids, dropped = [], [], []
    shown, limit = config.environment.history_length, config.rollout.max_prompt_tokens
    for steps in samples.by_trajectory().values():
        seen, done, could = ([column[row] for row in steps] for column in (observations, actions, offered))
        for step, row in enumerate(steps):
            if (text := texts[row]) is None:
                continue
            if config.prompting.style == "chat":
                turns = conversation_parts(prompt_parts, task_texts[row], seen[: step + 1], done[:step], could, shown)
                taught = inject_turns(turns, kinds[row], text, config.prompting)
                responses = [samples.response_ids[before].tolist() for before in steps[:step]]
                said = responses[step + 1 - len(turns) :]
                prompt = encode_conversation(tokenizer, taught, said, limit, may_exceed=True)
            else:
                history = list(zip(seen[:step], done, strict=False))
                parts = prompt_parts(task_texts[row], history, seen[step], could[step], shown)
                with_skill = inject(parts, kinds[row], text, config.prompting)
                prompt = encode(tokenizer, with_skill, limit, may_exceed=True)
            rows.append(int(row))
            ids.append(array("i", prompt.ids))
            dropped.append(prompt.history_dropped)
    order = np.argsort(np.array(rows, np.int64))
    return SkillPrompts(
        np.array(rows, np.int64)[order],
        Ragged.from_rows([ids[place] for place in order], np.int32),
        np.array(dropped, np.int32)[order],
    )


def broken_groups(trajectories: pa.Table) -> set[str]:
    """Groups in which an environment broke: nothing is learned from them, because their other members would be compared
    with too few (the rollout samples each once more)."""
    columns = (trajectories.column(name).to_pylist() for name in ("group_id", "outcome"))
    return {group_id for group_id, outcome in zip(*columns, strict=True) if outcome == "broken"}


def _spread(part: Ragged, rows: np.ndarray, count: int) -> pa.ListArray:
    """`part` as the rows at the increasing indices `rows` among `count`; the others are null."""
    lengths, missing = np.zeros(count, np.int64), np.ones(count, bool)
    lengths[rows], missing[rows] = part.lengths, False
    return Ragged.from_lengths(part.values, lengths).to_arrow(missing)


def _filled(values: np.ndarray, which: np.ndarray, new: np.ndarray) -> np.ndarray:
    values[which] = new
    return values


def _metrics(samples: Samples, routed: SkillPrompts, *others: SkillPrompts) -> dict[str, float]:
    old = samples.tokens("old_log_probs")
    gaps = np.abs(samples.tokens("rollout_log_probs").values - old.values)
    delta = samples.tokens("skill_log_probs").values - old.take(routed.rows).values
    dropped_before = samples.numbers("history_dropped")
    return {
        "rescore/engine_gap_mean": float(gaps.mean()) if gaps.size else 0.0,
        "rescore/engine_gap_max": float(gaps.max(initial=0.0)),
        "rescore/skill_delta_mean": float(delta.mean()) if delta.size else math.nan,
        "rescore/skill_delta_std": float(delta.std()) if delta.size else math.nan,
        "rescore/prompts_cut": sum(
            int((prompts.history_dropped > dropped_before[prompts.rows]).sum()) for prompts in (routed, *others)
        ),
        "tokens/rescore": sum(
            len(samples.tokens(f"{name}_log_probs").values) for name in ("old", "skill", "added", "placebo")
        ),
    }
