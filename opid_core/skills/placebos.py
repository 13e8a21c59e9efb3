"""Placebos: texts that stand where a skill stands and say nothing about the step (ALGORITHM, section 4).

Any skill in the prompt may change how a policy behaves. Whether a skill teaches by what it says is told only by holding
it against one that does not.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from envs.base import ActionWords, has_blank
from opid_core.learning.methods import Method, SkillMethod
from opid_core.samples import Samples
from opid_core.seeds import derive
from opid_core.skills.analyzers.hindsight import step_skill

FIXED = "Keep in mind that this is a task like many others and go on as you think is best here"
"""The constant text; it is repeated, or cut, to as many words as the skill has."""


def placebos(
    samples: Samples,
    skills: pa.Table,
    skill_ids: Sequence[str | None],
    method: Method,
    seed: int,
    words: ActionWords,
) -> list[str | None]:
    """The placebo of each sample's routed skill by the method's `placebo_episode` and `placebo_step`; None where no
    skill is routed, where the method has none for its kind, and where there is nothing to make one of: no other group
    has such a skill from a trajectory that ended alike, or nothing else without a blank was on offer. What says the
    same as the skill is no placebo of it.

    All steps that an episode skill is routed to have the same placebo. `seed` draws.
    """
    if not isinstance(method, SkillMethod) or not (method.placebo_episode or method.placebo_step):
        return [None] * len(samples)
    rule = {"episode": method.placebo_episode, "step": method.placebo_step}
    rows = {row["skill_id"]: row for row in skills.to_pylist()}
    group_of = dict(zip(samples.trajectory_ids, samples.group_ids, strict=True))
    alike: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for row in rows.values():
        alike[_kind(row)].append(row)

    @functools.cache  # all steps of an episode, and often several of a group, have the same skill
    def others(kind: tuple[str, bool], group_id: str, text: str) -> Sequence[str]:
        """The texts of the other groups' skills that say something else."""
        return [r["text"] for r in alike[kind] if group_of[r["trajectory_id"]] != group_id and r["text"] != text]

    offered = samples.texts("admissible_actions")
    chosen: list[str | None] = []
    for n, (skill_id, step) in enumerate(zip(skill_ids, samples.texts("step"), strict=True)):
        if skill_id is None:
            chosen.append(None)
            continue
        skill = rows[skill_id]
        name = rule[skill["kind"]]
        # the seed names the skill, so that the draw is the same whichever other samples there are
        rng = random.Random(derive(seed, "placebo", skill_id, step if skill["kind"] == "step" else -1))
        if name == "fixed":
            chosen.append(" ".join(itertools.islice(itertools.cycle(FIXED.split()), len(skill["text"].split()))))
        elif name == "random_action":
            named = [step_skill(action, words) for action in offered[n] if not has_blank(action)]
            chosen.append(_draw(rng, [text for text in named if text != skill["text"]]))
        elif name == "swapped":
            chosen.append(_draw(rng, others(_kind(skill), group_of[skill["trajectory_id"]], skill["text"])))
        else:
            chosen.append(None)
    return chosen


def _draw(rng: random.Random, texts: Sequence[str]) -> str | None:
    return rng.choice(texts) if texts else None


def _kind(skill: dict[str, Any]) -> tuple[str, bool]:
    """What a swapped skill must be like: of the same kind, and of a trajectory that ended alike."""
    return skill["kind"], skill["outcome"] == "success"
