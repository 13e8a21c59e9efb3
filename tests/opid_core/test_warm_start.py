"""Demonstrations on generated games, and imitation at toy size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import pytest
import torch

import envs
from envs.alfworld import parse_action
from envs.base import action_words_of, result_of
from opid_core.config import WarmStartConfig
from opid_core.errors import ConfigError
from opid_core.policies import make_tiny_policy
from opid_core.rollout.prompting import EPISODE_TITLE, STEP_TITLE, render
from opid_core.skills.analyzers.hindsight import generalise, workflow_skill
from opid_core.warm_start import Demonstration, ExpertStep, demonstrate, imitate, require_expert

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
        if one.parts.current.startswith("You are now at step 1. "):
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


def test_the_share_of_prompts_with_a_skill():
    def titles(one: ExpertStep) -> int:
        text = render(one.parts)
        return text.count(EPISODE_TITLE) + text.count(STEP_TITLE)

    assert {titles(one) for one in shown(skill_share=0.0)} == {0}
    always = shown(skill_share=1.0)
    assert {titles(one) for one in always} == {1}
    assert 0.3 < sum(EPISODE_TITLE in one.parts.task for one in always) / len(always) < 0.7


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
        for one, following in zip_longest(episode, episode[1:]):
            action, offered = actions_and_offers([one])[0]
            right = expert.decide(offered).action
            title, skill = next(line for line in pairwise(render(one.parts).split("\n")) if line[0].endswith("skill:"))
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
                done = following.parts.history[-1].rsplit("action: ", 1)[1]
                expert.observe(done, result_of(environment.step(done)).observation)
    assert min(seen[name] for name in ("step, right", "step, wrong", "own", "another, clumsy", "rule")) > 10
    assert seen["another, clumsy"] > 3 * seen["another, right"]


def test_an_environment_without_expert_is_refused():
    with pytest.raises(ConfigError, match="policy: this environment has no expert to imitate"):
        require_expert(object())  # pyright: ignore[reportArgumentType]


# Imitation --------------------------------------------------------------------------------------------------------

TOY = WarmStartConfig(epochs=30, batch_size=4, learning_rate=5e-3, prompt_loss_weight=0.1)


def toy_demonstrations() -> list[Demonstration]:
    """The response repeats the prompt's last token and ends with token 1."""
    generator = np.random.default_rng(0)
    prompts = [generator.integers(2, 32, size=length).tolist() for length in (3, 5, 4, 6, 3, 4, 5, 6)]
    return [Demonstration(prompt, [prompt[-1], 1]) for prompt in prompts]


def imitated(seed: int = 0, **changes: Any):
    """A toy policy after imitation, the loss that this returned, and what it reported."""
    torch.set_num_threads(1)
    policy = make_tiny_policy(vocab_size=32, hidden_size=32, layers=1, heads=1, max_positions=32, seed=1)
    settings, reports = TOY.model_copy(update=changes), []
    last = imitate(
        policy, toy_demonstrations(), settings, seed=seed, pad_id=0, on_step=lambda *report: reports.append(report)
    )
    return policy, last, reports


def weights(policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_imitation_learns_its_samples_and_reports():
    _, before, reports = imitated(epochs=1, learning_rate=1e-9)
    assert reports == [(2, 2, before)]  # two batches of four
    # An untrained policy: log(32) = 3.47 nats on the response, a tenth of it on the prompt.
    assert before == pytest.approx(1.1 * np.log(32), rel=0.05)
    policy, after, reports = imitated()
    assert [(step, steps) for step, steps, _ in reports] == [(50, 60), (60, 60)]
    assert after == reports[-1][2] < before / 3
    for one in toy_demonstrations():
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([[*one.prompt_ids, one.response_ids[0]]])).logits[0]
        assert logits[-2:].argmax(-1).tolist() == one.response_ids
    assert weights(policy).equal(weights(imitated()[0]))
    assert not weights(policy).equal(weights(imitated(seed=1)[0]))


def test_the_clock_ends_the_training():
    policy, _, reports = imitated(seconds=1e-9)
    assert reports == []
    fresh = make_tiny_policy(vocab_size=32, hidden_size=32, layers=1, heads=1, max_positions=32, seed=1)
    assert weights(policy).equal(weights(fresh))
