"""The protocol that every environment follows, and the registry of names.

An environment is one module: a pydantic model of its options, a class that follows `Environment`, and one call of
`register`. Nothing else of the project needs to know it: a config names it as `module:name`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import re
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

from pydantic import BaseModel, ValidationError

from opid_core.errors import ConfigError, DataError
from opid_core.sections import imported
from opid_core.wording import describe_validation_error

TURN_LINE = "Now it's your turn"
"""How the last paragraph of every prompt begins; a step skill is put right before it."""


@dataclass(frozen=True)
class Task:
    """One task instance of a split. `payload` is what the environment needs to reset to it, opaque to everyone else."""

    task_id: str
    task_type: str
    payload: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class StepResult:
    """What the world answers to one action. `won` is whether the task's goal holds now. Raises DataError for a score
    beyond 0 and 1."""

    observation: str
    reward: float
    done: bool
    won: bool
    score: float | None = None
    """What the episode is worth so far, 0 to 1, where a task can be done in part; None where a world only knows won and
    lost. The last step's is the episode's. It is no reward: it is evaluated, and nothing is trained on it."""

    def __post_init__(self) -> None:
        if self.score is not None and not 0 <= self.score <= 1:
            raise DataError(f"StepResult.score: {self.score} is not between 0 and 1")


@dataclass(frozen=True)
class PromptParts:
    """The parts of one user message, in their order (docs/environments.md). Joined by newlines, empty parts left out.

    `task` is the line that states the task; `history` holds one rendered text a past step, oldest first, and
    `history_header` the sentence before them (dropped with the last of them); `current` the current step and
    observation; `actions` the admissible actions; `turn` the paragraph that begins with `TURN_LINE`.
    """

    role: str
    task: str
    history_header: str
    history: tuple[str, ...]
    current: str
    actions: str
    turn: str


class Environment(Protocol):
    """One running episode at a time; instances are cheap and share their read-only data.

    `reset` and `step` may be `async`, or return a coroutine only where there is something to wait for (a search
    server): other episodes and the engine go on meanwhile. All coroutines run on one event loop (`in_background`).

    `prompt_parts` and `parse_action` are pure: they depend on their arguments alone, so a prompt can be rebuilt from
    the rows of the `steps` table.
    """

    admissible_actions: Sequence[str]
    """The actions the world offers now (set by `reset` and `step`; empty where an environment lists none). One with a
    blank, such as `search[<your query>]`, stands for all that fill it (`is_offered`)."""

    task_text: str
    """The task in words, as the prompt's task line states it (set by `reset`)."""

    def tasks(self, split: str) -> Sequence[Task]:
        """The explicit, ordered task list of `split`. Raises ConfigError for an unknown split."""
        ...

    def reset(self, task: Task) -> str | Coroutine[Any, Any, str]:
        """Start `task` from its initial state and return the first observation."""
        ...

    def step(self, action: str) -> StepResult | Coroutine[Any, Any, StepResult]:
        """Do one action (as `parse_action` returned it). An action the world refuses is an observation, no error."""
        ...

    @staticmethod
    def parse_action(response_text: str) -> tuple[str, bool]:
        """The action in a policy's response, and whether the response is well-formed."""
        ...

    @staticmethod
    def prompt_parts(
        task_text: str,
        history: Sequence[tuple[str, str]],
        observation: str,
        admissible_actions: Sequence[str],
        history_length: int,
    ) -> PromptParts:
        """The prompt of step `len(history)` (0-based); `history` holds (observation, action) of all past steps,
        of which the last `history_length` are shown."""
        ...


def check_split(split: str, known: Sequence[str]) -> None:
    """Raise ConfigError that lists the `known` splits unless `split` is one of them."""
    if split not in known:
        raise ConfigError(f"split: unknown split {split!r}; known: {', '.join(known)}")


_Answer = TypeVar("_Answer")
WAKE_S = 0.5
"""So often a wait looks up: a stage's time limit, raised by another thread, is seen only then."""


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Of this process, in a thread of its own for the process's life: connections stay open between iterations."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="environments", daemon=True).start()
    return loop


def in_background(work: Coroutine[Any, Any, _Answer]) -> Future[_Answer]:
    """Start `work` on the event loop that all environments of this process share."""
    return asyncio.run_coroutine_threadsafe(work, _event_loop())


@overload
def result_of(answer: Coroutine[Any, Any, _Answer]) -> _Answer: ...
@overload
def result_of(answer: _Answer | Coroutine[Any, Any, _Answer]) -> _Answer: ...
def result_of(answer: Any) -> Any:
    """What `reset` or `step` returned, waited for where it is a coroutine. Not to be called in a coroutine."""
    if not isinstance(answer, Coroutine):
        return answer
    waiting = in_background(answer)
    try:
        while not wait([waiting], WAKE_S).done:
            pass
        return waiting.result()
    finally:
        waiting.cancel()


_BLANK = re.compile(r"<your [^<>]+>")


def is_offered(action: str, admissible_actions: Sequence[str]) -> bool:
    """Whether the world offered `action`, itself or as one with a blank, `<your ...>`, that it fills with something."""
    return action in admissible_actions or any(
        re.fullmatch(".+".join(map(re.escape, _BLANK.split(offered))), action, re.DOTALL)
        for offered in admissible_actions
        if has_blank(offered)
    )


def has_blank(action: str) -> bool:
    """Whether an action on offer stands for all that fill its blank."""
    return _BLANK.search(action) is not None


@runtime_checkable
class HasSplits(Protocol):
    """An environment that can name its splits, for listing them."""

    def splits(self) -> Sequence[str]:
        """The splits that `tasks` knows with these options."""
        ...


@dataclass(frozen=True)
class ActionWords:
    """How the actions of an environment read, for rules that put them into skills: the attribute `action_words` of an
    environment that says so (`action_words_of`). An action's verb is its text up to the first blank."""

    passive_verbs: tuple[str, ...] = ()
    """Verbs that change nothing: a plan leaves them out."""
    moving_verbs: tuple[str, ...] = ()
    """Verbs that only lead to where something is done, such as going and opening. The first of them starts a new way,
    which makes the moves before it a detour that a plan leaves out."""
    failed_observations: tuple[str, ...] = ("Nothing happens.",)
    """How what the world says to an action without effect begins."""
    cut_before: Mapping[str, str] = field(default_factory=dict)
    """By verb the text at which the general form of an action ends, where what follows differs from task to task:
    `{"take": " from "}` makes "take apple" of "take apple 1 from desk 2"."""
    tags: tuple[str, ...] = ()
    """Tags of which one stands around a whole action and says of which kind it is: `<search>Tavi</search>`."""
    answer_tag: str | None = None
    """The one of `tags` around an answer, which no skill may tell: a policy would learn to say it, not to find it."""
    leading_back: tuple[str, ...] = ()
    """Actions that lead to where the player came from, which one state need not share: no step skill names them."""


@runtime_checkable
class HasActionWords(Protocol):
    """An environment that says how its actions read."""

    action_words: ActionWords


def action_words_of(environment: Environment) -> ActionWords:
    """The environment's `action_words`; the defaults where it has none."""
    return environment.action_words if isinstance(environment, HasActionWords) else ActionWords()


@runtime_checkable
class HasForbiddenTexts(Protocol):
    """An environment that knows what no skill may tell, such as a question's answers; the gates look for it."""

    def forbidden_texts(self, task: Task) -> Sequence[str]:
        """Texts whose words no skill of `task` may hold."""
        ...


@runtime_checkable
class HasStateKey(Protocol):
    """An environment that says which of its states are the same, because what the player sees need not show it (what
    was chosen, what was read): hindsight joins what siblings did in one state. Without it, what was seen and on offer
    stands for the state."""

    def state_key(self) -> str:
        """A short text, equal in two states of a task where all that matters for winning is. Recorded with each step,
        never shown to the policy."""
        ...


def state_key_of(environment: Environment) -> str | None:
    """The key of the state that the environment is in; None where it says none."""
    state_key = getattr(environment, "state_key", None)  # at each step: a protocol's check takes fifty times as long
    return None if state_key is None else state_key()


@dataclass(frozen=True)
class Decision:
    """What an expert does next, and the reasoning that leads there in a few words."""

    action: str
    thought: str


class Expert(Protocol):
    """Plays one episode from what the player sees, for imitation."""

    def observe(self, action: str, observation: str) -> None:
        """Take in what an action (anybody's) led to."""
        ...

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        """The next action."""
        ...


@runtime_checkable
class HasClumsyActions(Protocol):
    """An expert that knows what a clumsy player might do; without it that is any action on offer."""

    def clumsy_actions(self, admissible_actions: Sequence[str]) -> Sequence[str]:
        """Actions that somebody might take now who neither reads nor thinks."""
        ...


def clumsy_actions_of(expert: Expert, admissible_actions: Sequence[str]) -> Sequence[str]:
    """What a clumsy player might do now; nothing where no actions are listed and the expert knows none."""
    if isinstance(expert, HasClumsyActions):
        return expert.clumsy_actions(admissible_actions)
    return admissible_actions


@runtime_checkable
class HasExpert(Protocol):
    """An environment that can show how it is played; a warm start needs one."""

    @property
    def fixed_phrases(self) -> Sequence[str]:
        """The wording that its prompts share, and the names and ids that actions take over from them: a tiny tokenizer
        makes one token of each, wherever it stands, so that copying one is copying one token."""
        ...

    def expert(self, observation: str) -> Expert:
        """A new expert for the episode that `reset` just started with `observation`."""
        ...

    @staticmethod
    def response_text(decision: Decision) -> str:
        """The decision as a policy would have to write it, so that `parse_action` finds the action."""
        ...


@dataclass(frozen=True)
class _Registration:
    options: type[BaseModel]
    factory: Callable[[Any], Environment]


BUILT_IN = {
    name: f"envs.{name}"
    for name in ("alfworld", "webshop", "search_qa", "scienceworld", "gymnasium", "textarena", "openenv")
}
_REGISTRY: dict[str, _Registration] = {}


def register(name: str, options: type[BaseModel], factory: Callable[[Any], Environment]) -> None:
    """Make `name` available to `make`: `factory` gets the validated `options`.

    Raises ConfigError for a name that another module's environment has.
    """
    module = factory.__module__
    owner = BUILT_IN.get(name) or (_REGISTRY[name].factory.__module__ if name in _REGISTRY else module)
    if module != owner:
        raise ConfigError(f"environment.name: {module} registers {name!r}, which is the environment of {owner}")
    _REGISTRY[name] = _Registration(options, factory)


def _registration(name: str) -> _Registration:
    module, _, registered = name.rpartition(":")
    if module:
        imported(name, "environment.name")  # which registers it
    elif name in BUILT_IN:
        importlib.import_module(BUILT_IN[name])
    if registered not in _REGISTRY and module:
        raise ConfigError(f"environment.name: module {module!r} registers no environment {registered!r}")
    if registered not in _REGISTRY:
        known = sorted({*_REGISTRY, *BUILT_IN})
        raise ConfigError(
            f"environment.name: unknown environment {name!r}; known: {', '.join(known)}, "
            "or module:name for one that your module registers"
        )
    return _REGISTRY[registered]


def options_model(name: str) -> type[BaseModel]:
    """The model of the options of the environment called `name`. Raises ConfigError as `make`."""
    return _registration(name).options


def validate_options(name: str, options: Mapping[str, Any] | BaseModel | None) -> BaseModel:
    """The environment's options as its own model. Raises ConfigError that names the field and the nearest valid one."""
    model = options_model(name)
    if isinstance(options, model):
        return options
    try:
        return model.model_validate(dict(options or {}))
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, model, "environment.options")) from None


def make(name: str, options: Mapping[str, Any] | BaseModel | None = None) -> Environment:
    """A new environment called `name`: a built-in one, one registered before, or `module:name`, which imports `module`
    and takes what it registered as `name`.

    Raises ConfigError for an unknown name, a module that cannot be imported, and bad options.
    """
    return _registration(name).factory(validate_options(name, options))
