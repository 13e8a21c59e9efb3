"""The environment that docs/environments.md shows, and how a config names one of a user's own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from envs import base
from envs.base import HasExpert, HasSplits, Task, make, register
from opid_core.config import WarmStartConfig, build_config
from opid_core.errors import ConfigError
from opid_core.policies import train_tokenizer
from opid_core.rollout.episodes import EpisodeRequest, EpisodeSettings, run_episodes
from opid_core.rollout.prompting import encode, inject, render
from opid_core.warm_start import demonstrate
from tests.envs import corridor
from tests.envs.corridor import ROLE, TASK, TURN, Corridor, CorridorOptions
from tests.opid_core.rollout.scripted import Completion

NAME = "tests.envs.corridor:corridor"
FILE = Path(corridor.__file__)
PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf'```{language}(?: title="[\w.]+")?\n(.*?)```\n', PAGE, re.DOTALL)
    return found


def world() -> Corridor:
    return Corridor(CorridorOptions())


@pytest.fixture
def own_modules(user_modules, monkeypatch) -> Path:
    """The folder of modules of a user's own; what is registered in the test is forgotten after it."""
    monkeypatch.setattr(base, "_REGISTRY", {})
    return user_modules


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    shown = demonstrate(world, "train", WarmStartConfig(episodes=30), max_steps=20, history_length=5, seed=1)
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [render(one.parts) + "\n" + one.response for one in shown]
    train_tokenizer(texts, list(Corridor.fixed_phrases), 400, folder)
    return AutoTokenizer.from_pretrained(folder)


@dataclass
class ScriptedEngine:
    """Answers the turns of each episode with its script, one after the other."""

    tokenizer: object
    scripts: dict[str, list[str]]
    tokens_generated: int = 0
    waiting: list[Completion] = field(default_factory=list)

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None:
        ids = self.tokenizer.encode(self.scripts[request_id].pop(0))  # pyright: ignore[reportAttributeAccessIssue]
        self.waiting.append(Completion(request_id, ids, [-0.5] * len(ids)))

    def step(self) -> list[Completion]:
        done, self.waiting = self.waiting, []
        return done


def response(action: str) -> str:
    return f"<think>Hm.</think><action> {action} </action>"


def test_the_page_shows_the_file():
    assert block("python") == FILE.read_text(encoding="utf-8")


def test_the_config_of_the_page_names_the_environment(own_modules):
    shutil.copy(FILE, own_modules / "corridor.py")
    config = build_config(yaml.safe_load(block("yaml")))
    assert config.environment.options == {"rooms": 6, "seed": 0}
    environment = make(config.environment.name, config.environment.options)
    assert len(environment.tasks(config.evaluation.split)) == config.evaluation.tasks == 40
    with pytest.raises(ConfigError, match=r"environment\.options\.room: unknown key; did you mean 'rooms'\?"):
        make("corridor:corridor", {"room": 5})


def test_two_episodes_of_one_group(tokenizer):
    task = Task("start2-key1-door3", "corridor", (2, 1, 3))
    assert task in [*world().tasks("train"), *world().tasks("valid_unseen")]
    wins = [response(action) for action in ("go left", "take key", "go right", "go right", "open door")]
    loses = [response("take key"), "go left", *[response("go right")] * 3]
    settings = EpisodeSettings(
        max_steps=5,
        history_length=2,
        max_prompt_tokens=256,
        max_response_tokens=32,
        temperature=1.0,
        success_reward=10.0,
        timeout_s=600.0,
    )
    requests = [EpisodeRequest(name, "group", task, seed) for seed, name in enumerate(("wins", "loses"))]
    engine = ScriptedEngine(tokenizer, {"wins": wins, "loses": loses})
    won, lost = run_episodes(engine, tokenizer, world, requests, settings)

    assert (won.outcome, won.episode_return) == ("success", 10.0)
    assert [turn.reward for turn in won.turns] == [0.0, 0.0, 0.0, 0.0, 10.0]
    assert [turn.observation for turn in won.turns] == [
        "You are in room 2 of 6. You see nothing.",
        "You are in room 1 of 6. You see a key.",
        "You are in room 1 of 6 with the key. You see nothing.",
        "You are in room 2 of 6 with the key. You see nothing.",
        "You are in room 3 of 6 with the key. You see a locked door.",
    ]
    assert won.turns[1].admissible_actions == ("go right", "take key")
    assert won.turns[3].prompt.text.splitlines() == [
        ROLE,
        TASK,
        "Steps taken so far: 3. The latest:",
        "Step 2: You are in room 1 of 6. You see a key. You did: take key",
        "Step 3: You are in room 1 of 6 with the key. You see nothing. You did: go right",
        "Step 4: You are in room 2 of 6 with the key. You see nothing.",
        "Admissible actions: go left, go right",
        TURN,
    ]
    assert (lost.outcome, lost.episode_return) == ("truncated", 0.0)
    assert [(turn.action, turn.is_valid) for turn in lost.turns[:3]] == [
        ("take key", True),
        ("", False),
        ("go right", True),
    ]
    assert [turn.observation for turn in lost.turns[1:4]] == [
        "Nothing happens.",
        "Nothing happens.",
        "You are in room 3 of 6. You see a locked door.",
    ]


def test_its_prompt_takes_skills_and_loses_its_oldest_history(tokenizer):
    history = [(f"You are in room {room} of 6. You see nothing.", "go right") for room in (1, 2, 3)]
    parts = Corridor.prompt_parts(TASK, history, "You are in room 4 of 6. You see a key.", ["take key"], 3)
    with_skill = render(inject(parts, "episode", "Take the key first.")).splitlines()
    assert with_skill[:4] == [ROLE, TASK, "Episode skill:", "Take the key first."]
    whole = encode(tokenizer, parts, 256)
    assert (whole.text, whole.history_dropped) == (render(parts), 0)
    shorter = encode(tokenizer, parts, len(whole.ids) - 1)
    assert shorter.history_dropped == 1
    assert "room 1 of 6" not in shorter.text
    assert "Step 2: You are in room 2 of 6." in shorter.text


def test_its_expert_wins_every_task():
    environment = world()
    assert isinstance(environment, HasExpert)
    assert isinstance(environment, HasSplits)
    train, held_out = (environment.tasks(split) for split in ("train", "valid_unseen"))
    assert (len(train), len(held_out)) == (80, 40)  # of 6 x 5 x 4
    assert len({task.task_id for task in [*train, *held_out]}) == 120
    for task in [*train, *held_out]:
        observation = environment.reset(task)
        expert = environment.expert(observation)
        result = None
        for _ in range(16):  # to one end, to the other, and back, with two actions on the way
            decision = expert.decide(environment.admissible_actions)
            assert environment.parse_action(environment.response_text(decision)) == (decision.action, True)
            result = environment.step(decision.action)
            expert.observe(decision.action, result.observation)
            if result.done:
                break
        assert result
        assert result.won
    with pytest.raises(ConfigError, match="unknown split 'test'; known: valid_unseen, train"):
        environment.tasks("test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "corridr",
            "unknown environment 'corridr'; known: alfworld, gymnasium, openenv, scienceworld, search_qa, textarena",
        ),
        ("no_such_module:corridor", "cannot import module 'no_such_module': No module named 'no_such_module'; is its"),
        ("needs:corridor", "cannot import module 'needs': No module named 'not_installed'"),
        ("wrong:corridor", r"cannot import module 'wrong': .*\(wrong.py, line 1\)"),
        ("silent:corridor", "module 'silent' registers no environment 'corridor'"),
        ("silent:", "module 'silent' registers no environment ''"),
        (":corridor", "unknown environment ':corridor'"),
        (".silent:corridor", "'.silent' is no name of a module"),
        ("taken:alfworld", "taken registers 'alfworld', which is the environment of envs.alfworld"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(own_modules, name, message):
    (own_modules / "needs.py").write_text("import not_installed")
    (own_modules / "wrong.py").write_text("def :")
    (own_modules / "silent.py").write_text("")
    taken = FILE.read_text(encoding="utf-8").replace('register("corridor"', 'register("alfworld"')
    (own_modules / "taken.py").write_text(taken)
    with pytest.raises(ConfigError, match=message) as caught:
        build_config({"campaign": "any", "environment": {"name": name}})
    assert "environment.name: " in str(caught.value)


def test_two_modules_cannot_register_one_name(own_modules):
    for name in ("first", "second"):
        shutil.copy(FILE, own_modules / f"{name}.py")
    make("first:corridor")
    make("corridor")  # registered by now
    make("first:corridor")
    with pytest.raises(ConfigError, match="second registers 'corridor', which is the environment of first"):
        make("second:corridor")


def test_a_built_in_name_cannot_be_replaced():
    with pytest.raises(ConfigError, match=r"tests\.envs\.corridor registers 'webshop'"):
        register("webshop", CorridorOptions, Corridor)


def test_a_module_is_imported_by_its_dotted_name(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    environment = make(NAME, {"rooms": 3})
    assert isinstance(environment, Corridor)
    assert len(environment.tasks("train")) == 4  # of 3 x 2 x 1, two held out
