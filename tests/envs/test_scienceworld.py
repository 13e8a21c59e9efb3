"""ScienceWorld: what needs neither its package nor Java, then the real package where both are there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import types
from collections.abc import Iterator

import pytest

from envs import scienceworld
from envs.base import TURN_LINE, Decision, HasExpert, HasSplits, HasStateKey, Task, is_offered, make
from envs.scienceworld import ScienceWorldEnvironment, Solution
from opid_core.errors import ConfigError, DataError, InfrastructureError
from opid_core.rollout.prompting import render

needs_java = pytest.mark.skipif(
    importlib.util.find_spec("scienceworld") is None or shutil.which("java") is None,
    reason="needs the package scienceworld (pip install 'opid[scienceworld]') and a Java runtime",
)
FIND = {"task_types": ["lifespan-longest-lived"]}


@pytest.fixture
def package_of_two_tasks(monkeypatch):
    """Stands in for the package where only its list of tasks is read."""
    constants = types.ModuleType("scienceworld.constants")
    constants.ID2TASK = {"1-1": "boil", "4-1": "find-plant"}  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "scienceworld", types.ModuleType("scienceworld"))
    monkeypatch.setitem(sys.modules, "scienceworld.constants", constants)


def test_a_missing_package_is_told_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "scienceworld", None)
    monkeypatch.setitem(sys.modules, "scienceworld.constants", None)
    with pytest.raises(ConfigError, match=r"environment\.name: .*opid\[scienceworld\]"):
        make("scienceworld")


def test_a_missing_java_is_told_before_any_work(package_of_two_tasks, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"environment\.name: .*`java`"):
        make("scienceworld")


def test_an_unknown_task_type_is_told_with_the_known_ones(package_of_two_tasks, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(ConfigError, match=r"task_types: .*'find-plnt'.*boil, find-plant"):
        make("scienceworld", {"task_types": ["find-plnt"]})
    with pytest.raises(ConfigError, match=r"split: .*'valid'.*train, dev, test"):
        make("scienceworld").tasks("valid")


def test_a_prompt_shows_what_is_around_now_alone():
    history = [("The task begins.\nAround you: a kitchen", "go to hallway")]
    parts = ScienceWorldEnvironment.prompt_parts(
        "Boil water.", history, "You move.\nAround you: a hallway", ["wait", "open <your object>"], 5
    )
    assert render(parts).splitlines()[1:-1] == [
        "Boil water.",
        "Steps taken so far: 1. Your latest observations and actions:",
        "Step 1, observation: The task begins.",
        "Step 1, action: go to hallway",
        "You are now at step 2. Current observation: You move.",
        "Around you: a hallway",
        "Admissible actions:",
        "wait",
        "open <your object>",
    ]
    assert parts.turn.startswith(TURN_LINE)


def test_the_solution_goes_on_after_looks_and_refusals_and_not_after_deeds():
    solution = Solution(["open door", "go to hallway"])
    assert solution.decide(()).action == "open door"
    for action, answer in (("look around", "A room."), ("opne door", "No known action matches that input.\nAround")):
        solution.observe(action, answer)
        assert solution.decide(()).action == "open door"
    solution.observe("open door", "The door is now open.")
    assert solution.decide(()).action == "go to hallway"
    solution.observe("eat orange", "Delicious.")
    with pytest.raises(DataError, match="'eat orange'"):
        solution.decide(())
    done = Solution([])
    assert done.decide(()) == Decision("wait1", "All is done; let time pass.")


def world() -> ScienceWorldEnvironment:
    made = make("scienceworld", FIND)
    assert isinstance(made, ScienceWorldEnvironment)
    return made


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Iterator[ScienceWorldEnvironment]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPID_CACHE", str(tmp_path_factory.mktemp("cache")))
        scienceworld._variations.cache_clear()
        yield world()
        scienceworld._variations.cache_clear()
        scienceworld.close()


@needs_java
def test_the_real_splits(environment):
    assert all(isinstance(environment, optional) for optional in (HasExpert, HasSplits, HasStateKey))
    tasks = {split: environment.tasks(split) for split in environment.splits()}
    assert {split: len(of_split) for split, of_split in tasks.items()} == {"train": 62, "dev": 31, "test": 32}
    assert len({task.task_id for of_split in tasks.values() for task in of_split}) == 125
    assert {task.task_type for task in tasks["train"]} == {"lifespan-longest-lived"}


@needs_java
def test_the_real_solution_wins_beside_other_episodes(environment):
    task = environment.tasks("train")[0]
    first = environment.reset(task)
    other = world()
    assert other.reset(task) == first
    assert other.state_key() == environment.state_key()
    assert environment.task_text.startswith("Your task is to find the animal with the longest life span.")
    expert, result = environment.expert(first), None
    for action in ("look around", *[""] * 30):
        action = action or expert.decide(environment.admissible_actions).action
        assert environment.parse_action(environment.response_text(Decision(action, ""))) == (action, True)
        assert is_offered(action, environment.admissible_actions)
        result = environment.step(action)
        other.step("wait1")
        expert.observe(action, result.observation)
        if result.done:
            break
    assert result
    assert (result.won, result.done, result.reward, result.score) == (True, True, 1.0, 1.0)
    assert other.state_key() != environment.state_key()


@needs_java
def test_the_wrong_choice_ends_the_real_episode_with_a_score_of_0(environment):
    environment.reset(environment.tasks("train")[0])
    assert "reset task" not in environment.admissible_actions
    result = environment.step("focus on air")
    assert (result.won, result.done, result.reward, result.score) == (False, True, 0.0, 0.0)


@needs_java
def test_a_java_that_died_is_an_infrastructure_fault_and_the_next_reset_starts_another(environment):
    task = environment.tasks("train")[0]
    first = environment.reset(task)
    (gateway,) = scienceworld._gateways.values()
    gateway.java_process.kill()
    gateway.java_process.wait()
    with pytest.raises(InfrastructureError, match="died"):
        environment.step("look around")
    assert environment.reset(task) == first


@needs_java
def test_a_task_that_the_package_does_not_know_is_told(environment):
    with pytest.raises(DataError, match=r"scienceworld, task find-plant/999: "):
        environment.reset(Task("find-plant/999", "find-plant", 999))
