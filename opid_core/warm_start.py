"""Warm start: a tiny policy with its own tokenizer, made by imitating an environment's expert.

Demonstrations hold detours (random and failing actions) that the expert then mends, and a share of the prompts carries
a skill in the analyzers' own templates, so that the policy can recover from mistakes and use skills in context.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from envs.base import Decision, Environment, HasExpert, PromptParts, Task
from opid_core.config import CampaignConfig, WarmStartConfig
from opid_core.errors import ConfigError
from opid_core.imitation import Demonstration, train
from opid_core.policies import TINY_VOCABULARY, make_tiny_policy
from opid_core.rollout.prompting import EPISODE_TITLE, STEP_TITLE, encode, inject, render
from opid_core.seeds import derive
from opid_core.skills.analyzers.hindsight import step_skill, workflow_skill
from opid_core.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Shown:
    """One decision of a demonstration: the prompt (with a skill or not) and the response to imitate."""

    parts: PromptParts
    response: str


def warm_start(
    config: CampaignConfig,
    make_environment: Callable[[], Environment],
    folder: Path,
    on_progress: Callable[[str, int, int, str], None] = lambda stage, done, total, note: None,
    device: str = "cpu",
) -> None:
    """Make policy 0 of `config` and write it to `folder` (HF: safetensors, tokenizer with chat template).

    Same config, same policy, unless `warm_start.seconds` bounds the training by the clock. Raises ConfigError when the
    environment has no expert. `on_progress(stage, done, total, note)`.
    """
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(config.threads)
    settings, seed = config.warm_start, derive(config.seed, "warm start")
    environment = require_expert(make_environment())
    shown = demonstrate(
        make_environment,
        config.environment.train_split,
        settings,
        max_steps=config.environment.max_steps,
        history_length=config.environment.history_length,
        seed=seed,
        on_episode=lambda done: on_progress("demonstrate", done, settings.episodes, ""),
    )
    texts = [render(one.parts) + "\n" + one.response for one in shown]
    train_tokenizer(texts[:20000], [*environment.fixed_phrases, EPISODE_TITLE, STEP_TITLE], TINY_VOCABULARY, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rollout = config.rollout
    demonstrations = []
    for one in shown:
        prompt_ids = encode(tokenizer, one.parts, rollout.max_prompt_tokens).ids
        response_ids = [*tokenizer.encode(one.response, add_special_tokens=False), tokenizer.eos_token_id]
        demonstrations.append(Demonstration(prompt_ids, response_ids))
        if len(demonstrations) % 1000 == 0:
            on_progress("encode", len(demonstrations), len(shown), "")
    model = make_tiny_policy(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        layers=settings.layers,
        heads=settings.heads,
        max_positions=rollout.max_prompt_tokens + rollout.max_response_tokens,
        seed=seed,
    )
    model.to(device)  # pyright: ignore[reportArgumentType]
    train(
        model,
        demonstrations,
        settings,
        seed=seed,
        pad_id=tokenizer.pad_token_id,
        on_step=lambda step, steps, loss: on_progress("imitate", step, steps, f"loss {loss:.3f}"),
    )
    model.to("cpu")  # pyright: ignore[reportArgumentType]
    model.save_pretrained(folder)


def require_expert(environment: Environment) -> HasExpert:
    """The environment, known to have an expert. Raises ConfigError when it has none."""
    if not isinstance(environment, HasExpert):
        raise ConfigError("policy: this environment has no expert to imitate; name a base policy folder")
    return environment


def demonstrate(
    make_environment: Callable[[], Environment],
    split: str,
    settings: WarmStartConfig,
    *,
    max_steps: int,
    history_length: int,
    seed: int,
    on_episode: Callable[[int], None] = lambda done: None,
) -> list[Shown]:
    """The decisions of expert episodes over the tasks of `split`, in order."""
    environment = make_environment()
    require_expert(environment)
    tasks = environment.tasks(split)
    shown: list[Shown] = []
    for index in range(settings.episodes):
        rng = random.Random(derive(seed, "episode", index))
        task = tasks[index % len(tasks)]
        shown += _with_skills(_play(environment, task, settings, max_steps, history_length, rng), settings, rng)
        on_episode(index + 1)
    return shown


@dataclass(frozen=True)
class _Played:
    parts: PromptParts
    decision: Decision
    response: str


def _play(
    environment: Environment,
    task: Task,
    settings: WarmStartConfig,
    max_steps: int,
    history_length: int,
    rng: random.Random,
) -> list[_Played]:
    """One episode in which the expert decides at every step, whatever detours were made before."""
    expert_of = require_expert(environment)
    observation = environment.reset(task)
    expert = expert_of.expert(observation)
    history: list[tuple[str, str]] = []
    offered_before: list[str] = []
    played: list[_Played] = []
    for _ in range(max_steps):
        admissible = list(environment.admissible_actions)
        parts = environment.prompt_parts(environment.task_text, history, observation, admissible, history_length)
        decision = expert.decide(admissible)
        draw = rng.random() if admissible else 1.0  # nothing to choose from at random where no actions are listed
        if draw < settings.clumsiness:
            decision = replace(decision, action=rng.choice(admissible))
        action = decision.action
        if settings.clumsiness <= draw < settings.clumsiness + settings.detours:
            # An action of the step before is often not on offer any more: then the world says that nothing happens.
            action = rng.choice(offered_before or admissible) if rng.random() < 0.5 else rng.choice(admissible)
        played.append(_Played(parts, decision, expert_of.response_text(decision)))
        offered_before = admissible
        result = environment.step(action)
        expert.observe(action, result.observation)
        history.append((observation, action))
        observation = result.observation
        if result.done:
            break
    return played


def _with_skills(played: Sequence[_Played], settings: WarmStartConfig, rng: random.Random) -> list[Shown]:
    """The episode's decisions, a share of them with the episode's workflow or the step's own skill in the prompt."""
    workflow = workflow_skill([one.decision.action for one in played])
    shown = []
    for one in played:
        parts = one.parts
        if rng.random() < settings.skill_share:
            kind, skill = ("episode", workflow) if rng.random() < 0.5 else ("step", step_skill(one.decision.action))
            parts = inject(parts, kind, skill)
        shown.append(Shown(parts, one.response))
    return shown
