"""Any Gymnasium environment that can be played in text, as an environment of a campaign.

An adapter of one file. Actions are texts, or a numbered few that the config names; what is seen is a text, a few
numbers, or what the environment draws in characters. Needs the extra `gymnasium`.
"""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from envs.base import ActionWords, Decision, Environment, StepResult, Task, register
from envs.seeded_world import NOT_OFFERED, ROLE, SeededOptions, SeededWorld, seeded_prompt_parts
from envs.wording import (
    NUMBERED_PHRASES,
    TAGGED_PHRASES,
    listed_or_free_turn,
    tagged_response,
)
from opid_core.errors import ConfigError, EnvironmentFault

DISCOUNT = 0.99
"""How much the expert prefers an early win."""

_SILENCE = "Nothing is said."
"""What the policy reads where the environment tells an empty text."""
_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_COLOURED = re.compile(r"\x1b\[([\d;]+)m(.*?)\x1b\[0m", re.DOTALL)
_ESCAPE = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_Answer = TypeVar("_Answer")


class GymnasiumOptions(SeededOptions):
    """Which environment, how it is told, and when it is won."""

    id: str = "FrozenLake-v1"
    """As `gymnasium.make` takes it; `module:Id-v0` imports a module that registers it."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `gymnasium.make`."""
    task: str = "reach the goal"
    """The prompt's task line: what is to be done, what is seen, and what the actions do where that is not plain."""
    actions: tuple[str, ...] = ()
    """Names of the actions of a `Discrete` space, in its order (default: their numbers); for a `Text` space what is
    offered, which may hold blanks, `say <your words>` (default: any text, and nothing is listed)."""
    observation: Literal["value", "rendering"] = "value"
    """What the policy sees: the observation itself, or the environment drawn in characters (`render_mode: ansi`), in
    which a background becomes brackets, and a colour its name: `[S]`, `<blue R>`."""
    field: str | None = None
    """The field of a `Dict` observation that is seen; `null`: the whole observation."""
    success: Annotated[str, Field(pattern=r"^(reward|return|terminated|info\..+)$")] = "reward"
    """What decides about a win after each step: the step's reward, the sum of all rewards, `info.KEY` (a number or a
    truth value in the step's info), or `terminated`: every end that is no time limit is a win."""
    success_from: float = 1.0
    """From this value of reward, return or info on the episode is won."""
    reward: Literal["success", "environment"] = "success"
    """The reward of a step: 1 for the win alone, or the environment's own."""


class GymnasiumEnvironment(SeededWorld):
    """One running episode; its task is the seed of the first reset.

    Raises ConfigError where the package is missing, the environment cannot be made, its spaces are no text, or its
    episodes do not follow from their seed.
    """

    prompt_parts = staticmethod(functools.partial(seeded_prompt_parts, ROLE))
    options: GymnasiumOptions
    response_text = staticmethod(tagged_response)
    action_words = ActionWords(failed_observations=(NOT_OFFERED,))

    def __init__(self, options: GymnasiumOptions) -> None:
        self.options, self.task_type = options, options.id
        self.admissible_actions: Sequence[str] = ()
        self.task_text = ""
        self._names = _names(options)

    def reset(self, task: Task) -> str:
        """Start the episode of the task's seed. Raises EnvironmentFault where the environment fails."""
        self._world = _make(self.options)
        self._value, info = _guarded(self.options, lambda: self._world.reset(seed=task.payload))
        self._return = 0.0
        self.task_text = f"Your task is to: {self.options.task}"
        return self._observe(info)

    def step(self, action: str) -> StepResult:
        """Do `action`; what is not on offer changes nothing. Raises EnvironmentFault where the environment fails."""
        if self._names:
            if action not in self.admissible_actions:
                return StepResult(NOT_OFFERED, reward=0.0, done=False, won=False)
            chosen: Any = self._names[action]
        elif action in self._world.action_space:
            chosen = action
        else:
            return StepResult(NOT_OFFERED, reward=0.0, done=False, won=False)
        self._value, reward, is_over, won, info = _guarded(self.options, lambda: self._world_step(chosen))
        return StepResult(
            self._observe(info),
            reward=reward if self.options.reward == "environment" else float(won),
            done=won or is_over,
            won=won,
        )

    def _world_step(self, chosen: Any) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
        """What the environment's step gave: observation, reward, whether the episode is over, is won, info."""
        value, reward, terminated, truncated, info = self._world.step(chosen)
        if not math.isfinite(reward := float(reward)):
            raise ValueError(f"reward: expected a finite number, got {reward}")
        self._return += reward
        return value, reward, bool(terminated or truncated), self._won(reward, terminated, info), info

    def _won(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        if self.options.success == "terminated":
            return bool(terminated)
        if self.options.success in ("reward", "return"):
            reached = reward if self.options.success == "reward" else self._return
        else:
            reached = float(info.get(self.options.success.removeprefix("info."), 0.0))
        return reached >= self.options.success_from

    def _observe(self, info: Mapping[str, Any]) -> str:
        """What the policy sees now; also sets the admissible actions."""
        self.admissible_actions = _guarded(self.options, lambda: self._offered(info))
        return _guarded(self.options, lambda: _as_text(self.options, self._world, self._value)) or _SILENCE

    def _offered(self, info: Mapping[str, Any]) -> list[str]:
        mask = info.get("action_mask")
        return [name for index, name in enumerate(self._names or self.options.actions) if mask is None or mask[index]]


class _WithState(GymnasiumEnvironment):
    """Where observations are of a finite space, the observation is the state."""

    def state_key(self) -> str:
        """The observation, whatever of it is seen."""
        return str(_value_text(self._value))


class _Tabular(_WithState):
    """With the table of what leads where, as Gymnasium's `toy_text` environments have it (`P`), the best actions are
    known."""

    @property
    def fixed_phrases(self) -> Sequence[str]:
        """The wording of its prompts, and its actions."""
        turn = listed_or_free_turn(tuple(self._names))
        return (ROLE, turn, *NUMBERED_PHRASES, *TAGGED_PHRASES, NOT_OFFERED, self.options.task, *self._names)

    def expert(self, observation: str) -> TableExpert:
        """Plays by the table and the state, which it asks the environment for."""
        values = _action_values(self.options.model_dump_json())
        return TableExpert(lambda: values[int(self._world.unwrapped.s)], self._names)


class TableExpert:
    """Takes the action of the highest discounted return. `values_now` gives the state's values, [actions]."""

    def __init__(self, values_now: Callable[[], np.ndarray], names: Mapping[str, int]) -> None:
        self._values_now = values_now
        self._index_of = {name: index for index, name in enumerate(names)}

    def observe(self, action: str, observation: str) -> None:
        """Nothing to take in: the environment itself knows the state."""

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        """The best of `admissible_actions`, the first of equals."""
        values = self._values_now()
        best = max(admissible_actions, key=lambda name: values[self._index_of[name]])
        return Decision(best, f"Best is {best}.")


# The package's side ---------------------------------------------------------------------------------------------------


def _make(options: GymnasiumOptions) -> Any:
    """A new environment of the package, without its limit of steps: a campaign has its own."""
    import gymnasium

    arguments = {"max_episode_steps": -1, "disable_env_checker": True, **options.arguments}
    if options.observation == "rendering":
        arguments["render_mode"] = "ansi"
    return gymnasium.make(options.id, **arguments)


def _guarded(options: GymnasiumOptions, question: Callable[[], _Answer]) -> _Answer:
    try:
        return question()
    except Exception as error:
        raise EnvironmentFault(f"gymnasium, {options.id}: {type(error).__name__}: {error}") from error


def _names(options: GymnasiumOptions) -> dict[str, int]:
    """Name -> action of a `Discrete` space; empty for a `Text` one."""
    return dict(_inspected(options.model_dump_json())[1])


@functools.lru_cache(maxsize=64)
def _inspected(options_json: str) -> tuple[type[GymnasiumEnvironment], tuple[tuple[str, int], ...]]:
    """What kind of environment it is, and its named actions; see `GymnasiumEnvironment` for what is refused."""
    options = GymnasiumOptions.model_validate_json(options_json)
    try:
        from gymnasium import spaces
    except ImportError as error:
        raise ConfigError(
            f"environment.name: gymnasium needs an extra ({error}): pip install 'opid[gymnasium]'"
        ) from None
    try:
        worlds = [_make(options), _make(options)]
        seen = [
            (_as_text(options, world, world.reset(seed=0)[0]), getattr(world.unwrapped, "P", None)) for world in worlds
        ]
    except ConfigError:
        raise
    except Exception as error:  # of an environment that anybody may have written
        raise ConfigError(
            f"environment.options.id: {options.id} cannot be made and reset: {type(error).__name__}: {error}"
        ) from None
    if seen[0] != seen[1]:
        raise ConfigError(
            f"environment.options.id: {options.id} begins in two ways with one seed: its arguments leave to chance "
            "what its seed does not decide"
        )
    space = worlds[0].action_space
    if isinstance(space, spaces.Discrete):
        count, first = int(space.n), int(space.start)
        names = options.actions or tuple(str(first + index) for index in range(count))
        if len(set(names)) != count:
            raise ConfigError(
                f"environment.options.actions: {options.id} has {count} actions, so give as many different names"
            )
        named = tuple((name, first + index) for index, name in enumerate(names))
    elif isinstance(space, spaces.Text):
        named = ()
    else:
        raise ConfigError(
            f"environment.options.id: the actions of {options.id} are {space}; only Discrete and Text can be written"
        )
    unwrapped = worlds[0].unwrapped
    if named and hasattr(unwrapped, "P") and hasattr(unwrapped, "s"):
        return _Tabular, named
    return (_WithState if _is_finite(worlds[0].observation_space) else GymnasiumEnvironment), named


def _is_finite(space: Any) -> bool:
    from gymnasium import spaces

    if isinstance(space, spaces.Tuple):
        return all(map(_is_finite, space.spaces))
    if isinstance(space, spaces.Dict):
        return all(map(_is_finite, space.spaces.values()))
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return len(space.shape) == 1  # `_value_text` tells no others
    return isinstance(space, spaces.Discrete)


def _as_text(options: GymnasiumOptions, world: Any, value: Any) -> str:
    """What is seen of `value`. Raises ConfigError where that is no text."""
    if options.observation == "rendering":
        drawn = world.render()
        if not isinstance(drawn, str):
            raise ConfigError(f"environment.options.observation: {options.id} does not draw itself in characters")
        return _plain(drawn).rstrip()
    if options.field is not None:
        if not isinstance(value, Mapping) or options.field not in value:
            known = f"; it has: {', '.join(value)}" if isinstance(value, Mapping) else ""
            raise ConfigError(f"environment.options.field: observations have no field {options.field!r}{known}")
        value = value[options.field]
    text = _value_text(value)
    if text is None:
        raise ConfigError(
            f"environment.options.observation: observations of {options.id} ({world.observation_space}) are neither "
            "text nor a few whole numbers; name a `field` of text, or take `rendering`"
        )
    return text


def _value_text(value: Any) -> str | None:
    """A text as it is, whole numbers one after the other; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, Mapping):
        texts = {name: _value_text(part) for name, part in value.items()}
        return None if None in texts.values() else "\n".join(f"{name}: {text}" for name, text in texts.items())
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer) and value.ndim == 1:
        return " ".join(map(str, value.tolist()))
    if isinstance(value, tuple):
        parts = [_value_text(part) for part in value]
        return None if None in parts else " ".join(map(str, parts))
    return None


def _plain(drawn: str) -> str:
    """A drawing without escape sequences; what they said is kept: `[S]` on a background, `<blue R>` in a colour."""

    def marked(match: re.Match[str]) -> str:
        codes = [int(code) for code in match[1].split(";") if code]
        if any(40 <= code < 48 for code in codes):  # a background in ANSI's codes; from 30 on a colour
            return f"[{match[2]}]"
        colours = [_COLOURS[code - 30] for code in codes if 30 <= code < 38]
        return f"<{colours[0]} {match[2]}>" if colours else match[2]

    return _ESCAPE.sub("", _COLOURED.sub(marked, drawn))


@functools.lru_cache(maxsize=8)
def _action_values(options_json: str) -> np.ndarray:
    """The discounted return of each action in each state, [states, actions], by value iteration on the environment's
    table."""
    table = _make(GymnasiumOptions.model_validate_json(options_json)).unwrapped.P
    states, actions = len(table), len(table[0])
    rows = [(state, action, *outcome) for state in table for action in table[state] for outcome in table[state][action]]
    state, action, probability, following, reward, ended = (np.array(column) for column in zip(*rows, strict=True))
    values = np.zeros((states, actions))
    for _ in range(1000):
        worth = probability * (reward + DISCOUNT * np.where(ended, 0.0, values.max(axis=1)[following]))
        improved = np.zeros_like(values)
        np.add.at(improved, (state, action), worth)
        if np.abs(improved - values).max() < 1e-9:
            break
        values = improved
    return values


def _environment(options: GymnasiumOptions) -> Environment:
    """The environment of `options`, with a state and an expert where there are such."""
    return _inspected(options.model_dump_json())[0](options)


register("gymnasium", GymnasiumOptions, _environment)
