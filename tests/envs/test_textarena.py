"""The adapter on TextArena's own games: for one, for two against a fixed opponent, and those that are refused."""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from envs.base import Task, is_offered, make
from opid_core.errors import ConfigError, EnvironmentFault
from opid_core.rollout.prompting import render

# Not imported here: it takes seconds in each process that collects the tests.
pytestmark = pytest.mark.skipif(find_spec("textarena") is None, reason="needs the extra `textarena`")
NUMBERS = {"game": "GuessTheNumber-v0", "actions": ["[<your number>]"]}
DILEMMA = {"game": "IteratedPrisonersDilemma-v0", "arguments": {"num_rounds": 2, "communication_turns": 0}}


def started(options: dict[str, Any], seed: int = 0) -> tuple[Any, str]:
    environment = make("textarena", options)
    return environment, str(environment.reset(Task(f"seed-{seed}", "", seed)))


def cooperates(seen: str) -> str:
    """An opponent that never thinks; it has read the rules."""
    assert "Prisoner" in seen
    return "[cooperate]"


def draws(seen: str) -> str:
    """An opponent that tosses a coin."""
    return random.choice(["[cooperate]", "[defect]"])


def silent(seen: str) -> None:
    """No opponent: it gives no move."""


def test_a_missing_package_is_told_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    monkeypatch.setitem(sys.modules, "textarena.envs.registration", None)
    with pytest.raises(ConfigError, match=r"environment\.name: .*opid\[textarena\]"):
        make("textarena", {"actions": ["not asked for before"]})


def test_a_game_for_one_is_played_to_its_end():
    environment, seen = started(NUMBERS)
    assert environment.splits() == ("train", "valid_unseen")
    assert environment.task_text.startswith("You are Player 0. You are playing Guess The Number.")
    assert seen == "The game begins."
    assert environment.admissible_actions == ("[<your number>]",)
    assert is_offered("[13]", environment.admissible_actions)
    results = [environment.step(move) for move in ("[12]", "14", "[13]")]  # the game itself puts 14 in brackets
    assert [(one.observation, one.done, one.won, one.reward, one.score) for one in results] == [
        ("The target number is higher.", False, False, 0.0, 0.0),
        ("The target number is lower.", False, False, 0.0, 0.0),
        ("Congratulations! You guessed the correct number.", True, True, 1.0, 1.0),
    ]


def test_a_lost_game_has_the_packages_reward_as_its_score():
    environment, _ = started({**NUMBERS, "arguments": {"max_turns": 1}})
    environment.step("[20]")
    last = environment.step("[19]")
    assert (last.done, last.won, last.reward) == (True, False, 0.0)
    assert 0 < last.score < 1
    assert "The turn limit has been reached." in last.observation


def test_what_is_no_move_is_the_games_business():
    environment, _ = started(NUMBERS)
    first, second = environment.step("[21]"), environment.step("[22]")
    assert first.observation.startswith("You attempted an invalid move.")
    assert (first.done, second.done, second.won) == (False, True, False)
    assert second.observation == "Invalid Move: Invalid move. Player 0 guessed a number outside the range specified."


def test_one_seed_is_one_game_whatever_else_is_played_or_drawn():
    """2048 puts a new tile at random after each move."""
    moves = ["[up]", "[left]", "[down]", "[right]"] * 3

    def played(seed: int, beside: bool) -> list[str]:
        environment, seen = started({"game": "2048-v0"}, seed)
        other = started({"game": "2048-v0"}, seed + 1)[0] if beside else None
        told = [seen]
        for move in moves:
            if other:
                other.step(move)
                random.random()
            told.append(environment.step(move).observation)
        return told

    random.seed(5)
    drawn = random.getstate()
    alone = played(3, beside=False)
    assert random.getstate() == drawn
    assert played(3, beside=True) == alone
    assert played(4, beside=False) != alone


def test_a_game_for_two_against_a_fixed_opponent():
    environment, _ = started({**DILEMMA, "opponent": f"{__name__}:cooperates"})
    first, *_, last = [environment.step("[defect]") for _ in range(4)]  # each round is talk, then a choice
    assert first.observation.splitlines()[0] == "[cooperate]"
    assert (first.done, first.won, first.reward, first.score) == (False, False, 0.0, 0.0)
    assert (last.done, last.won, last.reward, last.score) == (True, True, 1.0, 1.0)
    assert last.observation.endswith("Player 0 wins 10 - 0.")
    drawn, _ = started({**DILEMMA, "opponent": f"{__name__}:cooperates"})
    steps = [drawn.step("[cooperate]") for _ in range(4)]
    assert (steps[-1].done, steps[-1].won, steps[-1].score) == (True, False, 0.0)


def test_an_opponent_that_draws_draws_the_episodes_numbers():
    def game(seed: int, before: int) -> list[str]:
        random.seed(before)  # what others drew before is nothing to the game
        environment, _ = started({**DILEMMA, "arguments": {"num_rounds": 8}, "opponent": f"{__name__}:draws"}, seed)
        return [environment.step("[cooperate]").observation for _ in range(16)]

    assert game(3, before=1) == game(3, before=2)
    assert game(3, before=1) != game(4, before=1)


def test_a_prompt_has_the_rules_as_its_task():
    environment, seen = started(NUMBERS)
    prompt = render(environment.prompt_parts(environment.task_text, [(seen, "[3]")], "Higher.", ["[<your number>]"], 5))
    assert prompt.splitlines()[1] == "You are Player 0. You are playing Guess The Number."
    assert prompt.splitlines()[-4:-1] == [
        "You are now at step 2. Current observation: Higher.",
        "Admissible actions:",
        "[<your number>]",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "GuessTheNumbr-v0"}, "no game 'GuessTheNumbr-v0'; near: GuessTheNumber-v0"),
        ({"game": "Wordle-v0"}, "Wordle-v0 downloads word lists"),
        ({"game": "WordLadder-v0-train"}, "WordLadder-v0 downloads word lists"),
        ({"game": "TwentyQuestions-v0"}, "TwentyQuestions-v0 asks a model behind an API"),
        ({"game": "TicTacToe-v0"}, "does not begin with one player; a game for two needs an `opponent`"),
        ({**NUMBERS, "opponent": f"{__name__}:cooperates"}, "does not begin with two players"),
        ({**NUMBERS, "arguments": {"min": 1}}, "does not begin with one player"),
        ({**DILEMMA, "opponent": f"{__name__}:nobody"}, r"options\.opponent: .*:nobody is no function"),
        ({**DILEMMA, "opponent": "no_such_module:f"}, r"options\.opponent: cannot import module"),
    ],
)
def test_what_cannot_be_played_is_one_config_error(options, message):
    with pytest.raises(ConfigError, match=message):
        make("textarena", options)


def test_an_opponent_without_a_move_and_a_game_that_fails():
    environment, _ = started({**DILEMMA, "opponent": f"{__name__}:silent"})
    with pytest.raises(ConfigError, match=r"options\.opponent: .*:silent gave None"):
        environment.step("[defect]")
    environment, _ = started(NUMBERS)
    with pytest.raises(EnvironmentFault, match=r"textarena, GuessTheNumber-v0: TypeError"):
        environment.step(None)
