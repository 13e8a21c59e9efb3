"""The episode loop: many episodes over one engine, continuous batching without a barrier.

An episode's next turn is submitted the moment its own response is done; a finished episode costs nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from envs.base import Environment, Task
from opid_core.errors import EnvironmentFault
from opid_core.rollout.prompting import EncodedPrompt, encode, inject, render
from opid_core.seeds import derive


class Completion(Protocol):
    """A finished response; `log_probs` are the sampled tokens' at temperature 1 over the full vocabulary."""

    @property
    def request_id(self) -> str: ...

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def log_probs(self) -> list[float]: ...


class TokenEngine(Protocol):
    """An inference engine that works on the loop's tokens; what is trained on comes from one."""

    tokens_generated: int

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None: ...

    def step(self) -> Sequence[Completion]: ...


@dataclass(frozen=True)
class TextCompletion:
    """A finished response of a `TextEngine`, and how many tokens it took."""

    request_id: str
    text: str
    tokens: int


@runtime_checkable
class TextEngine(Protocol):
    """An engine with template and tokenizer on its own side, such as an endpoint: a user message in, text out."""

    def submit_text(self, request_id: str, message: str, *, max_tokens: int, temperature: float, seed: int) -> None: ...

    def step(self) -> Sequence[TextCompletion]: ...


Engine = TokenEngine | TextEngine
"""What plays the episodes."""


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to play: members of a group share `group_id` and `task` and differ in `seed`."""

    trajectory_id: str
    group_id: str
    task: Task
    seed: int


@dataclass(frozen=True)
class EpisodeSettings:
    """The rules around every episode of a batch."""

    max_steps: int
    history_length: int
    max_prompt_tokens: int
    max_response_tokens: int
    temperature: float
    success_reward: float
    timeout_s: float
    skill_of: Callable[[Task], str] | None = None
    """The static skill of a task, which stands in all its prompts as an episode skill."""


@dataclass(frozen=True)
class Turn:
    """One decision as it was sampled: a row of the `steps` table without the columns of the campaign. From a
    `TextEngine` there are no ids and no log-probs."""

    observation: str
    admissible_actions: tuple[str, ...]
    prompt: EncodedPrompt
    response_ids: list[int]
    response_text: str
    log_probs: list[float]
    tokens: int
    action: str
    is_valid: bool
    reward: float
    seed: int


@dataclass
class Episode:
    """A played episode. `outcome`: success | failure | truncated | broken (see `schema.OUTCOMES`)."""

    request: EpisodeRequest
    task_text: str = ""
    turns: list[Turn] = field(default_factory=list)
    outcome: str = ""
    seconds: float = 0.0
    error: str | None = None

    @property
    def episode_return(self) -> float:
        return sum(turn.reward for turn in self.turns)

    @property
    def tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)


@dataclass
class _Live:
    episode: Episode
    environment: Environment
    observation: str
    started_s: float
    prompt: EncodedPrompt | None = None
    seed: int = 0


def run_episodes(
    engine: Engine,
    tokenizer: Any,
    make_environment: Callable[[], Environment],
    requests: Sequence[EpisodeRequest],
    settings: EpisodeSettings,
    on_episode: Callable[[Episode], None] = lambda episode: None,
) -> list[Episode]:
    """Play all `requests` and return their episodes in the same order.

    A `TextEngine` needs no `tokenizer` (None), and `settings.max_prompt_tokens` does not apply to it.
    An `EnvironmentFault` ends its own episode as `broken`; any other exception is a bug or an infrastructure fault
    and leaves this function. `on_episode` is called as each episode ends (progress).
    """
    episodes = [Episode(request) for request in requests]
    live: dict[str, _Live] = {}

    def finish(episode: Episode, outcome: str, started_s: float, error: str | None = None) -> None:
        episode.outcome, episode.error, episode.seconds = outcome, error, time.monotonic() - started_s
        live.pop(episode.request.trajectory_id, None)
        on_episode(episode)

    for episode in episodes:
        started_s = time.monotonic()
        environment = make_environment()
        try:
            observation = environment.reset(episode.request.task)
        except EnvironmentFault as fault:
            finish(episode, "broken", started_s, str(fault))
            continue
        episode.task_text = environment.task_text
        state = _Live(episode, environment, observation, started_s)
        live[episode.request.trajectory_id] = state
        _submit_turn(engine, tokenizer, state, settings)

    while live:
        for completion in engine.step():
            state = live[completion.request_id]
            try:
                outcome = _take_turn(tokenizer, state, completion, settings)
            except EnvironmentFault as fault:
                finish(state.episode, "broken", state.started_s, str(fault))
                continue
            if outcome:
                finish(state.episode, outcome, state.started_s)
            else:
                _submit_turn(engine, tokenizer, state, settings)
    return episodes


def _submit_turn(engine: Engine, tokenizer: Any, state: _Live, settings: EpisodeSettings) -> None:
    episode = state.episode
    parts = state.environment.prompt_parts(
        episode.task_text,
        [(turn.observation, turn.action) for turn in episode.turns],
        state.observation,
        state.environment.admissible_actions,
        settings.history_length,
    )
    if settings.skill_of is not None:
        parts = inject(parts, "episode", settings.skill_of(episode.request.task))
    state.seed = derive(episode.request.seed, len(episode.turns))
    sampling = {"max_tokens": settings.max_response_tokens, "temperature": settings.temperature, "seed": state.seed}
    if isinstance(engine, TextEngine):
        state.prompt = EncodedPrompt(render(parts), ids=[], history_dropped=0)
        engine.submit_text(episode.request.trajectory_id, state.prompt.text, **sampling)
    else:
        state.prompt = encode(tokenizer, parts, settings.max_prompt_tokens)
        engine.submit(episode.request.trajectory_id, state.prompt.ids, **sampling)


def _take_turn(tokenizer: Any, state: _Live, completion: Completion | TextCompletion, settings: EpisodeSettings) -> str:
    """Act on a finished response; returns the episode's outcome, or "" while it goes on."""
    episode, environment = state.episode, state.environment
    assert state.prompt is not None
    if isinstance(completion, TextCompletion):
        text, ids, log_probs, tokens = completion.text, [], [], completion.tokens
    else:
        ids, log_probs, tokens = completion.token_ids, completion.log_probs, len(completion.token_ids)
        text = tokenizer.decode(ids, skip_special_tokens=True)
    action, is_valid = environment.parse_action(text)
    turn = Turn(
        observation=state.observation,
        admissible_actions=tuple(environment.admissible_actions),
        prompt=state.prompt,
        response_ids=ids,
        response_text=text,
        log_probs=log_probs,
        tokens=tokens,
        action=action,
        is_valid=is_valid,
        reward=0.0,
        seed=state.seed,
    )
    episode.turns.append(turn)  # before the world acts: its tokens were sampled, even if the world breaks now
    result = environment.step(action)
    episode.turns[-1] = replace(turn, reward=result.reward * settings.success_reward)
    state.observation = result.observation
    if result.won:
        return "success"
    if result.done:
        return "failure"
    if len(episode.turns) >= settings.max_steps or time.monotonic() - state.started_s > settings.timeout_s:
        return "truncated"
    return ""
