"""Which skill a step is scored under (ALGORITHM, section 4)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from envs.base import ActionWords
from opid_core import schema
from opid_core.learning.methods import Method, SkillMethod
from opid_core.samples import Samples
from opid_core.seeds import derive
from opid_core.skills.placebos import placebos

SkillRows = dict[int | None, dict[str, Any]]
"""A trajectory's rows of the table `skills` by step; None: the episode's."""


def route(
    episode_skill: str | None,
    step_skills: Mapping[int, str],
    step: int,
    *,
    lambda_episode: float,
    lambda_step: float,
) -> tuple[str, str]:
    """(route, reason) of one step of a trajectory: `step`, `episode` or `none`, critical first.

    `episode_skill` is None or blank, and `step_skills` (by 0-based step) empty, where the trajectory has no skills. A
    weight of 0 turns its kind of skill off. Source: ALGORITHM, section 4.
    """
    has_step = bool(step_skills.get(step, "").strip())
    has_episode = bool((episode_skill or "").strip())
    if has_step and lambda_step > 0:
        return "step", "critical step"
    if has_episode and lambda_episode > 0:
        return "episode", "step skills are off" if has_step else "no step skill for this step"
    if not has_step and not has_episode:
        return "none", "no skill for this step" if step_skills else "no skills for this trajectory"
    off = " and ".join(kind for kind, has in (("episode", has_episode), ("step", has_step)) if has)
    return "none", f"{off} skills are off"


def route_table(samples: Samples, skills: pa.Table, method: Method, seed: int, words: ActionWords) -> pa.Table:
    """The `routes` table: one row a sample, in their order, with the skill row that is injected, and its placebo.

    A method that uses no skills routes nothing. `seed` draws the steps of `method.routing: random` and the placebos;
    `words` are the environment's. Source: ALGORITHM, section 4.
    """
    by_trajectory: dict[str, SkillRows] = {}
    for skill in skills.to_pylist():
        if skill["kind"] != "failed":  # a trajectory whose analysis failed has no skills
            by_trajectory.setdefault(skill["trajectory_id"], {})[skill["step"]] = skill
    routing = method.routing if isinstance(method, SkillMethod) else None
    if routing == "random":
        by_trajectory = _at_random_steps(by_trajectory, samples, seed)
    lambda_episode, lambda_step = False, False
    if isinstance(method, SkillMethod):
        lambda_episode, lambda_step = method.uses_kinds(samples.completed_iterations)
    columns: dict[str, list[Any]] = {name: [] for name in ("route", "skill_id", "added_skill_id", "reason")}
    for trajectory_id, step in zip(samples.trajectory_ids, samples.texts("step"), strict=True):
        taught = by_trajectory.get(trajectory_id, {})
        if not method.uses_skills:
            name, reason = "none", "the method uses no skills"
        else:
            episode = taught[None]["text"] if None in taught else None
            at_steps = {number: row["text"] for number, row in taught.items() if number is not None}
            name, reason = route(episode, at_steps, step, lambda_episode=lambda_episode, lambda_step=lambda_step)
        chosen = taught[step] if name == "step" else taught[None] if name == "episode" else None
        if routing == "random" and chosen and name == "step":
            reason = f"random step, its skill is step {chosen['step']}'s"
        also_episode = routing == "additive" and name == "step" and lambda_episode > 0
        both = also_episode and taught.get(None, {}).get("text")
        columns["route"].append(name)
        columns["skill_id"].append(chosen["skill_id"] if chosen else None)
        columns["added_skill_id"].append(taught[None]["skill_id"] if both else None)
        columns["reason"].append(f"{reason}, and the episode's" if both else reason)
    keys = {name: samples.table[name] for name in ("trajectory_id", "step")}
    placebo = placebos(samples, skills, columns["skill_id"], method, seed, words)
    return pa.table({**keys, **columns, "placebo": placebo}, schema=schema.ROUTES)


def _at_random_steps(by_trajectory: Mapping[str, SkillRows], samples: Samples, seed: int) -> dict[str, SkillRows]:
    """Each trajectory's skills with its step skills at as many of its steps, drawn at random without replacement."""
    rows, numbers = samples.by_trajectory(), samples.numbers("step")
    moved = {}
    for trajectory_id, taught in by_trajectory.items():
        of_steps = [taught[step] for step in sorted(step for step in taught if step is not None)]
        steps = numbers[rows[trajectory_id]].tolist()
        # the seed names the trajectory: its draw is the same whichever others there are
        drawn = random.Random(derive(seed, trajectory_id)).sample(steps, len(of_steps))
        of_episode = {None: taught[None]} if None in taught else {}
        moved[trajectory_id] = {**of_episode, **dict(zip(drawn, of_steps, strict=True))}
    return moved
