"""Warm start: a policy made by imitating an environment's expert, a tiny one with its own tokenizer or a pretrained
model that goes on from what it knows.

Demonstrations hold detours (random and failing actions) that the expert then mends. The demonstrator is clumsy by
itself, and a share of the prompts carries a skill in the analyzers' own templates that changes what it does: a stand-in
for an instruct model, which acts badly by itself and follows what it is told.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from envs.base import (
    Decision,
    Environment,
    HasExpert,
    PromptParts,
    Task,
    action_words_of,
    clumsy_actions_of,
    result_of,
)
from opid_core.config import CampaignConfig, PromptingConfig, WarmStartConfig
from opid_core.errors import ConfigError
from opid_core.learning.imitation import Demonstration, imitate
from opid_core.policies import (
    TINY_VOCABULARY,
    load_model,
    load_tokenizer,
    make_tiny_policy,
    save_policy,
    train_tokenizer,
)
from opid_core.rollout.prompting import EPISODE_TITLE, STEP_TITLE, encode, inject, render, with_template_arguments
from opid_core.seeds import derive
from opid_core.skills.analyzers.hindsight import (
    avoidance_skill,
    generalise,
    step_skill,
    workflow_skill,
    workflow_steps,
)
from opid_core.skills.analyzers.redaction import worded

EPISODE_WEIGHTS = (3, 1, 1)
"""Of the prompts with an episode skill: the own workflow, another task's, a rule of what to avoid."""


@dataclass(frozen=True)
class ExpertStep:
    """One decision of a demonstration: the prompt (with a skill or not) and the response to imitate."""

    parts: PromptParts
    response: str


def warm_start(
    config: CampaignConfig,
    make_environment: Callable[[], Environment],
    folder: Path,
    on_progress: Callable[[str, int, int, str], None] = lambda stage, done, total, note: None,
    device: str = "cpu",
    base: Path | None = None,
) -> None:
    """Make policy 0 of `config` and write it to `folder` (HF: safetensors, tokenizer with chat template).

    `base`: the HF folder of a pretrained model to go on from, in float32, with its tokenizer and template; None makes a
    tiny policy. Same config, same policy, unless `warm_start.seconds` bounds the training by the clock. Raises
    ConfigError when the environment has no expert. `on_progress(stage, done, total, note)`.
    """
    import torch

    torch.set_num_threads(config.threads)
    if not torch.cuda.is_available():
        # Saving a model imports DeepSpeed, which warns where it finds no GPU by itself.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    settings, seed = config.warm_start, derive(config.seed, "warm start")
    environment = require_expert(make_environment())
    shown = demonstrate(
        make_environment,
        config.environment.train_split,
        settings,
        max_steps=config.environment.max_steps,
        history_length=config.environment.history_length,
        seed=seed,
        prompting=config.prompting,
        on_episode=lambda done: on_progress("demonstrate", done, settings.episodes, ""),
    )
    if base is None:
        texts = [render(one.parts) + "\n" + one.response for one in shown]
        phrases = [*environment.fixed_phrases, EPISODE_TITLE, STEP_TITLE]
        train_tokenizer(texts[:20000], phrases, TINY_VOCABULARY, folder)
    tokenizer = with_template_arguments(load_tokenizer(base or folder), config.prompting.template_arguments)
    rollout = config.rollout
    demonstrations = []
    for one in shown:
        prompt_ids = encode(tokenizer, one.parts, rollout.max_prompt_tokens).ids
        response_ids = [*tokenizer.encode(one.response, add_special_tokens=False), tokenizer.eos_token_id]
        demonstrations.append(Demonstration(prompt_ids, response_ids))
        if len(demonstrations) % 1000 == 0:
            on_progress("encode", len(demonstrations), len(shown), "")
    if base is None:
        model = make_tiny_policy(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            layers=settings.layers,
            heads=settings.heads,
            max_positions=rollout.max_prompt_tokens + rollout.max_response_tokens,
            seed=seed,
            tied=settings.tied_embeddings,
        )
    else:
        model = load_model(base, torch.float32, use_safetensors=True)
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
    if base is None:
        model.save_pretrained(folder)
    else:
        save_policy(model, folder, files_from=base)


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
    prompting: PromptingConfig = PromptingConfig(),  # noqa: B008 - it never changes
    on_episode: Callable[[int], None] = lambda done: None,
) -> list[ExpertStep]:
    """The decisions of expert episodes over the tasks of `split`, in order, skills in the blocks of `prompting`."""
    environment = make_environment()
    require_expert(environment)
    tasks = environment.tasks(split)
    shown: list[ExpertStep] = []
    careful = settings.model_copy(update={"clumsiness": 0.0, "detours": 0.0})
    for index in range(settings.episodes):
        rng = random.Random(derive(seed, "episode", index))
        task = tasks[index % len(tasks)]
        moments = _play(environment, task, settings, max_steps, history_length, rng)
        if settings.skill_share:  # the demonstrations of a moment stand together: they begin alike
            actions, other_actions = (
                [moment.expert.action for moment in _play(environment, planned, careful, max_steps, 0, rng)]
                for planned in (task, rng.choice(tasks))
            )
            shown += _with_skills(environment, moments, actions, other_actions, settings, prompting, rng)
        else:
            write = require_expert(environment).response_text
            shown += [ExpertStep(moment.parts, write(moment.clumsy)) for moment in moments]
        on_episode(index + 1)
    return shown


@dataclass(frozen=True)
class _Moment:
    """One step of a demonstration: what the expert does, and what the demonstrator, who is clumsy by itself, does."""

    parts: PromptParts
    strays: Sequence[str]
    """What a clumsy player might do."""
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
    strays_before: Sequence[str] = ()
    moments: list[_Moment] = []
    for _ in range(max_steps):
        admissible = list(environment.admissible_actions)
        parts = environment.prompt_parts(environment.task_text, history, observation, admissible, history_length)
        decision = clumsy = expert.decide(admissible)
        strays = clumsy_actions_of(expert, admissible)
        draw = rng.random() if strays else 1.0
        if draw < settings.clumsiness:
            clumsy = replace(decision, action=rng.choice(strays))
        action = clumsy.action
        if settings.clumsiness <= draw < settings.clumsiness + settings.detours:
            # An action of the step before is often not on offer any more: then the world says that nothing happens.
            action = rng.choice(strays_before or strays) if rng.random() < 0.5 else rng.choice(strays)
        moments.append(_Moment(parts, strays, decision, clumsy))
        strays_before = strays
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
    actions: Sequence[str],
    other_actions: Sequence[str],
    settings: WarmStartConfig,
    prompting: PromptingConfig,
    rng: random.Random,
) -> list[ExpertStep]:
    """The moments of an episode, and a share of them again with skills in the prompt, which change what is done: `own`
    are the expert's actions on this task, `another` those on another one.

    Without a skill, and under another task's workflow, the demonstrator is clumsy. Under a step skill it does what that
    says, right or wrong; under the own workflow what the expert does; under a rule it avoids and does what that names.
    """
    words, write = action_words_of(environment), require_expert(environment).response_text

    def plain(action: str) -> str:
        return generalise(action, words)

    steps = workflow_steps(actions, words)
    # What a failure would be told: two steps of the plan that it lacks, two actions that led nowhere.
    missed = sorted(rng.sample(steps, min(2, len(steps))), key=steps.index)
    others = [step for step in dict.fromkeys(plain(moment.clumsy.action) for moment in moments) if step not in steps]
    wrong = rng.sample(others, min(2, len(others)))
    rule = avoidance_skill(missed=missed, wrong=wrong)
    shown = []
    for moment in moments:
        parts, clumsy, expert = moment.parts, moment.clumsy, moment.expert
        shown.append(ExpertStep(parts, write(clumsy)))
        if rng.random() < settings.skill_share:
            # "answer" does not say which: told so, only the expert's is right.
            strays = [stray for stray in moment.strays if worded(stray, words) != words.answer_tag]
            named = [expert, replace(expert, action=rng.choice(strays))] if strays else [expert]
            for decision in named:
                with_skill = inject(parts, "step", step_skill(decision.action, words), prompting)
                shown.append(ExpertStep(with_skill, write(decision)))
        if rng.random() < settings.skill_share:
            skill, decision = rng.choices(
                (
                    (workflow_skill(actions, words), expert),
                    (workflow_skill(other_actions, words), clumsy),
                    (rule, expert if plain(expert.action) in missed or plain(clumsy.action) in wrong else clumsy),
                ),
                EPISODE_WEIGHTS,
            )[0]
            shown.append(ExpertStep(inject(parts, "episode", skill, prompting), write(decision)))
    return shown
