"""Does a policy do what a skill says? `python -m benchmarks.reads_skills CONFIG POLICY`.

The policy plays the held-out tasks of the config without a skill, with the workflow of the expert's own play of the
task as episode skill, with that of the expert's play of another task, and with a step skill that names the expert's
next action at every step. Each row: success with its 95% interval, and against the plain row the paired difference
(tasks won with the skill alone, without it alone, p of the exact sign test); below, the own workflow against another
task's. `score` is the mean of
what episodes are worth (percent), where a world says it; `followed` the share of steps that did what the step skill
named. All rows share tasks and seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envs.base import Environment, Task, action_words_of, result_of
from opid_core.config import CampaignConfig, load_config
from opid_core.evaluation import sign_test, wilson_interval
from opid_core.rollout.engines.vllm import VllmEngine
from opid_core.rollout.episodes import EpisodeSettings, run_episodes
from opid_core.rollout.prompting import inject
from opid_core.skills.analyzers.hindsight import step_skill, workflow_skill
from opid_core.skills.analyzers.redaction import worded
from opid_core.warm_start import require_expert
from tasks.episodes import environment_maker, evaluation_settings
from tasks.evaluate import panel, panel_requests
from tasks.workers import load_tokenizer


@dataclass(frozen=True)
class Played:
    """Which tasks were won, what each episode is worth (empty where the world does not say), and the share of steps
    that followed a step skill (None for other skills)."""

    won: Sequence[bool]
    scores: Sequence[float]
    followed: float | None = None


class SkilledEnvironment:
    """An environment whose every prompt holds a step skill that names what the expert would do now."""

    def __init__(self, environment: Environment) -> None:
        self._environment, self._words = environment, action_words_of(environment)
        self.followed: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def reset(self, task: Task) -> str:
        observation = result_of(self._environment.reset(task))
        self._expert = require_expert(self._environment).expert(observation)
        self._named = self._expert.decide(self.admissible_actions).action
        return observation

    def step(self, action: str):
        self.followed.append(worded(action, self._words) == worded(self._named, self._words))
        result = result_of(self._environment.step(action))
        if not result.done:
            self._expert.observe(action, result.observation)
            self._named = self._expert.decide(self.admissible_actions).action
        return result

    def prompt_parts(self, *given: Any):
        return inject(self._environment.prompt_parts(*given), "step", step_skill(self._named, self._words))


def workflow_of(environment: Environment, task: Task, max_steps: int) -> str:
    """The workflow of the expert's own play of `task`."""
    expert, actions = require_expert(environment).expert(result_of(environment.reset(task))), []
    for _ in range(max_steps):
        actions.append(expert.decide(environment.admissible_actions).action)
        result = result_of(environment.step(actions[-1]))
        if result.done:
            break
        expert.observe(actions[-1], result.observation)
    return workflow_skill(actions, action_words_of(environment))


def played(config: CampaignConfig, folder: Path, tasks: int, temperature: float) -> dict[str, Played]:
    """What was played by kind of skill."""
    make, tokenizer = environment_maker(config), load_tokenizer(folder)
    rollout, rules = config.rollout, evaluation_settings(config, temperature)
    engine = VllmEngine(
        folder,
        config.engine,
        max_model_len=rollout.max_prompt_tokens + rollout.max_response_tokens,
        threads=config.threads,
        seed=config.seed,
    )
    requests = panel_requests(config, tasks, temperature)
    known = panel(config, tasks)
    plans = {task.task_id: workflow_of(make(), task, rules.max_steps) for task in known}
    following = dict(zip([task.task_id for task in known], [*known[1:], known[0]], strict=True))
    environments: list[SkilledEnvironment] = []

    def with_expert() -> Any:
        environments.append(SkilledEnvironment(make()))
        return environments[-1]

    def play(make_environment: Callable[[], Environment], skill_of: Callable[[Task], str] | None) -> Played:
        settings = EpisodeSettings(**{**vars(rules), "skill_of": skill_of})
        episodes = run_episodes(engine, tokenizer, make_environment, requests, settings)
        scores = [episode.score for episode in episodes if episode.score is not None]
        return Played([episode.outcome == "success" for episode in episodes], scores)

    results = {
        "none": play(make, None),
        "own workflow": play(make, lambda task: plans[task.task_id]),
        "another task's workflow": play(make, lambda task: plans[following[task.task_id].task_id]),
        "step skills of the expert": play(with_expert, None),
    }
    followed = [did for environment in environments for did in environment.followed]
    results["step skills of the expert"] = replace(
        results["step skills of the expert"], followed=sum(followed) / len(followed)
    )
    return results


def lines(results: Mapping[str, Played]) -> list[str]:
    """The table, in Markdown."""
    plain = results["none"].won
    rows = [
        "| skill | won | success (95%) | won with it alone, without it alone | p | score | followed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        won = one.won
        low, high = wilson_interval(sum(won), len(won))
        paired = sign_test(won, plain)
        against = f"{paired.first_more}, {paired.second_more} | {paired.p_value:.2g}" if name != "none" else " | "
        score = f"{100 * sum(one.scores) / len(one.scores):.1f}" if one.scores else ""
        share = "" if one.followed is None else f"{one.followed:.1%}"
        success = f"{sum(won) / len(won):.1%} ({low:.1%} to {high:.1%})"
        rows.append(f"| {name} | {sum(won)} of {len(won)} | {success} | {against} | {score} | {share} |")
    content = sign_test(results["own workflow"].won, results["another task's workflow"].won)
    return [
        *rows,
        "",
        f"Won with the own workflow alone {content.first_more}, with another task's alone {content.second_more}, "
        f"p = {content.p_value:.2g}: what a workflow's content does.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    print("\n".join(lines(played(config, options.policy, options.tasks, options.temperature))))


if __name__ == "__main__":
    main()
