"""Warm start: a tiny policy with its own tokenizer, made by imitating an environment's expert.

Demonstrations hold detours (random and failing actions) that the expert then mends. The demonstrator is clumsy by
itself, and a share of the prompts carries a skill in the analyzers' own templates that changes what it does: a stand-in
for an instruct model, which acts badly by itself and follows what it is told.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from envs.base import Decision, Environment, HasExpert, PromptParts, Task, action_words_of, result_of
from opid_core.config import CampaignConfig, WarmStartConfig
from opid_core.errors import ConfigError
from opid_core.policies import TINY_VOCABULARY, load_tokenizer, make_tiny_policy, train_tokenizer
from opid_core.rollout.prompting import EPISODE_TITLE, STEP_TITLE, encode, inject, render
from opid_core.seeds import derive
from opid_core.skills.analyzers.hindsight import (
    avoidance_skill,
    generalise,
    step_skill,
    workflow_skill,
    workflow_steps,
)

if TYPE_CHECKING:
    import torch

KINDS = ("step", "own", "another", "rule")
KIND_WEIGHTS = (4, 3, 2, 1)
"""Of the prompts with a skill: step skills, the own workflow, another task's, a rule of what to avoid."""


@dataclass(frozen=True)
class ExpertStep:
    """One decision of a demonstration: the prompt (with a skill or not) and the response to imitate."""

    parts: PromptParts
    response: str


@dataclass(frozen=True)
class Demonstration:
    """One decision to imitate: token ids of the prompt and of the response, its end token included."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]


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
    tokenizer = load_tokenizer(folder)
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
    imitate(
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
) -> list[ExpertStep]:
    """The decisions of expert episodes over the tasks of `split`, in order."""
    environment = make_environment()
    require_expert(environment)
    tasks = environment.tasks(split)
    shown: list[ExpertStep] = []
    careful = settings.model_copy(update={"clumsiness": 0.0, "detours": 0.0})
    for index in range(settings.episodes):
        rng = random.Random(derive(seed, "episode", index))
        task = tasks[index % len(tasks)]
        moments = _play(environment, task, settings, max_steps, history_length, rng)
        if settings.skill_share:
            own, another = (
                [moment.expert.action for moment in _play(environment, planned, careful, max_steps, 0, rng)]
                for planned in (task, rng.choice(tasks))
            )
            shown += _with_skills(environment, moments, own, another, settings, rng)
        else:
            write = require_expert(environment).response_text
            shown += [ExpertStep(moment.parts, write(moment.clumsy)) for moment in moments]
        on_episode(index + 1)
    return shown


@dataclass(frozen=True)
class _Moment:
    """One step of a demonstration: what the expert does, and what the demonstrator, who is clumsy by itself, does."""

    parts: PromptParts
    offered: Sequence[str]
    expert: Decision
    clumsy: Decision


def _play(
    environment: Environment,
    task: Task,
    settings: WarmStartConfig,
    max_steps: int,
    history_length: int,
    rng: random.Random,
) -> list[_Moment]:
    """The moments of one episode: the expert decides at every step, whatever detours were made before."""
    observation = result_of(environment.reset(task))
    expert = require_expert(environment).expert(observation)
    history: list[tuple[str, str]] = []
    offered_before: list[str] = []
    moments: list[_Moment] = []
    for _ in range(max_steps):
        admissible = list(environment.admissible_actions)
        parts = environment.prompt_parts(environment.task_text, history, observation, admissible, history_length)
        decision = clumsy = expert.decide(admissible)
        draw = rng.random() if admissible else 1.0  # nothing to choose from at random where no actions are listed
        if draw < settings.clumsiness:
            clumsy = replace(decision, action=rng.choice(admissible))
        action = clumsy.action
        if settings.clumsiness <= draw < settings.clumsiness + settings.detours:
            # An action of the step before is often not on offer any more: then the world says that nothing happens.
            action = rng.choice(offered_before or admissible) if rng.random() < 0.5 else rng.choice(admissible)
        moments.append(_Moment(parts, admissible, decision, clumsy))
        offered_before = admissible
        result = result_of(environment.step(action))
        expert.observe(action, result.observation)
        history.append((observation, action))
        observation = result.observation
        if result.done:
            break
    return moments


def _with_skills(
    environment: Environment,
    moments: Sequence[_Moment],
    own: Sequence[str],
    another: Sequence[str],
    settings: WarmStartConfig,
    rng: random.Random,
) -> list[ExpertStep]:
    """The moments of an episode, a share of them with a skill in the prompt, which changes what is done: `own` are the
    expert's actions on this task, `another` those on another one.

    Without a skill, and under another task's workflow, the demonstrator is clumsy. Under a step skill it does what that
    says, right or wrong; under the own workflow what the expert does; under a rule it avoids and does what that names.
    """
    words, write = action_words_of(environment), require_expert(environment).response_text

    def plain(action: str) -> str:
        return generalise(action, words)

    steps = workflow_steps(own, words)
    # What a failure would be told: two steps of the plan that it lacks, two actions that led nowhere.
    missed = sorted(rng.sample(steps, min(2, len(steps))), key=steps.index)
    others = [step for step in dict.fromkeys(plain(moment.clumsy.action) for moment in moments) if step not in steps]
    wrong = rng.sample(others, min(2, len(others)))
    rule = avoidance_skill(missed=missed, wrong=wrong)
    shown = []
    for moment in moments:
        parts, decision = moment.parts, moment.clumsy
        if rng.random() < settings.skill_share:
            kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
            if kind == "step":
                is_right = not moment.offered or rng.random() < 0.5
                decision = moment.expert if is_right else replace(decision, action=rng.choice(moment.offered))
                parts = inject(parts, "step", step_skill(decision.action, words))
            elif kind == "own":
                decision, parts = moment.expert, inject(parts, "episode", workflow_skill(own, words))
            elif kind == "another":
                parts = inject(parts, "episode", workflow_skill(another, words))
            else:
                parts = inject(parts, "episode", rule)
                if plain(moment.expert.action) in missed or plain(decision.action) in wrong:
                    decision = moment.expert
        shown.append(ExpertStep(parts, write(decision)))
    return shown


def imitate(
    model: torch.nn.Module,
    demonstrations: Sequence[Demonstration],
    config: WarmStartConfig,
    *,
    seed: int,
    pad_id: int,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float:
    """Train `model` in place with AdamW (linear warm-up, cosine decay) and return the last running loss (nats a token).

    Loss: cross-entropy of response tokens plus `prompt_loss_weight` times that of prompt tokens, each averaged over its
    own tokens of the batch. `on_step(step, steps, loss)` reports progress.
    """
    import numpy as np
    import torch

    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    generator = np.random.default_rng(seed)
    steps = config.epochs * math.ceil(len(demonstrations) / config.batch_size)
    warm_up = max(1, min(200, steps // 20))
    started_s, running, step = time.monotonic(), math.nan, 0
    model.train()
    for _ in range(config.epochs):
        for indices in _batches(demonstrations, config.batch_size, generator):
            progress = step / steps
            if config.seconds is not None:
                progress = max(progress, (time.monotonic() - started_s) / config.seconds)
            if progress >= 1:
                return running
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (step + 1) / warm_up) * decay
            loss = _loss(model, [demonstrations[i] for i in indices], config.prompt_loss_weight, pad_id, device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == steps:
                value = loss.item()
                running = value if math.isnan(running) else 0.8 * running + 0.2 * value
                on_step(step, steps, running)
    return running


def _batches(demonstrations: Sequence[Demonstration], batch_size: int, generator):
    """Shuffled batches of similar length: shuffled, sorted inside pools of 50 batches, batches shuffled again."""
    order = generator.permutation(len(demonstrations))
    pool_size = 50 * batch_size
    for start in range(0, len(order), pool_size):
        pool = sorted(
            order[start : start + pool_size],
            key=lambda i: len(demonstrations[i].prompt_ids) + len(demonstrations[i].response_ids),
        )
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        generator.shuffle(batches)
        yield from batches


def _loss(model, batch: Sequence[Demonstration], prompt_weight: float, pad_id: int, device) -> torch.Tensor:
    import torch
    import torch.nn.functional as functional

    length = max(len(d.prompt_ids) + len(d.response_ids) for d in batch)
    ids = torch.full((len(batch), length), pad_id)
    response_mask, prompt_mask = torch.zeros(2, len(batch), length)
    for row, demonstration in enumerate(batch):
        prompt, total = len(demonstration.prompt_ids), len(demonstration.prompt_ids) + len(demonstration.response_ids)
        ids[row, :total] = torch.tensor([*demonstration.prompt_ids, *demonstration.response_ids])
        prompt_mask[row, 1:prompt] = 1
        response_mask[row, prompt:total] = 1
    ids, response_mask, prompt_mask = (t.to(device) for t in (ids, response_mask, prompt_mask))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(batch), -1)
    weights = (response_mask / response_mask.sum() + prompt_weight * prompt_mask / prompt_mask.sum())[:, 1:]
    return (losses * weights).sum()
