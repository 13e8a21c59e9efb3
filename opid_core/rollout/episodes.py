"""The episode loop: many episodes over one engine, continuous batching without a barrier.

An episode's next turn is submitted when its own response is done; a finished episode costs nothing more. Neither the
engine nor another episode waits for a turn that is being prepared: the engine samples on (`WorksAhead`), and worlds
that wait for something wait in the background.

Order: a synchronous world's turn enters the engine at a counted step, whatever the clock says, so the same submissions
come in the same order in every run. An asynchronous world's turn enters when its answer is there.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from envs.base import WAKE_S, Environment, PromptParts, StepResult, Task, in_background, state_key_of
from opid_core.config import PromptingConfig
from opid_core.errors import ConfigError, EnvironmentFault
from opid_core.reading import well_formed
from opid_core.rollout.conversation import conversation_parts, encode_conversation, inject_turns
from opid_core.rollout.engines.protocols import (
    DealsGroups,
    Engine,
    TextCompletion,
    TextEngine,
    TokenCompletion,
    WorksAhead,
)
from opid_core.rollout.prompting import EncodedPrompt, answer_text, encode, inject, render
from opid_core.seeds import derive


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
    """Of the world's answers in an episode, together."""
    skill_of: Callable[[Task], str] | None = None
    """The static skill of a task, which stands in all its prompts as an episode skill."""
    prompting: PromptingConfig = field(default_factory=PromptingConfig)


@dataclass(frozen=True)
class Turn:
    """One decision as it was sampled: a row of the `steps` table without the columns of the campaign. From a
    `TextEngine` there are no ids and no log-probs."""

    observation: str
    admissible_actions: tuple[str, ...]
    prompt: EncodedPrompt
    response_ids: Sequence[int]
    response_text: str
    log_probs: Sequence[float]
    tokens: int
    action: str
    is_valid: bool
    reward: float
    seed: int
    state: str | None = None
    """The environment's key of the state that the turn began in."""


@dataclass
class Episode:
    """A played episode. `outcome`: success | failure | truncated | broken (see `schema.OUTCOMES`)."""

    request: EpisodeRequest
    task_text: str = ""
    turns: list[Turn] = field(default_factory=list)
    outcome: str = ""
    score: float | None = None
    """The world's, after its last answer."""
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
    started_s: float
    asked_s: float | None = None
    """Since when the world's answer is waited for."""
    answered_s: float | None = None
    """When it came, of a world that answers while others go on."""
    world_s: float = 0.0
    """What its answers have taken."""
    observation: str = ""
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
    """Play all `requests` and return their episodes in the same order. Arguments and errors as in `ended_episodes`;
    `on_episode` is called as each episode ends (progress)."""
    ended: dict[str, Episode] = {}
    with closing(ended_episodes(engine, tokenizer, make_environment, requests, settings)) as episodes:
        for episode in episodes:
            ended[episode.request.trajectory_id] = episode
            on_episode(episode)
    return [ended[request.trajectory_id] for request in requests]


def ended_episodes(
    engine: Engine,
    tokenizer: Any,
    make_environment: Callable[[], Environment],
    requests: Sequence[EpisodeRequest],
    settings: EpisodeSettings,
) -> Generator[Episode, None, None]:
    """Play all `requests`, and give each episode as it ends.

    A `TextEngine` needs no `tokenizer` (None), and `settings.max_prompt_tokens` does not apply to it.
    An `EnvironmentFault` ends its own episode as `broken`; any other exception is a bug or an infrastructure fault
    and leaves this function.
    """
    ended: list[Episode] = []
    """Those that were not given yet."""
    live: dict[str, _Live] = {}
    pending: dict[str, Future[str | StepResult]] = {}
    """Answers of asynchronous worlds that are yet to come, in the order in which they were asked for."""
    # Asked once: the check of a protocol takes as long as everything else that the loop itself does for a turn.
    text_engine, token_engine = (engine, None) if isinstance(engine, TextEngine) else (None, engine)
    work_ahead = engine.begin if isinstance(engine, WorksAhead) else lambda: None
    if text_engine is not None and settings.prompting.style == "chat":
        raise ConfigError(
            "prompting.style: chat needs the tokens of a policy's answers, which an endpoint does not give"
        )
    if isinstance(engine, DealsGroups):
        engine.deal([(request.trajectory_id, request.group_id) for request in requests])

    def submit(state: _Live) -> None:
        """Let the engine answer the episode's next prompt."""
        name = state.episode.request.trajectory_id
        state.seed = derive(state.episode.request.seed, len(state.episode.turns))
        sampling = {"max_tokens": settings.max_response_tokens, "temperature": settings.temperature, "seed": state.seed}
        if text_engine is not None:
            state.prompt = EncodedPrompt(render(_prompt_parts(state, settings)), ids=[], history_dropped=0)
            text_engine.submit_text(name, state.prompt.text, **sampling)
        elif token_engine is not None:
            state.prompt = _encoded(tokenizer, state, settings)
            token_engine.submit(name, state.prompt.ids, **sampling)

    def ask(state: _Live, question: Callable[[], Any]) -> None:
        """Take what the world answers to `question`, now or later, and go on with the episode or end it."""
        episode, error = state.episode, None
        if state.asked_s is None:
            state.asked_s, state.answered_s = time.monotonic(), None
        try:
            answer = question()
            if isinstance(answer, Coroutine):
                pending[episode.request.trajectory_id] = in_background(answer)
                pending[episode.request.trajectory_id].add_done_callback(partial(_note_time, state))
                return
            # The engine's time does not count: how busy it is must not change what an episode holds.
            answered_s = time.monotonic() if state.answered_s is None else state.answered_s
            state.world_s, state.asked_s = state.world_s + answered_s - state.asked_s, None
            outcome = _take(state, answer, settings)
        except EnvironmentFault as fault:
            outcome, error = "broken", str(fault)
        if not outcome:
            submit(state)
            return
        episode.outcome, episode.error, episode.seconds = outcome, error, time.monotonic() - state.started_s
        del live[episode.request.trajectory_id]
        ended.append(episode)

    # Functions, so that nothing here holds the environment of an ended episode: others may wait for what it has.
    def begin(episode: Episode) -> None:
        state = _Live(episode, make_environment(), time.monotonic())
        live[episode.request.trajectory_id] = state
        ask(state, partial(state.environment.reset, episode.request.task))

    def go_on(completion: TokenCompletion | TextCompletion) -> None:
        state = live[completion.request_id]
        ask(state, partial(_act, tokenizer, state, completion))

    def hear(state: _Live, name: str) -> None:
        """Go on with an episode whose world has answered, or end it where that has taken too long."""
        if pending[name].done():
            ask(state, pending.pop(name).result)
        elif (waited_s := state.world_s + time.monotonic() - (state.asked_s or 0.0)) > settings.timeout_s:
            pending.pop(name).cancel()
            ask(state, partial(_check_time, waited_s, settings))

    try:
        for request in requests:
            begin(Episode(request))
        while live or ended:
            yield from _taken(ended)
            for name in [*pending]:
                hear(live[name], name)
            if len(pending) == len(live):  # the engine has nothing to do
                wait(pending.values(), WAKE_S, FIRST_COMPLETED)
                continue
            if pending:
                work_ahead()  # so that `step` returns soon, for what they answer meanwhile
            completions = engine.step()
            if completions:
                work_ahead()
            for completion in completions:
                go_on(completion)
    finally:
        for answer in pending.values():
            answer.cancel()


def _note_time(state: _Live, answer: Future[Any]) -> None:
    state.answered_s = time.monotonic()


def _taken(ended: list[Episode]) -> list[Episode]:
    return [ended.pop(0) for _ in range(len(ended))]


def _prompt_parts(state: _Live, settings: EpisodeSettings) -> PromptParts:
    """The parts of the episode's next prompt."""
    episode = state.episode
    parts = state.environment.prompt_parts(
        episode.task_text,
        [(turn.observation, turn.action) for turn in episode.turns],
        state.observation,
        state.environment.admissible_actions,
        settings.history_length,
    )
    if settings.skill_of is None:
        return parts
    return inject(parts, "episode", settings.skill_of(episode.request.task), settings.prompting)


def _encoded(tokenizer: Any, state: _Live, settings: EpisodeSettings) -> EncodedPrompt:
    """The episode's next prompt."""
    if settings.prompting.style == "single":
        return encode(tokenizer, _prompt_parts(state, settings), settings.max_prompt_tokens)
    episode, environment = state.episode, state.environment
    turns = conversation_parts(
        environment.prompt_parts,
        episode.task_text,
        [*(turn.observation for turn in episode.turns), state.observation],
        [turn.action for turn in episode.turns],
        [*(turn.admissible_actions for turn in episode.turns), environment.admissible_actions],
        settings.history_length,
    )
    if settings.skill_of is not None:
        turns = inject_turns(turns, "episode", settings.skill_of(episode.request.task), settings.prompting)
    responses = [turn.response_ids for turn in episode.turns][len(episode.turns) + 1 - len(turns) :]
    return encode_conversation(tokenizer, turns, responses, settings.max_prompt_tokens)


def _act(
    tokenizer: Any, state: _Live, completion: TokenCompletion | TextCompletion
) -> StepResult | Coroutine[Any, Any, StepResult]:
    """Record a finished response as a turn, and let the world act on it."""
    episode, environment = state.episode, state.environment
    assert state.prompt is not None
    if isinstance(completion, TextCompletion):
        text, ids, log_probs, tokens = completion.text, [], [], completion.tokens
    else:
        ids, log_probs, tokens = completion.token_ids, completion.log_probs, len(completion.token_ids)
        text = answer_text(tokenizer, ids)
    action, is_valid = environment.parse_action(state.prompt.opened + text)
    turn = Turn(
        observation=state.observation,
        admissible_actions=tuple(environment.admissible_actions),
        # Arrays: millions of tokens are kept until the table is made, and a list takes up to nine times the space.
        prompt=replace(state.prompt, ids=array("i", state.prompt.ids)),
        response_ids=array("i", ids),
        response_text=text,
        log_probs=array("f", log_probs),
        tokens=tokens,
        action=action,
        is_valid=is_valid,
        reward=0.0,
        seed=state.seed,
        state=state_key_of(environment),
    )
    episode.turns.append(turn)  # before the world acts: its tokens were sampled, even if the world breaks now
    return environment.step(action)


def _take(state: _Live, answer: str | StepResult, settings: EpisodeSettings) -> str:
    """Take the world's first observation or the result of a step; the episode's outcome, or "" while it goes on. Raises
    EnvironmentFault where the world's answers have taken too long."""
    episode = state.episode
    if isinstance(answer, str):
        episode.task_text, state.observation = well_formed(state.environment.task_text), well_formed(answer)
        return ""
    episode.turns[-1] = replace(episode.turns[-1], reward=answer.reward * settings.success_reward)
    state.observation, episode.score = well_formed(answer.observation), answer.score
    if answer.won:
        return "success"
    if answer.done:
        return "failure"
    if len(episode.turns) >= settings.max_steps:
        return "truncated"
    _check_time(state.world_s, settings)
    return ""


def _check_time(world_s: float, settings: EpisodeSettings) -> None:
    if world_s > settings.timeout_s:
        raise EnvironmentFault(
            f"its answers took {world_s:.0f} s, more than environment.episode_timeout_s ({settings.timeout_s:g})"
        )
