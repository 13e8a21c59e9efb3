"""Skills by rules, no LLM: what a trajectory shows when it is held against its siblings (ALGORITHM, section 3).

A success becomes a workflow of generalised steps, a failure a rule of what to avoid; step skills name actions by the
map of the group (`group_map`). Works on actions and states as text; all that it knows of an environment are its
`ActionWords`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from envs.base import ActionWords
from opid_core.config import AnalyzerConfig
from opid_core.samples import Samples
from opid_core.skills.analyzers.group_map import MappedStep, map_group
from opid_core.skills.analyzers.redaction import (
    carried_out,
    generalise,
    is_named,
    redacted_groups,
    sub_steps,
    verb_of,
    worded,
)
from opid_core.skills.replies import Analysis, clean_skill

TEMPLATES = {
    "workflow": "Plan: {steps}.",
    "missed": "Do not skip: {steps}.",
    "repeated": "Do not repeat: {steps}.",
    "wrong": "Avoid: {steps}.",
    "malformed": "Always answer in the form asked for, with one action.",
    "slow": "Do not waste steps.",
    "step": "Do now: {action}",
}
"""Every sentence that a skill is made of; fixed, because policies are warm-started on them."""

MAX_LISTED = 4
"""Most steps that one sentence of an avoidance rule lists: it stands in the prompt of every step of the episode."""


def workflow_steps(actions: Sequence[str], words: ActionWords) -> list[str]:
    """The generalised steps of a sequence of actions that worked; searching, repeats and empty actions left out."""
    steps: list[str] = []
    moves: list[str] = []
    for action in actions:
        verb = verb_of(action)
        if verb in words.passive_verbs or not action.strip():
            continue
        if verb in words.moving_verbs[:1]:  # of the moves before a deed only the last way there belongs to it
            moves = []
        moves.append(generalise(action, words))
        if verb not in words.moving_verbs:
            steps += moves
            moves = []
    steps += moves
    return [step for index, step in enumerate(steps) if index == 0 or step != steps[index - 1]]


def workflow_skill(actions: Sequence[str], words: ActionWords) -> str:
    """The episode skill of a success from its actions that worked ("" for none)."""
    steps = workflow_steps(actions, words)
    return clean_skill(TEMPLATES["workflow"].format(steps=", ".join(steps))) if steps else ""


def avoidance_skill(
    *, missed: Sequence[str] = (), repeated: Sequence[str] = (), wrong: Sequence[str] = (), malformed: bool = False
) -> str:
    """The episode skill of a failure from its generalised steps; at most four of each kind are named. `malformed`: some
    response broke the form asked for."""
    sentences = [
        TEMPLATES[kind].format(steps=", ".join(steps[:MAX_LISTED]))
        for kind, steps in (("missed", missed), ("repeated", repeated), ("wrong", wrong))
        if steps
    ]
    if malformed:
        sentences.insert(0, TEMPLATES["malformed"])
    return clean_skill(" ".join(sentences or [TEMPLATES["slow"]]))


def step_skill(action: str, words: ActionWords) -> str:
    """The step skill that names one action of the environment."""
    return clean_skill(TEMPLATES["step"].format(action=worded(action, words)))


def analyze(
    samples: Samples,
    config: AnalyzerConfig,
    words: ActionWords,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Analysis]:
    """Analyses of the trajectories that are `analyzed`, in the order of `samples`, which hold whole groups and have the
    columns `critical` and `analyzed`. `on_progress` gets (groups done, groups)."""
    groups = redacted_groups(samples, words, "critical", "analyzed")
    analyses: dict[str, Analysis] = {}
    for done, group in enumerate(groups, start=1):
        analyses.update((analysis.trajectory_id, analysis) for analysis in _analyze_group(group, config, words))
        on_progress(done, len(groups))
    return [analyses[name] for name in samples.by_trajectory() if name in analyses]


def _analyze_group(group: Sequence[Samples], config: AnalyzerConfig, words: ActionWords) -> list[Analysis]:
    """`group` as `redaction.redacted_groups` gives it."""
    successes = sorted((t for t in group if t.won[0]), key=lambda t: (len(t), t.trajectory_ids[0]))
    done_by_successes = [sub_steps(trajectory, words) for trajectory in successes]
    mapped = map_group(group, words)
    analyses = []
    for trajectory in group:
        if not trajectory.numbers("analyzed")[0]:
            continue
        name = trajectory.trajectory_ids[0]
        if trajectory.won[0]:
            worked = carried_out(trajectory)
            skill = workflow_skill(worked, words)
            summary = f"Succeeded in {len(trajectory)} steps: {', '.join(workflow_steps(worked, words))}."
        else:
            missed = missed_steps(sub_steps(trajectory, words), done_by_successes)
            # What was done too seldom, and without effect too often, is said once: a skill must not contradict itself.
            repeated = [step for step in _repeated(trajectory.texts("action"), words) if step not in missed]
            wrong = [step for step in _wrong(trajectory, done_by_successes, words) if step not in repeated]
            malformed = not trajectory.numbers("is_valid").all()
            skill = avoidance_skill(missed=missed, repeated=repeated, wrong=wrong, malformed=malformed)
            n_failed = int((~trajectory.numbers("acted")).sum())
            summary = f"Failed after {len(trajectory)} steps, {n_failed} of them without effect. {skill}"
        chosen = _choose_steps(mapped[name], trajectory.texts("critical"), config.max_step_skills) if skill else {}
        analyses.append(
            Analysis(
                trajectory_id=name,
                summary=clean_skill(summary),
                episode_skill=skill,
                step_skills={step: step_skill(one.action or "", words) for step, one in chosen.items()},
                reasons={step: one.reason for step, one in chosen.items()},
                analyzer="hindsight",
                error=None if skill else "no action of this success is known to have worked",
            )
        )
    return analyses


def missed_steps(done: Sequence[str], done_by_successes: Sequence[Sequence[str]]) -> list[str]:
    """The sub-steps that every success did and `done` lacks (or has too seldom), in the order of the first success."""
    if not done_by_successes:
        return []
    needed = Counter(done_by_successes[0])
    for of_sibling in done_by_successes[1:]:
        needed &= Counter(of_sibling)
    needed -= Counter(done)
    missed = []
    for step in reversed(done_by_successes[0]):  # of a step done too seldom, the last times are missed
        if needed[step] > 0:
            needed[step] -= 1
            missed.append(step)
    return missed[::-1]


def _repeated(actions: Sequence[str], words: ActionWords) -> list[str]:
    """Generalised actions done twice in a row, three times in all, or in a loop of two; most frequent first. Those that
    must not be named may have been different ones."""
    in_a_row = {a for a, b in itertools.pairwise(actions) if a == b}
    loops = {
        action
        for i in range(len(actions) - 3)
        if actions[i : i + 2] == actions[i + 2 : i + 4]
        for action in actions[i : i + 2]
    }
    counts = Counter(actions)
    repeated = [a for a, n in counts.most_common() if is_named(a, words) and (n >= 3 or a in in_a_row or a in loops)]
    return list(dict.fromkeys(generalise(action, words) for action in repeated))[:MAX_LISTED]


def _wrong(trajectory: Samples, done_by_successes: Sequence[Sequence[str]], words: ActionWords) -> list[str]:
    """Generalised actions without effect, then sub-steps, most frequent first; nothing that a sibling success did."""
    steps = zip(trajectory.texts("action"), trajectory.texts("acted"), strict=True)
    failed = Counter(generalise(action, words) for action, acted in steps if is_named(action, words) and not acted)
    done = Counter(sub_steps(trajectory, words)) if done_by_successes else Counter()
    right = {*itertools.chain.from_iterable(done_by_successes)}
    wrong = dict.fromkeys(step for counts in (failed, done) for step, _ in counts.most_common() if step not in right)
    return list(wrong)[:MAX_LISTED]


def _choose_steps(mapped: Sequence[MappedStep], critical: Sequence[bool], most: int) -> dict[int, MappedStep]:
    """The steps of a trajectory that get a skill, at most `most`: corrections (critical ones first) and confirmations
    in turn. Confirmations alone, or corrections alone, would make delta positive, or negative, whatever was done."""
    corrected = [step for step, one in enumerate(mapped) if one.kind == "other"]
    confirmed = [step for step, one in enumerate(mapped) if one.kind == "own"]
    corrected.sort(key=lambda step: not critical[step])
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(corrected, confirmed))
    chosen = list(itertools.islice((step for step in in_turn if step is not None), most))
    return {step: mapped[step] for step in sorted(chosen)}
