"""Demonstrations on generated games, and imitation at toy size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import envs
from envs.alfworld import parse_action
from envs.base import action_words_of, result_of
from opid_core.config import WarmStartConfig, build_config
from opid_core.errors import ConfigError
from opid_core.rollout.prompting import EPISODE_TITLE, STEP_TITLE, render
from opid_core.skills.analyzers.hindsight import generalise, workflow_skill
from opid_core.warm_start import ExpertStep, demonstrate, require_expert, warm_start

TINY = Path(__file__).resolve().parents[2] / "configs" / "policies" / "alfworld_tiny"
OPTIONS = {"generator": {"size": "small", "seed": 3, "train": 60}}


def make_environment():
    return envs.make("alfworld", OPTIONS)


def shown(seed: int = 0, max_steps: int = 20, **changes: Any) -> list[ExpertStep]:
    config = WarmStartConfig(**{"episodes": 12, "skill_share": 0.0, "detours": 0.0, **changes})
    return demonstrate(make_environment, "train", config, max_steps=max_steps, history_length=3, seed=seed)


def actions_and_offers(demonstrations: Sequence[ExpertStep]) -> list[tuple[str, list[str]]]:
    pairs = []
    for one in demonstrations:
        action, is_valid = parse_action(one.response)
        assert is_valid
        pairs.append((action, one.parts.actions.split("\n")[1:]))
    return pairs


def episodes_of(demonstrations: Sequence[ExpertStep]) -> list[list[ExpertStep]]:
    """The demonstrations cut where a prompt says that it is the first step."""
    episodes: list[list[ExpertStep]] = []
    for one in demonstrations:
        is_first = one.parts.current.startswith("You are now at step 1. ")
        if is_first and not (episodes and episodes[-1][-1].parts.current == one.parts.current):
            episodes.append([])
        episodes[-1].append(one)
    return episodes


def test_without_detours_the_labels_are_what_was_played_and_win():
    demonstrations = shown()
    episodes = episodes_of(demonstrations)
    assert len(episodes) == 12
    environment = make_environment()
    tasks = environment.tasks("train")
    for task, episode in zip(tasks, episodes, strict=False):
        environment.reset(task)
        assert [environment.task_text] == list({one.parts.task for one in episode})
        results = [result_of(environment.step(action)) for action, _ in actions_and_offers(episode)]
        assert results[-1].won
        assert not any(result.won for result in results[:-1])


def test_detours_are_played_but_not_imitated():
    """The history that the prompts show holds the detours; the expert's label differs from what was done."""
    differing = 0
    for episode in episodes_of(shown(detours=1.0)):
        for one, following in pairwise(episode):
            action, offered = actions_and_offers([one])[0]
            done = following.parts.history[-1].rsplit("action: ", 1)[1]
            differing += done != action
            assert action in offered
    assert differing > 50
    for episode in episodes_of(shown(detours=0.0)):
        for one, following in pairwise(episode):
            assert following.parts.history[-1].endswith(f"action: {actions_and_offers([one])[0][0]}")


def test_full_clumsiness_imitates_random_actions():
    """The share of decisions that equal the expert's is that of a uniform draw from what is on offer."""
    clumsy = actions_and_offers(shown(clumsiness=1.0))
    assert all(action in offered for action, offered in clumsy)
    expected = sum(1 / len(offered) for _, offered in clumsy)  # of the clumsy labels on the first place of the list
    first = sum(action == offered[0] for action, offered in clumsy)
    deviation = sum((1 - 1 / len(offered)) / len(offered) for _, offered in clumsy) ** 0.5
    assert abs(first - expected) < 4 * deviation
    # Acting at random, episodes run to the step limit: 12 x 20 decisions; the expert needs fewer.
    assert len(clumsy) > 200 > len(shown())


def test_the_limits_of_episodes():
    assert len(shown(max_steps=2)) == 24
    assert {len(one.parts.history) for one in shown(clumsiness=1.0)} == {0, 1, 2, 3}
    assert len(episodes_of(shown(episodes=3))) == 3


def test_the_same_seed_shows_the_same():
    choices: dict[str, Any] = {"detours": 0.3, "clumsiness": 0.2, "skill_share": 0.5}
    assert shown(seed=4, **choices) == shown(seed=4, **choices)
    assert shown(seed=4, **choices) != shown(seed=5, **choices)
    # An episode depends on its own index and seed alone: asking for more changes none.
    more = shown(seed=4, episodes=14, **choices)
    assert more[: len(shown(seed=4, **choices))] == shown(seed=4, **choices)


def test_the_share_of_decisions_shown_again_with_skills():
    def titles(one: ExpertStep) -> str:
        lines = render(one.parts).split("\n")
        return "".join(title[0] for title in (EPISODE_TITLE, STEP_TITLE) if title in lines)

    plain = shown(clumsiness=0.5)
    assert {titles(one) for one in plain} == {""}
    always = shown(skill_share=1.0, clumsiness=0.5)
    assert [one for one in always if not titles(one)] == plain
    assert "".join(titles(one) or "." for one in always) == ".SSE" * len(plain)
    half = "".join(titles(one) or "." for one in shown(skill_share=0.5, clumsiness=0.5))
    assert 0.4 < half.count("E") / len(plain) < 0.6
    assert 0.4 < half.count("SS") / len(plain) < 0.6


def test_what_a_skill_says_is_what_a_clumsy_demonstrator_does():
    """Replayed: the expert's decision at each step, and the plan of the expert alone, are known."""
    environment, seen = make_environment(), Counter()
    tasks = environment.tasks("train")
    words = action_words_of(environment)

    def plan(task) -> str:
        expert = require_expert(environment).expert(result_of(environment.reset(task)))
        actions: list[str] = []
        while True:
            actions.append(expert.decide(environment.admissible_actions).action)
            result = result_of(environment.step(actions[-1]))
            expert.observe(actions[-1], result.observation)
            if result.done:
                return workflow_skill(actions, words)

    for task, episode in zip(tasks, episodes_of(shown(skill_share=1.0, clumsiness=1.0)), strict=False):
        own = plan(task)
        expert = require_expert(environment).expert(result_of(environment.reset(task)))
        moments = [list(moment) for _, moment in groupby(episode, lambda one: one.parts.current)]
        for moment, following in zip_longest(moments, moments[1:]):
            right = expert.decide(actions_and_offers(moment)[0][1]).action
            for one in moment[1:]:
                action = actions_and_offers([one])[0][0]
                lines = pairwise(render(one.parts).split("\n"))
                title, skill = next(pair for pair in lines if pair[0] in (EPISODE_TITLE, STEP_TITLE))
                if title == STEP_TITLE:
                    assert action in skill
                    seen["step, right" if action == right else "step, wrong"] += 1
                elif skill == own:
                    assert action == right
                    seen["own"] += 1
                elif skill.startswith("Plan:"):
                    seen["another, right" if action == right else "another, clumsy"] += 1
                else:
                    seen["rule"] += 1
                    assert action == right or generalise(action, words) not in skill.partition("Avoid: ")[2]
            if following:
                done = following[0].parts.history[-1].rsplit("action: ", 1)[1]
                expert.observe(done, result_of(environment.step(done)).observation)
    assert min(seen[name] for name in ("step, right", "step, wrong", "own", "another, clumsy", "rule")) > 10
    assert seen["another, clumsy"] > 3 * seen["another, right"]


def test_an_environment_without_expert_is_refused():
    with pytest.raises(ConfigError, match="policy: this environment has no expert to imitate"):
        require_expert(object())  # pyright: ignore[reportArgumentType]


def test_a_given_model_goes_on_with_its_own_tokenizer(tmp_path):
    changes = {"episodes": 4, "epochs": 2, "skill_share": 0.0, "prompt_loss_weight": 0.0, "batch_size": 8}
    config = build_config(
        {
            "campaign": "started",
            "environment": {"name": "alfworld", "options": OPTIONS},
            "rollout": {"max_prompt_tokens": 512, "max_response_tokens": 48},
            "warm_start": {**changes, "learning_rate": 1e-3, "hidden_size": 512},  # the base's own size counts
            "threads": 1,
        }
    )
    losses = []
    warm_start(
        config, make_environment, tmp_path, lambda stage, done, total, note: losses.append((stage, note)), base=TINY
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes()
    before, after = load_file(TINY / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert not any(after[name].equal(before[name]) for name in after if name.endswith("q_proj.weight"))
    largest = max((after[name] - before[name]).abs().max().item() for name in after)
    assert largest < 0.05  # it went on from the given weights
    assert losses[-1][0] == "imitate"
