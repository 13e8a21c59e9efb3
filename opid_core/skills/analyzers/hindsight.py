"""Skills by rules, no LLM: what a trajectory shows when it is held against its siblings (ALGORITHM, section 3).

A success becomes a workflow of generalised steps, a failure a rule of what to avoid; step skills name an action at a
critical step. Works on actions and observations as text; all that it knows of an environment are its `ActionWords`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from envs.base import ActionWords, is_offered
from opid_core.config import AnalyzerConfig
from opid_core.samples import Samples
from opid_core.skills.replies import Analysis, clean_skill, select_step_skills

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

READ = (
    *("group_id", "trajectory_id", "task_text", "outcome", "step", "observation", "admissible_actions", "action"),
    *("is_valid", "critical", "analyzed"),
)
"""Columns that the rules read: taking a trajectory's rows copies no others, of which those of tokens are long."""

MAX_LISTED = 4
"""Most steps that one sentence of an avoidance rule lists: it stands in the prompt of every step of the episode."""


def worded(action: str, words: ActionWords) -> str:
    """The action in words: `<search>Tavi</search>` -> "search: Tavi"; an answer goes unsaid: `<answer>Tavi</answer>` ->
    "answer". An action without tags stays as it is."""
    tagged = _tagged(action, words)
    if not tagged:
        return action
    if words.answer_tag and f"<{words.answer_tag}>" in action:
        return words.answer_tag
    tag, argument = tagged
    return f"{tag}: {argument}" if argument else tag


def generalise(action: str, words: ActionWords) -> str:
    """The action without its entity numbers and its obvious instruments: "take apple 1 from desk 2" -> "take apple"."""
    if "[" in action or _tagged(action, words):  # with an argument, whose numbers mean something
        return worded(action, words)
    kept = re.sub(r"(?<=[a-z]) \d{1,3}(?= |$)", "", action)  # longer numbers are years and prices, not entities
    return kept.split(words.cut_before.get(_verb(action), "\0"))[0]


def workflow_steps(actions: Sequence[str], words: ActionWords) -> list[str]:
    """The generalised steps of a sequence of actions that worked, searching and repeats left out."""
    steps: list[str] = []
    moves: list[str] = []
    for action in actions:
        verb = _verb(action)
        if verb in words.passive_verbs:
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
    response held no action."""
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
    read = Samples(samples.table.select(list(READ)))
    trajectories = {name: read.select(rows) for name, rows in read.by_trajectory().items()}
    groups: dict[str, list[Samples]] = {}
    for trajectory in trajectories.values():
        groups.setdefault(trajectory.group_ids[0], []).append(trajectory)
    analyses: dict[str, Analysis] = {}
    for done, group in enumerate(groups.values(), start=1):
        analyses.update((analysis.trajectory_id, analysis) for analysis in _analyze_group(group, config, words))
        on_progress(done, len(groups))
    return [analyses[name] for name in trajectories if name in analyses]


def _analyze_group(group: Sequence[Samples], config: AnalyzerConfig, words: ActionWords) -> list[Analysis]:
    answers = _right_answers(group, words)
    group = [_as_told(trajectory, answers, words) for trajectory in group]
    successes = sorted((t for t in group if t.won[0]), key=lambda t: (len(t), t.trajectory_ids[0]))
    done_by_successes = [_sub_steps(trajectory, words) for trajectory in successes]
    analyses = []
    for trajectory in group:
        if not trajectory.numbers("analyzed")[0]:
            continue
        if trajectory.won[0]:
            worked = _with_effect(trajectory)
            skill = workflow_skill(worked, words)
            summary = f"Succeeded in {len(trajectory)} steps: {', '.join(workflow_steps(worked, words))}."
            step_skills = _confirmed_steps(trajectory, words) if skill else {}
        else:
            missed = missed_steps(_sub_steps(trajectory, words), done_by_successes)
            repeated = _repeated(trajectory.texts("action"), words)
            wrong = [step for step in _wrong(trajectory, done_by_successes, words) if step not in repeated]
            malformed = bool(trajectory.numbers("malformed").any())
            skill = avoidance_skill(missed=missed, repeated=repeated, wrong=wrong, malformed=malformed)
            n_failed = int((~trajectory.numbers("has_effect")).sum())
            summary = f"Failed after {len(trajectory)} steps, {n_failed} of them without effect. {skill}"
            step_skills = _corrected_steps(trajectory, successes, words)
        analyses.append(
            Analysis(
                trajectory_id=trajectory.trajectory_ids[0],
                summary=clean_skill(summary),
                episode_skill=skill,
                step_skills=select_step_skills(step_skills, range(len(trajectory)), config.max_step_skills),
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


def _right_answers(group: Sequence[Samples], words: ActionWords) -> set[str]:
    """The words of the answers that won, those that the task itself names aside."""
    if words.answer_tag is None:
        return set()
    block = re.compile(f"<{words.answer_tag}>(.*?)</{words.answer_tag}>", re.DOTALL)
    answers = {
        (_compared(answer), _compared(trajectory.texts("task_text")[0]))
        for trajectory in group
        if trajectory.won[0]
        for action in trajectory.texts("action")
        for answer in block.findall(action)
    }
    return {answer for answer, task in answers if answer not in task}


def _as_told(trajectory: Samples, right_answers: Collection[str], words: ActionWords) -> Samples:
    """The trajectory with each `action` as a skill may tell it: without what its answers say, without queries that name
    the answer of a success, empty where the response held no action (`malformed`); and whether it `has_effect`: was
    well-formed, on offer, and not refused by the world."""
    offered, is_valid = trajectory.texts("admissible_actions"), trajectory.texts("is_valid")
    after = [*trajectory.texts("observation")[1:], ""]
    actions, malformed, has_effect = [], [], []
    for step, action in enumerate(trajectory.texts("action")):
        told = action if action in offered[step] else _without_answer(action, right_answers, words)
        is_on_offer = is_offered(told, offered[step])
        malformed.append(not is_valid[step] and not is_on_offer)
        actions.append("" if malformed[-1] else told)
        refused = bool(offered[step]) and not is_on_offer
        has_effect.append(is_valid[step] and not refused and after[step].strip() not in words.failed_observations)
    return trajectory.with_columns(action=actions, malformed=malformed, has_effect=has_effect)


def _without_answer(action: str, right_answers: Collection[str], words: ActionWords) -> str:
    tagged = _tagged(action, words)
    if not tagged:
        return action
    tag, argument = tagged
    if words.answer_tag and f"<{words.answer_tag}>" in action:
        return f"<{words.answer_tag}></{words.answer_tag}>"
    is_named = any(answer in _compared(argument) for answer in right_answers)
    return f"<{tag}></{tag}>" if is_named else action


def _compared(text: str) -> str:
    """The words of a text between spaces, as answers are compared: lower case, no punctuation, no articles."""
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return " ".join(["", *(word for word in words if word not in ("a", "an", "the")), ""])


def _repeated(actions: Sequence[str], words: ActionWords) -> list[str]:
    """Generalised actions done twice in a row, three times in all, or in a loop of two; most frequent first."""
    in_a_row = {a for a, b in itertools.pairwise(actions) if a == b}
    loops = {
        action
        for i in range(len(actions) - 3)
        if actions[i : i + 2] == actions[i + 2 : i + 4]
        for action in actions[i : i + 2]
    }
    counts = Counter(actions)
    repeated = [a for a, n in counts.most_common() if a and (n >= 3 or a in in_a_row or a in loops)]
    return list(dict.fromkeys(generalise(action, words) for action in repeated))[:MAX_LISTED]


def _wrong(trajectory: Samples, done_by_successes: Sequence[Sequence[str]], words: ActionWords) -> list[str]:
    """Generalised actions without effect, then sub-steps, most frequent first; nothing that a sibling success did."""
    steps = zip(trajectory.texts("action"), trajectory.numbers("has_effect"), strict=True)
    failed = Counter(generalise(action, words) for action, has_effect in steps if action and not has_effect)
    done = Counter(_sub_steps(trajectory, words)) if done_by_successes else Counter()
    right = {*itertools.chain.from_iterable(done_by_successes)}
    wrong = dict.fromkeys(step for counts in (failed, done) for step, _ in counts.most_common() if step not in right)
    return list(wrong)[:MAX_LISTED]


def _confirmed_steps(trajectory: Samples, words: ActionWords) -> dict[int, str]:
    columns = (trajectory.texts(name) for name in ("step", "action", "critical", "has_effect"))
    return {
        step: step_skill(action, words)
        for step, action, critical, has_effect in zip(*columns, strict=True)
        if critical and has_effect
    }


def _corrected_steps(trajectory: Samples, successes: Sequence[Samples], words: ActionWords) -> dict[int, str]:
    """What a sibling success did in the same state, where this failure did what none of them did: at the first such
    step (the divergence), then at the critical ones."""
    best: dict[tuple[str, tuple[str, ...]], str] = {}
    every: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for sibling in successes:  # shortest first; of several visits of a state the last one led on
        columns = (_states(sibling), sibling.texts("action"), sibling.texts("has_effect"))
        last = {state: action for state, action, has_effect in zip(*columns, strict=True) if has_effect}
        for state, action in last.items():
            best.setdefault(state, action)
            every.setdefault(state, set()).add(action)
    columns = (trajectory.texts("step"), _states(trajectory), trajectory.texts("action"))
    differing = {
        step: best[state]
        for step, state, action in zip(*columns, strict=True)
        if state in best and action not in every[state]
    }
    critical = itertools.compress(trajectory.texts("step"), trajectory.texts("critical"))
    chosen = dict.fromkeys([*list(differing)[:1], *(step for step in critical if step in differing)])
    return {step: step_skill(differing[step], words) for step in chosen}


def _states(trajectory: Samples) -> list[tuple[str, tuple[str, ...]]]:
    """What decides a step's state: the observation and the actions on offer, in any order."""
    columns = (trajectory.texts("observation"), trajectory.texts("admissible_actions"))
    return [(observation, tuple(sorted(offered))) for observation, offered in zip(*columns, strict=True)]


def _with_effect(trajectory: Samples) -> list[str]:
    return [*itertools.compress(trajectory.texts("action"), trajectory.texts("has_effect"))]


def _sub_steps(trajectory: Samples, words: ActionWords) -> list[str]:
    """Generalised actions that had an effect, without moves and looks."""
    idle = (*words.passive_verbs, *words.moving_verbs)
    return [generalise(action, words) for action in _with_effect(trajectory) if _verb(action) not in idle]


def _tagged(action: str, words: ActionWords) -> tuple[str, str] | None:
    """The tag around the whole action, and the text in it."""
    if not words.tags:
        return None
    block = re.fullmatch(rf"<({'|'.join(words.tags)})>(.*)</\1>", action, re.DOTALL)
    return (block[1], block[2]) if block else None


def _verb(action: str) -> str:
    return action.split(" ", 1)[0]
