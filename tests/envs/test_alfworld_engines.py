"""The two engines of the environment; and what happens when a process of textworld breaks."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys

import pytest

from envs.alfworld import AlfworldEnvironment, AlfworldOptions, processes
from envs.base import make
from opid_core.errors import ConfigError, DataError, EnvironmentFault
from tests.envs.test_alfworld_world import small_game

SMALL = {"generator": {"size": "small"}}


def textworld_environment() -> AlfworldEnvironment:
    pytest.importorskip("textworld", reason="textworld is not installed")
    pytest.importorskip("alfworld", reason="alfworld is not installed")
    environment = make("alfworld", {"engine": "textworld", **SMALL})
    assert isinstance(environment, AlfworldEnvironment)
    return environment


def world_of(environment: AlfworldEnvironment) -> processes.TextworldWorld:
    assert isinstance(environment.world, processes.TextworldWorld)
    return environment.world


def wait_for_end(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 60)[0], "the process still runs"
    os.close(descriptor)


def test_the_same_actions_give_the_same_observations():
    native, textworld = make("alfworld", SMALL), textworld_environment()
    tasks = native.tasks("train")[:6]
    assert textworld.tasks("train")[:6] == tasks
    for task in tasks[::2]:
        assert native.reset(task) == textworld.reset(task)
        rng = random.Random(task.task_id)
        for _ in range(25):
            assert native.admissible_actions == textworld.admissible_actions
            assert native.task_text == textworld.task_text
            action = rng.choice([*native.admissible_actions, "fly away"])
            assert native.step(action) == textworld.step(action)


def test_a_broken_process_breaks_its_own_episode_alone():
    first, second, third = (textworld_environment() for _ in range(3))
    task = first.tasks("train")[0]
    observation = first.reset(task)
    assert second.reset(task) == third.reset(task) == observation
    os.kill(world_of(first).process_id, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match=r"game train/000000: its textworld process (died|is gone)"):
            first.step("look")
    os.kill(world_of(second).process_id, signal.SIGSTOP)  # it hangs
    ended = os.pidfd_open(world_of(second).process_id)
    world_of(second).timeout_s = 0.1
    with pytest.raises(EnvironmentFault, match=r"gave no answer within 0\.1 s"):
        second.step("look")
    wait_for_end(ended)
    assert third.step("look").observation.startswith("You are in the middle of a room.")
    ended = os.pidfd_open(world_of(third).process_id)
    assert third.reset(task) == observation
    wait_for_end(ended)  # that of the episode before
    assert first.reset(task) == observation  # the next episode has a process of its own


def test_a_server_that_died_is_started_again():
    environment = textworld_environment()
    task = environment.tasks("train")[0]
    observation = environment.reset(task)
    ended = os.pidfd_open(world_of(environment).process_id)
    processes._servers[0].process.kill()
    wait_for_end(ended)
    with pytest.raises(EnvironmentFault):
        environment.step("look")
    processes._servers[0].process.wait()
    assert environment.reset(task) == observation


def test_an_error_of_textworld_is_a_fault_that_names_the_game():
    textworld_environment()
    world = processes.TextworldWorld(small_game())
    world.game = small_game("(isHot nothing)")  # which is refused before it gets there, otherwise
    with pytest.raises(EnvironmentFault, match=r"game small/\(isHot nothing\): textworld failed:\n"):
        world.reset()


def test_processes_end_when_the_parent_is_killed():
    """Even one that hangs: the kernel kills it."""
    textworld_environment()
    script = """
import os, signal
from envs.base import make
environment = make("alfworld", {"engine": "textworld", "generator": {"size": "small"}})
environment.reset(environment.tasks("train")[0])
os.kill(environment.world.process_id, signal.SIGSTOP)
print(environment.world.process_id, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        ended = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    wait_for_end(ended)


def test_a_game_that_cannot_be_used_is_refused_by_name():
    with pytest.raises(DataError, match="game small/bad: pddl_problem"):
        processes.TextworldWorld(small_game("bad"))


def test_without_textworld_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld", None)  # as if it were not installed
    with pytest.raises(
        ConfigError, match=r"options\.engine: textworld is not installed; pip install 'opid\[alfworld\]'"
    ):
        AlfworldEnvironment(AlfworldOptions(engine="textworld"))
    AlfworldEnvironment(AlfworldOptions())
    with pytest.raises(ConfigError, match=r"engine"):
        make("alfworld", {"engine": "unity"})
