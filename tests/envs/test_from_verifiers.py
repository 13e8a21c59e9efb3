"""The adapter for verifiers that docs/other_environments.md shows, on an environment made with the package itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from envs.base import make, result_of
from opid_core.config import build_config
from opid_core.rollout.prompting import render
from tests.test_snippets import FENCE

REPOSITORY = Path(__file__).parents[2]
FILE = Path(__file__).parent / "from_verifiers.py"
SECTION = (REPOSITORY / "docs/other_environments.md").read_text(encoding="utf-8").partition("## verifiers")[2]
WORLD = """
import verifiers as vf
from datasets import Dataset


class Guess(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **kwargs):
        if messages[-1].content == state["answer"]:
            state["final_env_response"] = [{"role": "user", "content": "right"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "no, again"}]


def told(completion, answer, **kwargs):
    return 1.0 if any(message["content"] == answer for message in completion) else 0.25


def load_environment(turns=3):
    data = Dataset.from_list([{"question": "Which digit?", "answer": answer} for answer in "47"])
    return Guess(dataset=data, system_prompt="You guess.", rubric=vf.Rubric(funcs=[told]), max_turns=turns)
"""


def block(title: str) -> str:
    """The section's block with this title; its config has none."""
    (found,) = [text for _, options, text in FENCE.findall(SECTION) if options == title]
    return found


def test_the_page_shows_the_file():
    assert block('title="from_verifiers.py"') == FILE.read_text(encoding="utf-8")


@pytest.fixture
def name(user_modules) -> str:
    if not hasattr(pytest.importorskip("verifiers"), "MultiTurnEnv"):
        pytest.skip("verifiers 0.4 has no classic environments")
    (user_modules / "from_verifiers.py").write_text(FILE.read_text(encoding="utf-8"), encoding="utf-8")
    (user_modules / "guess.py").write_text(WORLD, encoding="utf-8")
    return "from_verifiers:verifiers"


def test_an_episode_is_answered_by_env_response_and_scored_by_the_rubric(name):
    world = make(name, {"id": "guess"})
    assert [task.task_id for task in world.tasks("train")] == ["train-0", "train-1"]
    assert result_of(world.reset(world.tasks("train")[1])) == "Which digit?"
    assert world.task_text == "You guess."
    assert render(world.prompt_parts("You guess.", [], "Which digit?", (), 8)).startswith("You guess.\nWhich digit?")
    first = result_of(world.step("4"))
    assert (first.observation, first.done, first.won, first.score) == ("no, again", False, False, None)
    last = result_of(world.step("7"))
    assert (last.observation, last.reward, last.done, last.won, last.score) == ("right", 1.0, True, True, 1.0)


def test_an_episode_ends_with_the_environments_own_turns(name):
    world = make(name, {"id": "guess", "arguments": {"turns": 1}})
    result_of(world.reset(world.tasks("train")[0]))
    only = result_of(world.step("7"))
    assert (only.observation, only.reward, only.done, only.won, only.score) == ("", 0.0, True, False, 0.25)


def test_the_config_on_the_page_loads(name):
    config = build_config({"campaign": "any", **yaml.safe_load(block(""))})
    assert config.environment.options["id"] == "guess"
    assert config.prompting.style == "chat"
