"""What a skill's signal is worth, without an expert: whether delta orders what was done in one state by where it led.

In a state of a group's map siblings did different things, after which fewer or more steps were left. A signal that
knows better raises what led nearer above what did not. Held against the same number of the skills' placebos this tells
whether skills teach by what they say.
"""

from __future__ import annotations

import bisect
import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from envs.base import ActionWords
from opid_core.evaluation import Estimate, mean_interval, share_interval, skill_kinds
from opid_core.samples import Samples
from opid_core.skills.analyzers.group_map import map_group
from opid_core.skills.analyzers.redaction import redacted_groups

Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special ones left out."""


@dataclass(frozen=True)
class Outcomes:
    """Where the steps of samples led, each [samples]; only what is `known` may be compared."""

    group: Int[np.ndarray, " samples"]
    state: Int[np.ndarray, " samples"]
    """Numbers of groups, and of the states of all groups."""
    left_after: Float[np.ndarray, " samples"]
    """Steps to success after the step, infinite where nobody won from there."""
    known: Bool[np.ndarray, " samples"]
    """Whether somebody won from the step's state, and it is known where the step led."""


def outcomes(samples: Samples, words: ActionWords) -> Outcomes:
    """Where the steps of `samples` led by the maps of their groups, which must be whole."""
    rows = samples.by_trajectory()
    group, state = np.zeros((2, len(samples)), np.int64)
    left_after, known = np.full(len(samples), math.inf), np.zeros(len(samples), bool)
    states = 0
    for number, group_samples in enumerate(redacted_groups(samples, words)):
        mapped = map_group(group_samples, words)
        for name, steps in mapped.items():
            for row, one in zip(rows[name], steps, strict=True):
                group[row], state[row] = number, states + one.state
                left_after[row] = math.inf if one.left_after is None else one.left_after
                known[row] = one.is_known and one.left is not None
        states += 1 + max(one.state for steps in mapped.values() for one in steps)
    return Outcomes(group, state, left_after, known)


def ordered_pairs(
    delta: Float[np.ndarray, " samples"], led: Outcomes, which: Bool[np.ndarray, " samples"]
) -> dict[int, tuple[float, int]]:
    """By group how many pairs of `which` steps in one state delta orders by where they led (ties count half), of how
    many that led nearer and less near."""
    in_state: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(which & led.known):
        in_state[int(led.state[row])].append(int(row))
    by_group: dict[int, tuple[float, int]] = {}
    for rows in in_state.values():
        nearer = led.left_after[rows][:, None] < led.left_after[rows]
        if not nearer.any():
            continue
        difference = delta[rows][:, None] - delta[rows]
        right = float(((difference > 0) + 0.5 * (difference == 0))[nearer].sum())
        before = by_group.get(int(led.group[rows[0]]), (0.0, 0))
        by_group[int(led.group[rows[0]])] = before[0] + right, before[1] + int(nearer.sum())
    return by_group


def order(pairs: dict[int, tuple[float, int]]) -> Estimate:
    """The share of pairs that are ordered rightly (the area under the ROC curve: 0.5 is no signal), with its 95%
    interval over groups. nan without pairs; no interval from one group."""
    return share_interval([right for right, _ in pairs.values()], [n for _, n in pairs.values()])


def order_above(pairs: dict[int, tuple[float, int]], placebo: dict[int, tuple[float, int]]) -> Estimate:
    """How much larger that share is than the placebo's on the same pairs, with its 95% interval over groups."""
    differences = [right - placebo[group][0] for group, (right, _) in pairs.items()]
    return mean_interval(differences, [n for _, n in pairs.values()])


def action_tokens(samples: Samples, rows: Sequence[int], decode: Decode) -> Iterator[slice]:
    """Of each of the samples at `rows` which of its response tokens hold its action; none where the response does not
    hold it as it was read."""
    texts, actions = samples.texts("response_text"), samples.texts("action")
    for row in rows:
        # Where the text itself has it, whatever its case: lower case may be longer ("İ").
        matches = [*re.finditer(re.escape(actions[row]), texts[row], re.IGNORECASE)] if actions[row] else []
        if not matches:
            yield slice(0, 0)
            continue
        ids = samples.response_ids[row].tolist()
        # Both ends lie close together: most of the beginnings that are tried for one were decoded for the other.
        characters = functools.cache(lambda count: len(decode(ids[:count])))  # noqa: B023 - used up before the next row
        begin, end = (_tokens_of(n, len(ids), characters) for n in (matches[-1].start() + 1, matches[-1].end()))
        yield slice(begin - 1, end)


def signal_metrics(samples: Samples, skills: pa.Table, words: ActionWords, decode: Decode) -> dict[str, float]:
    """The metrics `signal/...` of samples with the columns of `routes` and `scores`: for each route, and for step
    skills that name what the step did (`step_own`) and others (`step_other`), as far as there are any.

    `order` with `order_low` and `order_high`; the same of the placebo (`placebo_order`) and their difference
    (`above_placebo`), on the steps that have one; `pairs`; `delta_action` and `delta_rest`: mean |delta| in nats on the
    tokens of the action and on all others; `advantage`: the share in the absolute advantages of all parts.
    """
    scored = samples.has("skill_log_probs")
    if not scored.any():
        return {}
    led = outcomes(samples, words)
    deltas = {name: _delta(samples, f"{name}_log_probs") for name in ("skill", "placebo")}
    has_placebo = samples.has("placebo_log_probs") & scored
    kind_of = skill_kinds(skills)
    kinds = np.array([kind_of.get(skill_id, "") for skill_id in samples.texts("skill_id")])
    route = np.array(samples.texts("route"))
    parts = {"episode": route == "episode", "step": route == "step"}
    parts |= {f"step_{kind}": parts["step"] & (kinds == kind) for kind in ("own", "other")}
    action, skill_sizes = (
        _magnitudes(samples, np.flatnonzero(scored), decode),
        np.abs(samples.tokens("skill_advantages").values),
    )
    # Of each part by itself, as in `advantage_share`: summed they would cancel.
    others = sum(
        np.abs(samples.numbers(f"{part}_advantage")) @ samples.response_ids.lengths for part in ("outcome", "step")
    )
    whole = others + skill_sizes.sum()
    metrics: dict[str, float] = {}
    for name, part in parts.items():
        of_part = part & scored
        if not of_part.any():
            continue
        estimates = {"order": order(ordered_pairs(deltas["skill"], led, of_part))}
        if (both := of_part & has_placebo).any():
            right, placebo = (ordered_pairs(deltas[key], led, both) for key in ("skill", "placebo"))
            estimates |= {"placebo_order": order(placebo), "above_placebo": order_above(right, placebo)}
        for what, estimate in estimates.items():
            ends = {what: estimate.mean, f"{what}_low": estimate.low, f"{what}_high": estimate.high}
            metrics |= {f"signal/{name}/{key}": value for key, value in ends.items()}
        metrics[f"signal/{name}/pairs"] = sum(n for _, n in ordered_pairs(deltas["skill"], led, of_part).values())
        for column, what in enumerate(("delta_action", "delta_rest")):
            total, tokens = action[of_part, column].sum(axis=0)
            metrics[f"signal/{name}/{what}"] = float(total / tokens) if tokens else math.nan
        of_skill = skill_sizes[samples.per_token(of_part)].sum()
        metrics[f"signal/{name}/advantage"] = float(of_skill / whole) if whole else 0.0
    return metrics


def _delta(samples: Samples, name: str) -> Float[np.ndarray, " samples"]:
    """The log-prob of each response in the column `name` less the old policy's, in nats; 0 where there is none."""
    has = samples.has(name)
    tokens = np.where(samples.per_token(has), samples.on_tokens(name) - samples.on_tokens("old_log_probs"), 0.0)
    owner = np.repeat(np.arange(len(samples)), samples.response_ids.lengths)
    return np.bincount(owner, tokens.astype(np.float64), len(samples))


def _magnitudes(samples: Samples, rows: np.ndarray, decode: Decode) -> Float[np.ndarray, "samples parts=2 sums=2"]:
    """Of the samples at `rows` the sum of |delta| and the number of tokens: of the action's tokens, of all others."""
    skill = samples.tokens("skill_log_probs").take(rows)
    sizes = np.abs(skill.values.astype(np.float64) - samples.tokens("old_log_probs").take(rows).values)
    is_action = np.zeros(len(sizes), bool)
    for begin, tokens in zip(skill.offsets, action_tokens(samples, rows.tolist(), decode), strict=False):
        is_action[begin + tokens.start : begin + tokens.stop] = True
    owner = np.repeat(np.arange(len(rows)), skill.lengths)
    sums = np.zeros((len(samples), 2, 2))
    for part, mask in enumerate((is_action, ~is_action)):
        counts = np.bincount(owner[mask], minlength=len(rows))
        filled = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]]).astype(np.int64)
        if len(filled):
            sums[rows[filled], part, 0] = np.add.reduceat(sizes[mask], starts)
        sums[rows, part, 1] = counts
    return sums


def _tokens_of(wanted: int, tokens: int, characters: Callable[[int], int]) -> int:
    """The fewest of `tokens` from the front, one or more, that have `wanted` characters."""
    counts = range(1, tokens)  # no token has no character, and all have enough
    return 1 + bisect.bisect_left(counts, wanted, key=characters)
