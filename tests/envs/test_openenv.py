"""The adapter at a server of OpenEnv's protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest

from envs.base import Task, make, result_of
from opid_core.errors import ConfigError, DataError, EnvironmentFault, InfrastructureError
from tests.envs.open_env_server import open_env_server

SEEN = {"observation_field": "text"}


@pytest.fixture(scope="module")
def url():
    with open_env_server() as address:
        yield address


def started(url: str, seed: int = 8, **options: Any) -> tuple[Any, str]:
    environment: Any = make("openenv", {"url": url, **SEEN, **options})
    return environment, result_of(environment.reset(Task(f"seed-{seed}", "openenv", seed)))


def steps(environment: Any, *actions: str) -> list[tuple[str, float, bool, bool]]:
    results = [result_of(environment.step(action)) for action in actions]
    return [(one.observation, one.reward, one.done, one.won) for one in results]


def test_an_episode(url):
    environment, seen = started(url, task="guess it")
    assert (seen, environment.task_text) == ("Guess a number from 0 to 4.", "Your task is to: guess it")
    assert steps(environment, "1", "3") == [("wrong", 0.0, False, False), ("right", 1.0, True, True)]
    with pytest.raises(InfrastructureError, match="session"):
        steps(environment, "3")
    assert [len(environment.tasks(split)) for split in environment.splits()] == [10_000, 300]
    assert environment.tasks("train")[0] == Task("seed-300", "openenv", 300)
    with pytest.raises(ConfigError, match=r"split: .*'test'"):
        environment.tasks("test")


def test_episodes_are_sessions_of_their_own(url):
    one, other = started(url, 1)[0], started(url, 2)[0]
    assert steps(one, "2") == [("wrong", 0.0, False, False)]
    assert steps(other, "2") == [("right", 1.0, True, True)]
    result_of(one.reset(Task("", "", 2)))
    assert steps(one, "2") == [("right", 1.0, True, True)]


def test_a_field_that_says_nothing_yet_is_no_win():
    first, then = (
        {"type": "observation", "data": {"observation": {"text": "t", "solved": solved}, "reward": None, "done": False}}
        for solved in (None, True)
    )
    with open_env_server(lines=[json.dumps(one) for one in (first, first, then)]) as url:
        environment, _ = started(url, success="observation.solved")
        assert [won for *_, won in steps(environment, "look", "look")] == [False, True]


def test_named_actions_fields_and_rules(url):
    named = {"actions": {"three": {"message": "3"}, "four": {"message": "4"}}, "task_field": "text"}
    environment, seen = started(url, observation_field=None, success="observation.tries", success_from=2, **named)
    assert json.loads(seen) == {"text": "Guess a number from 0 to 4.", "tries": 0}
    assert environment.task_text == "Your task is to: Guess a number from 0 to 4."
    assert environment.admissible_actions == ("three", "four")
    assert steps(environment, "five", "four")[0] == ("Nothing happens.", 0.0, False, False)
    assert steps(environment, "four")[0][1:] == (1.0, True, True)  # the second try that the server saw
    by_end, _ = started(url, success="done")
    assert [result[-1] for result in steps(by_end, "1", "3")] == [False, True]
    by_return, _ = started(url, success="return", success_from=2)
    assert steps(by_return, "3") == [("right", 0.0, True, False)]


def test_where_no_session_is_left_an_episode_waits_for_one():
    with open_env_server(sessions=1) as url:
        first, _ = started(url)
        with pytest.raises(InfrastructureError, match=r"at capacity.*max_concurrent_envs"):
            started(url, wait_s=0.1)
        del first  # dropped by its loop in the middle, as an episode that was truncated
        second, _ = started(url, wait_s=20)
        assert steps(second, "3") == [("right", 1.0, True, True)]
        assert started(url, wait_s=20)[1]  # an episode that ended leaves its session at once


def test_what_goes_wrong_is_told_as_what_it_is(url):
    environment, _ = started(url)
    with pytest.raises(EnvironmentFault, match="EXECUTION_ERROR: it broke"):
        steps(environment, "fail")
    environment, _ = started(url, action_field="text")
    with pytest.raises(ConfigError, match=r"options\.action_field, actions: .*Field required"):
        steps(environment, "1")
    environment, _ = started(url, max_reply_bytes=1024)
    with pytest.raises(DataError, match=r"1024 bytes .*max_reply_bytes"):
        steps(environment, "long")
    with pytest.raises(ConfigError, match=r"environment\.options: .*'txt'.* text, tries"):
        started(url, observation_field="txt")
    with pytest.raises(InfrastructureError, match=r"ws://127\.0\.0\.1:1 .*ConnectionRefused"):
        started("http://127.0.0.1:1")


def test_a_proxy_is_never_asked_for_this_machine(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert started(url)[1]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[" * 100_000,
        "[]",
        '{"type": "state", "data": {}}',
        '{"type": "observation", "data": {"observation": "text"}}',
        '{"type": "observation", "data": {"observation": {}, "reward": "much"}}',
        '{"type": "observation", "data": {"observation": {}, "reward": NaN}}',
    ],
)
def test_an_answer_of_another_form_is_no_answer(line):
    with open_env_server(lines=[line]) as url, pytest.raises(DataError, match="openenv, http"):
        started(url)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "ftp://host"},
        {"url": "http://user:secret@host"},
        {"url": "http:///ws"},
        {"url": "http://h", "success": "luck"},
    ],
)
def test_options_that_cannot_be_meant(options):
    with pytest.raises(ConfigError, match=r"environment\.options\."):
        make("openenv", options)
