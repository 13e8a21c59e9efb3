"""Episodes that are played beside their replicas: they, and all that each engine is given, are as with the driver."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from opid_core.config import build_config
from opid_core.errors import InfrastructureError
from opid_core.policies import load_tokenizer
from opid_core.rollout.engines.vllm import Completion
from opid_core.rollout.episodes import EpisodeRequest
from tasks import players
from tasks.engines import play, start_engine
from tasks.evaluate import panel
from tasks.places import ENGINE

POLICY, NEW = Path("configs/policies/alfworld_tiny"), Path("configs/policies/../policies/alfworld_tiny")
ANSWER = "<think>look</think><action>{}</action>"
WORLD = {"name": "alfworld", "options": {"generator": {"size": "small", "train": 8, "valid_unseen": 8}}, "max_steps": 4}


class ScriptedAnswers:
    """A `VllmEngine` that says `look` or `inventory`, as each request's seed wants, after 1 to 3 steps."""

    def __init__(self, policy_dir: Path, *_: Any, **__: Any) -> None:
        self.policy_dir = policy_dir
        self.remaining: dict[str, tuple[int, int]] = {}
        self.given: list[tuple[int | None, list[str]]] = []
        self._encode = load_tokenizer(POLICY).encode

    def advance(self, submissions, max_steps=None) -> tuple[list[Completion], int, Path]:
        self.given.append((max_steps, [submission["request_id"] for submission in submissions]))
        self.remaining |= {one["request_id"]: (1 + one["seed"] % 3, one["seed"]) for one in submissions}
        first = min(steps for steps, _ in self.remaining.values())
        steps = first if max_steps is None else min(first, max_steps)
        self.remaining = {name: (left - steps, seed) for name, (left, seed) in self.remaining.items()}
        done = {name: seed for name, (left, seed) in self.remaining.items() if not left}
        for name in done:
            del self.remaining[name]
        answers = {name: self._encode(ANSWER.format(("look", "inventory")[seed % 2])) for name, seed in done.items()}
        completions = [Completion(name, ids, [-0.5] * len(ids), "stop") for name, ids in answers.items()]
        return completions, sum(len(ids) for ids in answers.values()), self.policy_dir

    def load_policy(self, policy_dir: Path) -> None:
        self.policy_dir = policy_dir


class InThisProcess:
    """A `Group` whose object lives here: what was begun is done when somebody waits for it."""

    engines: list[ScriptedAnswers]

    def __init__(self, name: str, factory: str, *arguments: Any, env: Any = None, **named: Any) -> None:
        self.name = name
        self.object: Any = (ScriptedAnswers if factory == ENGINE else players.Player)(*arguments, **named)
        if factory == ENGINE:
            self.engines.append(self.object)

    def create(self) -> None: ...

    def begin(self, method: str, *arguments: Any) -> None:
        self._begun = method, arguments

    def finish(self) -> Any:
        method, arguments = self._begun
        return getattr(self.object, method)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.object, method)(*arguments)

    def kill(self) -> None: ...


@pytest.fixture
def start(monkeypatch):
    def start(loop: str, replicas: int, policy: Path = POLICY):
        """The config, its engine, and what answers in the place of vLLM, one a replica."""
        engines: list[ScriptedAnswers] = []
        monkeypatch.setattr(InThisProcess, "engines", engines, raising=False)
        for module in ("tasks.places", "tasks.players"):
            monkeypatch.setattr(f"{module}.HostedGroup", InThisProcess)
        monkeypatch.setattr("infra.hosting.first_done", lambda groups: groups[-1])
        rollout = {"loop": loop, "max_prompt_tokens": 464, "max_response_tokens": 48}
        given = {"campaign": "c", "environment": WORLD, "rollout": rollout, "engine": {"replicas": replicas}}
        config = build_config({**given, "method": {"lambda_step": 0.0}})
        return config, start_engine(config, policy, trained=True), engines

    return start


def requests(config, members: int) -> list[EpisodeRequest]:
    return [
        EpisodeRequest(f"{task.task_id}-{member}", task.task_id, task, seed=100 * number + member)
        for number, task in enumerate(panel(config, 5))
        for member in range(members)
    ]


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_episodes_and_what_each_engine_is_given_are_those_of_the_driver(start, replicas):
    seen = []
    for loop in ("driver", "replicas"):
        config, fleet, engines = start(loop, replicas)
        asked, ended = requests(config, members=2), []
        for temperature in (None, 0.4):
            episodes = play(config, fleet, load_tokenizer(POLICY), asked, temperature, ended.append)
            assert [episode.request for episode in episodes] == asked
            assert sorted(map(id, ended)) == sorted(map(id, episodes))
            ended.clear()
            seen.append([(episode.turns, episode.outcome) for episode in episodes])
        sampled = sum(episode.tokens for episode in episodes)
        assert (
            fleet.tokens_generated
            == 2 * sampled
            == 2 * sum(len(turn.response_ids) for e in episodes for turn in e.turns)
        )
        seen.append([engine.given for engine in engines])
        assert len(engines) == replicas
    assert seen[:3] == seen[3:]


def test_a_replica_without_a_group_is_left_alone(start):
    config, fleet, engines = start("replicas", 3)
    play(config, fleet, None, requests(config, members=1)[:2], None)
    assert [len(engine.given) > 0 for engine in engines] == [True, True, False]


def test_new_weights_reach_the_engine_and_an_answer_with_others_is_refused(start):
    config, fleet, engines = start("replicas", 2)
    fleet.load_policy(NEW)
    assert [engine.policy_dir for engine in engines] == [NEW, NEW]
    play(config, fleet, None, requests(config, members=1), None)
    engines[1].policy_dir = POLICY
    with pytest.raises(InfrastructureError, match="replica 2 of 2 sampled with the weights of"):
        play(config, fleet, None, requests(config, members=1), None)


def test_episodes_need_the_folder_of_the_weights_no_more(start, tmp_path):
    """With LoRA it is a merged one, which is gone before the first episode."""
    first, second = (shutil.copytree(POLICY, tmp_path / name) for name in ("first", "second"))
    config, fleet, _ = start("replicas", 1, first)
    shutil.rmtree(first)
    for loaded in (None, second):
        if loaded is not None:
            fleet.load_policy(loaded)
            shutil.rmtree(loaded)
        assert len(play(config, fleet, None, requests(config, members=1), None)) == 5


def test_the_canary_samples_through_the_player(start):
    _, fleet, _ = start("replicas", 1)
    (replica,) = fleet.replicas
    replica.submit("canary", [1, 2], max_tokens=8, temperature=1.0, seed=0)
    assert [completion.request_id for completion in replica.step()] == ["canary"]
    assert replica.is_idle
