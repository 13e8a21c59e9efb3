"""Skills by rules, no LLM: what a trajectory shows when it is held against its siblings (ALGORITHM, section 3).

A success becomes a workflow of generalised steps, a failure a rule of what to avoid; step skills name an action at a
critical step. Works on actions and observations as text; the only words it knows of an environment are those below. No
skill tells an answer: the policy would learn to say it, not to find it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from envs.base import is_offered
from opid_core.config import AnalyzerConfig
from opid_core.skills.replies import Analysis, clean_skill, select_step_skills
from opid_core.trajectory import Step, Trajectory

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

FAILED_OBSERVATIONS = ("Nothing happens.",)
PASSIVE_VERBS = ("look", "inventory", "examine", "help")
MOVING_VERBS = ("go", "open", "close")
"""Moves between sub-steps: only those from the last `go` on belong to the sub-step that follows."""
CUT_BEFORE = {"take": " from ", "clean": " with ", "heat": " with ", "cool": " with ", "slice": " with "}
"""Where the generalised form of an action ends: where and with what it was done is seen in the steps around it."""

SEARCH, ANSWER = "search", "answer"
"""Tags that an action may stand in, and so say what kind of action it is."""
_TAGGED = re.compile(rf"<({SEARCH}|{ANSWER})>(.*)</\1>", re.DOTALL)

MAX_LISTED = 4
"""Most steps that one sentence of an avoidance rule lists."""


def worded(action: str) -> str:
    """The action in words: `<search>Tavi</search>` -> "search: Tavi"; an answer goes unsaid: `<answer>Tavi</answer>` ->
    "answer". An action without tags stays as it is."""
    tagged = _TAGGED.fullmatch(action)
    if not tagged:
        return action
    if f"<{ANSWER}>" in action:
        return ANSWER
    tag, argument = tagged.groups()
    return f"{tag}: {argument}" if argument else tag


def generalise(action: str) -> str:
    """The action without its entity numbers and its obvious instruments: "take apple 1 from desk 2" -> "take apple"."""
    if "[" in action or _TAGGED.fullmatch(action):  # with an argument, whose numbers mean something
        return worded(action)
    kept = re.sub(r"(?<=[a-z]) \d{1,3}(?= |$)", "", action)
    return kept.split(CUT_BEFORE.get(_verb(action), "\0"))[0]


def workflow_steps(actions: Sequence[str]) -> list[str]:
    """The generalised steps of a sequence of actions that worked, searching and repeats left out."""
    steps: list[str] = []
    moves: list[str] = []
    for action in actions:
        verb = _verb(action)
        if verb in PASSIVE_VERBS:
            continue
        if verb == MOVING_VERBS[0]:
            moves = []
        moves.append(generalise(action))
        if verb not in MOVING_VERBS:
            steps += moves
            moves = []
    steps += moves
    return [step for index, step in enumerate(steps) if index == 0 or step != steps[index - 1]]


def workflow_skill(actions: Sequence[str]) -> str:
    """The episode skill of a success from its actions that worked ("" for none)."""
    steps = workflow_steps(actions)
    return clean_skill(TEMPLATES["workflow"].format(steps=", ".join(steps))) if steps else ""


def avoidance_skill(
    *, missed: Sequence[str] = (), repeated: Sequence[str] = (), wrong: Sequence[str] = (), malformed: bool = False
) -> str:
    """The episode skill of a failure from its generalised steps; at most four of each kind are named. `malformed`: some
    response held no action."""
    sentences = [
        TEMPLATES[kind].format(steps=", ".join(steps[:MAX_LISTED]))
        for kind, steps in (("missed", missed), ("repeated", repeated), ("wrong", wrong))
        if steps
    ]
    if malformed:
        sentences.insert(0, TEMPLATES["malformed"])
    return clean_skill(" ".join(sentences or [TEMPLATES["slow"]]))


def step_skill(action: str) -> str:
    """The step skill that names one action of the environment."""
    return clean_skill(TEMPLATES["step"].format(action=worded(action)))


def analyze(
    group: Sequence[Trajectory], config: AnalyzerConfig, critical: Mapping[str, Sequence[int]]
) -> list[Analysis]:
    """Analyses of a group's trajectories, in order; none for broken or empty ones, nor, under `failed_only`,
    for successes.

    `critical` maps a trajectory id to its critical steps, as the statistics selector found them.
    """
    group = [_without_malformed(trajectory) for trajectory in _without_answers(group)]
    successes = sorted((t for t in group if t.won and t.steps), key=lambda t: (len(t.steps), t.trajectory_id))
    analyses = []
    for trajectory in group:
        if trajectory.outcome == "broken" or not trajectory.steps or (config.failed_only and trajectory.won):
            continue
        at_critical = sorted(critical.get(trajectory.trajectory_id, ()))
        if trajectory.won:
            worked = _worked(trajectory)
            skill = workflow_skill(worked)
            summary = f"Succeeded in {len(trajectory.steps)} steps: {', '.join(workflow_steps(worked))}."
            step_skills = _confirmed_steps(trajectory, at_critical) if skill else {}
        else:
            missed, repeated, wrong = missed_steps(trajectory, successes), _repeated(trajectory), []
            wrong = [step for step in _wrong(trajectory, successes) if step not in repeated]
            malformed = any(_malformed(step) for step in trajectory.steps)
            skill = avoidance_skill(missed=missed, repeated=repeated, wrong=wrong, malformed=malformed)
            n_failed = sum(_failures(trajectory))
            summary = f"Failed after {len(trajectory.steps)} steps, {n_failed} of them without effect. {skill}"
            step_skills = _corrected_steps(trajectory, successes, at_critical)
        analyses.append(
            Analysis(
                trajectory_id=trajectory.trajectory_id,
                summary=clean_skill(summary),
                episode_skill=skill,
                step_skills=select_step_skills(step_skills, range(len(trajectory.steps)), config.max_step_skills),
                analyzer="hindsight",
                error=None if skill else "no action of this success is known to have worked",
            )
        )
    return analyses


def missed_steps(trajectory: Trajectory, successes: Sequence[Trajectory]) -> list[str]:
    """Generalised sub-steps that every sibling success did and this trajectory did not (often enough), in the order
    of the first success."""
    if not successes:
        return []
    needed = Counter(_core_steps(successes[0]))
    for sibling in successes[1:]:
        needed &= Counter(_core_steps(sibling))
    needed -= Counter(_core_steps(trajectory))
    missed = []
    for step in reversed(_core_steps(successes[0])):  # of a step done too seldom, the last times are missed
        if needed[step] > 0:
            needed[step] -= 1
            missed.append(step)
    return missed[::-1]


def _without_answers(group: Sequence[Trajectory]) -> list[Trajectory]:
    """The group without what its answers say, nor its queries that name the answer of a success (a question may)."""
    right = {
        words
        for trajectory in group
        if trajectory.won
        for step in trajectory.steps
        for answer in re.findall(f"<{ANSWER}>(.*?)</{ANSWER}>", step.action, re.DOTALL)
        if (words := _words(answer)) not in _words(trajectory.task_text)
    }

    def without(step: Step) -> Step:
        tagged = _TAGGED.fullmatch(step.action)
        if not tagged or step.action in step.admissible_actions:
            return step
        if f"<{ANSWER}>" in step.action:
            return replace(step, action=f"<{ANSWER}></{ANSWER}>")
        named = any(words in _words(tagged[2]) for words in right)
        return replace(step, action=f"<{tagged[1]}></{tagged[1]}>") if named else step

    return [replace(trajectory, steps=tuple(without(step) for step in trajectory.steps)) for trajectory in group]


def _without_malformed(trajectory: Trajectory) -> Trajectory:
    """The trajectory without the text that parsing leaves of a response that holds no action: no skill should name
    it."""
    steps = (replace(step, action="") if _malformed(step) else step for step in trajectory.steps)
    return replace(trajectory, steps=tuple(steps))


def _malformed(step: Step) -> bool:
    return not step.is_valid and not is_offered(step.action, step.admissible_actions)


def _words(text: str) -> str:
    """The words of a text between spaces, as answers are compared: lower case, no punctuation, no articles."""
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return " ".join(["", *(word for word in words if word not in ("a", "an", "the")), ""])


def _repeated(trajectory: Trajectory) -> list[str]:
    """Generalised actions done twice in a row, three times in all, or in a loop of two; most frequent first."""
    actions = [step.action for step in trajectory.steps]
    in_a_row = {a for a, b in itertools.pairwise(actions) if a == b}
    loops = {
        action
        for i in range(len(actions) - 3)
        if actions[i : i + 2] == actions[i + 2 : i + 4]
        for action in actions[i : i + 2]
    }
    counts = Counter(actions)
    found = [a for a, n in counts.most_common() if a and (n >= 3 or a in in_a_row or a in loops)]
    return list(dict.fromkeys(generalise(action) for action in found))[:MAX_LISTED]


def _wrong(trajectory: Trajectory, successes: Sequence[Trajectory]) -> list[str]:
    """Generalised actions without effect, then sub-steps, most frequent first; nothing that a sibling success did."""
    failed = Counter(
        generalise(s.action) for s, bad in zip(trajectory.steps, _failures(trajectory), strict=True) if bad and s.action
    )
    done = Counter(_core_steps(trajectory)) if successes else Counter()
    right = {step for sibling in successes for step in _core_steps(sibling)}
    wrong = dict.fromkeys(step for counts in (failed, done) for step, _ in counts.most_common() if step not in right)
    return list(wrong)[:MAX_LISTED]


def _confirmed_steps(trajectory: Trajectory, at_critical: Sequence[int]) -> dict[int, str]:
    failures = _failures(trajectory)
    return {
        step.step: step_skill(step.action)
        for step, failed in zip(trajectory.steps, failures, strict=True)
        if step.step in at_critical and not failed
    }


def _corrected_steps(
    trajectory: Trajectory, successes: Sequence[Trajectory], at_critical: Sequence[int]
) -> dict[int, str]:
    """What a sibling success did in the same state, where this failure did what none of them did: at the first such
    step (the divergence), then at the critical ones."""
    best: dict[tuple[str, tuple[str, ...]], str] = {}
    every: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for sibling in successes:  # shortest first; of several visits of a state the last one led on
        last = {_state(s): s.action for s, bad in zip(sibling.steps, _failures(sibling), strict=True) if not bad}
        for state, action in last.items():
            best.setdefault(state, action)
            every.setdefault(state, set()).add(action)
    differing = {s.step: s for s in trajectory.steps if _state(s) in best and s.action not in every[_state(s)]}
    first = list(differing)[:1]
    chosen = dict.fromkeys([*first, *(step for step in at_critical if step in differing)])
    return {step: step_skill(best[_state(differing[step])]) for step in chosen}


def _state(step: Step) -> tuple[str, tuple[str, ...]]:
    return step.observation, tuple(sorted(step.admissible_actions))


def _failures(trajectory: Trajectory) -> list[bool]:
    """Of each step whether its action had no effect: malformed, not on offer, or refused by the world."""
    after = [*(step.observation for step in trajectory.steps[1:]), ""]
    return [
        not step.is_valid
        or (bool(step.admissible_actions) and not is_offered(step.action, step.admissible_actions))
        or observation.strip() in FAILED_OBSERVATIONS
        for step, observation in zip(trajectory.steps, after, strict=True)
    ]


def _worked(trajectory: Trajectory) -> list[str]:
    return [s.action for s, failed in zip(trajectory.steps, _failures(trajectory), strict=True) if not failed]


def _core_steps(trajectory: Trajectory) -> list[str]:
    """Generalised actions that worked, without moves and looks."""
    idle = (*PASSIVE_VERBS, *MOVING_VERBS)
    return [generalise(action) for action in _worked(trajectory) if _verb(action) not in idle]


def _verb(action: str) -> str:
    return action.split(" ", 1)[0]
