"""Games of TextArena as an environment of a campaign: a player alone, or against a fixed opponent.

An adapter of one file. Needs the extra `textarena`.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from pydantic import Field

from envs.base import StepResult, Task, register
from envs.seeded_world import SeededOptions, SeededWorld, seeded_prompt_parts
from opid_core.errors import ConfigError, EnvironmentFault, OpidError
from opid_core.sections import imported

UNAVAILABLE = {
    "nltk": "downloads word lists",
    "word_lists": "downloads word lists",
    "OpenRouter": "asks a model behind an API",
}
"""By a word of a game's source why it cannot be played without a network."""

_ROLE = "You play a game that is told in text."
_WRAPPED = ("-raw", "-train")
_drawing = threading.Lock()
"""The games draw from the process's own random numbers: one game at a time has them."""


class TextArenaOptions(SeededOptions):
    """Which game, and against whom."""

    game: str = "GuessTheNumber-v0"
    """The game's id in TextArena. Games that download word lists or ask a model are refused."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `textarena.make`."""
    actions: tuple[str, ...] = ()
    """What the prompt offers, which may hold blanks, `[<your number>]`; empty: nothing is listed, and the game's own
    rules say how a move is written. Any move is handed on to the game."""
    opponent: str | None = None
    """The other player of a game for two: a function of an importable module, `module:name`, from the text that it sees
    (its rules first) to its move; `null`: a game for one."""
    success_from: float = 1.0
    """From this reward at the end on the game is won."""


class TextArenaEnvironment(SeededWorld):
    """One running game; its task is the game's seed, and the policy is player 0. The task line is the game's rules.

    Raises ConfigError where the package is missing, and for a game that cannot be played or does not follow from its
    seed.
    """

    prompt_parts = staticmethod(functools.partial(seeded_prompt_parts, _ROLE))
    options: TextArenaOptions

    def __init__(self, options: TextArenaOptions) -> None:
        self.options, self.task_type = options, options.game
        self.admissible_actions: Sequence[str] = options.actions
        self.task_text = ""
        _check(options.model_dump_json())
        self._opponent = _opponent(options)

    def reset(self, task: Task) -> str:
        """Start the game of the task's seed. Raises EnvironmentFault where the game fails."""
        self._table = Table(self.options, task.payload)
        rules, seen = self._table.begun()
        self.task_text = rules
        done = self._let_opponent_play()
        return "\n".join(filter(None, [seen, *self._table.news(done)])) or "The game begins."

    def step(self, action: str) -> StepResult:
        """Make a move, and let the opponent make theirs. Raises EnvironmentFault where the game fails."""
        done = self._table.move(action) or self._let_opponent_play()
        seen = "\n".join(self._table.news(done)) or "Nothing is said."
        if not done:
            return StepResult(seen, reward=0.0, done=False, won=False, score=0.0)
        reward = self._table.reward()
        won = reward >= self.options.success_from
        return StepResult(seen, reward=float(won), done=True, won=won, score=min(max(reward, 0.0), 1.0))

    def _let_opponent_play(self) -> bool:
        """Whether the game is over after the opponent's moves, if it is their turn."""
        while self._opponent is not None and (seen := self._table.opponents_view()) is not None:
            with self._table.game_draws():  # theirs are the episode's too: the same moves lead to the same game
                move = self._opponent(seen)
            if not isinstance(move, str):
                raise ConfigError(f"environment.options.opponent: {self.options.opponent} gave {move!r}, no text")
            if self._table.move(move):
                return True
        return False


class Table:
    """A game of the package that is being played, with random numbers of its own. Raises EnvironmentFault where it
    fails."""

    def __init__(self, options: TextArenaOptions, seed: int) -> None:
        self._where = f"textarena, {options.game}"
        generator = np.random.RandomState(seed % 2**32)  # NumPy takes no larger one
        self._draws = (random.Random(seed).getstate(), generator.get_state())
        with self._playing():
            self._game = _make(options)
            self._game.reset(num_players=1 if options.opponent is None else 2, seed=seed)
        self._messages: dict[int, list[tuple[str, str]]] = {0: [], 1: []}

    def begun(self) -> tuple[str, str]:
        """The rules as player 0 reads them, and what else they see at first."""
        self._listen()
        rules = "\n".join(text for kind, text in self._messages[0] if kind == "PROMPT")
        seen = "\n".join(text for kind, text in self._messages[0] if kind != "PROMPT")
        self._messages[0] = []
        return rules, seen

    def move(self, action: str) -> bool:
        """Whether the game is over after the move of the player whose turn it is."""
        with self._playing():
            done, _ = self._game.step(action)
        self._listen()
        return bool(done)

    def news(self, done: bool) -> list[str]:
        """What player 0 was told since they were asked last; at the end also why it is one."""
        texts, self._messages[0] = [text for _, text in self._messages[0]], []
        reason = self._game.state.game_info[0].get("reason") if done else None
        return [*texts, str(reason)] if reason and reason not in texts else texts

    def opponents_view(self) -> str | None:
        """All that the opponent was told so far, the rules first; None where it is not their turn."""
        if self._game.state.current_player_id == 0:
            return None
        return "\n".join(text for _, text in self._messages[1])

    def reward(self) -> float:
        """Player 0's, of a game that is over."""
        rewards, _ = self._game.close()
        return float((rewards or {}).get(0, 0.0))

    def _listen(self) -> None:
        """Take in what the game has told its players; their own moves they know."""
        for player, messages in self._game.state.observations.items():
            news = [(kind.name, text.strip()) for by, text, kind in messages if by != player and text.strip()]
            self._messages.setdefault(player, []).extend(news)
            messages.clear()

    @contextmanager
    def _playing(self) -> Iterator[None]:
        try:
            with self.game_draws():
                yield
        except OpidError:
            raise
        except Exception as error:  # of a game that anybody may have written
            raise EnvironmentFault(f"{self._where}: {type(error).__name__}: {error}") from error

    @contextmanager
    def game_draws(self) -> Iterator[None]:
        """Whoever draws random numbers here draws this game's next ones."""
        with _drawing:
            others = random.getstate(), np.random.get_state()
            random.setstate(self._draws[0])
            np.random.set_state(self._draws[1])
            try:
                yield
            finally:
                self._draws = random.getstate(), np.random.get_state()
                random.setstate(others[0])
                np.random.set_state(others[1])


def _make(options: TextArenaOptions) -> Any:
    """The game, which tells each player only what is new; moves are taken as its default wrappers take them."""
    import textarena
    from textarena.envs.registration import ENV_REGISTRY

    name = _plain(options.game)
    raw = f"{name}-raw" if f"{name}-raw" in ENV_REGISTRY else name
    game = textarena.make(raw, **options.arguments)
    while isinstance(game, textarena.ObservationWrapper):
        game = game.env
    for wrapper in ENV_REGISTRY[name].default_wrappers or []:
        if isinstance(wrapper, type) and issubclass(wrapper, textarena.ActionWrapper):
            game = wrapper(game)
    return game


def _plain(game: str) -> str:
    """The id without what says how the package would show the game."""
    return next((game.removesuffix(end) for end in _WRAPPED if game.endswith(end)), game)


def _opponent(options: TextArenaOptions) -> Callable[[str], str] | None:
    if options.opponent is None:
        return None
    function = imported(options.opponent, "environment.options.opponent")
    if not callable(function):
        raise ConfigError(f"environment.options.opponent: {options.opponent} is no function of its module")
    return cast(Callable[[str], str], function)


@functools.lru_cache(maxsize=64)
def _check(options_json: str) -> None:
    """See `TextArenaEnvironment` for what is refused; before a game's module is imported, which may download."""
    options = TextArenaOptions.model_validate_json(options_json)
    try:
        from textarena.envs.registration import ENV_REGISTRY
    except ImportError as error:
        raise ConfigError(
            f"environment.name: textarena needs an extra ({error}): pip install 'opid[textarena]'"
        ) from None
    name = _plain(options.game)
    if name not in ENV_REGISTRY:
        near = difflib.get_close_matches(name, [game for game in ENV_REGISTRY if not game.endswith(_WRAPPED)], n=5)
        raise ConfigError(
            f"environment.options.game: TextArena has no game {name!r}; near: {', '.join(near) or 'none'}"
        )
    for word, reason in UNAVAILABLE.items():
        if word in _source(ENV_REGISTRY[name].entry_point):
            raise ConfigError(f"environment.options.game: {name} {reason}, so it is not offered")
    try:
        first, second = (Table(options, seed=0).begun() for _ in range(2))
    except EnvironmentFault as fault:
        players = "one player; a game for two needs an `opponent`" if options.opponent is None else "two players"
        raise ConfigError(f"environment.options.game: {name} does not begin with {players}: {fault}") from None
    if first != second:
        raise ConfigError(f"environment.options.game: {name} begins in two ways with one seed")


def _source(entry_point: Any) -> str:
    """The text of the module that makes a game, which is not imported."""
    if not isinstance(entry_point, str):
        return ""
    try:
        spec = importlib.util.find_spec(entry_point.partition(":")[0])
    except Exception:  # of a game's package: that it cannot be imported is told when the game is made
        return ""
    loader: Any = spec.loader if spec else None
    return (loader.get_source(spec.name) or "") if spec and hasattr(loader, "get_source") else ""


register("textarena", TextArenaOptions, TextArenaEnvironment)
