"""Engines and worlds that play by a script, for tests of the episode loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.base import TURN_LINE, PromptParts, StepResult, Task
from opid_core.errors import EnvironmentFault
from opid_core.rollout.engines.protocols import TextCompletion
from opid_core.rollout.episodes import Episode, EpisodeRequest, EpisodeSettings, run_episodes
from tests.factories import VOCABULARY, make_tokenizer

TOKENIZER = make_tokenizer()
SETTINGS = EpisodeSettings(
    max_steps=3,
    history_length=2,
    max_prompt_tokens=64,
    max_response_tokens=8,
    temperature=1.0,
    success_reward=10.0,
    timeout_s=600.0,
)


def ids(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


@dataclass
class Completion:
    request_id: str
    token_ids: list[int]
    log_probs: list[float]


@dataclass
class ScriptedEngine:
    """Answers turn t of an episode with `answers[id][t]` after `delays[id][t]` engine steps (1 where none is given);
    without a script the answer is "look"."""

    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    delays: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tokens_generated: int = 0
    now: int = 0
    waiting: dict[str, tuple[int, Completion]] = field(default_factory=dict)
    submissions: list[tuple[int, str]] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)
    turns: dict[str, int] = field(default_factory=dict)

    def submit(self, request_id, prompt_ids, *, max_tokens, temperature, seed) -> None:
        assert request_id not in self.waiting
        turn = self.turns.get(request_id, 0)
        self.turns[request_id] = turn + 1
        delay = self.delays[request_id][turn] if request_id in self.delays else 1
        answer = ids(self.answers[request_id][turn] if request_id in self.answers else "look")
        due = self.now + delay
        self.waiting[request_id] = due, Completion(request_id, answer, [-0.5] * len(answer))
        self.submissions.append((self.now, request_id))
        self.asked.append(
            {"prompt_ids": prompt_ids, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        )

    def step(self) -> list[Completion]:
        assert self.waiting
        self.now += 1
        done = [completion for due, completion in self.waiting.values() if due == self.now]
        for completion in done:
            del self.waiting[completion.request_id]
            self.tokens_generated += len(completion.token_ids)
        return done


@dataclass
class ScriptedTextEngine:
    """Answers each turn of an episode with the next text of `answers[id]`; each took 7 tokens."""

    answers: Mapping[str, list[str]]
    waiting: list[TextCompletion] = field(default_factory=list)
    asked: list[dict] = field(default_factory=list)

    def submit_text(self, request_id, message, *, max_tokens, temperature, seed) -> None:
        self.waiting.append(TextCompletion(request_id, self.answers[request_id].pop(0), tokens=7))
        self.asked.append({"message": message, "max_tokens": max_tokens, "temperature": temperature, "seed": seed})

    def step(self) -> list[TextCompletion]:
        done, self.waiting = self.waiting, []
        return done


@dataclass
class AheadEngine(ScriptedEngine):
    """Samples until something ends, as an engine in another process does; one step ahead where it was begun."""

    begun: list[Completion] | None = None

    def begin(self) -> None:
        if self.waiting and self.begun is None:
            self.begun = super().step()

    def step(self) -> list[Completion]:
        done, self.begun = self.begun, None
        if done is not None:
            return done
        done = []
        while not done:
            done = super().step()
        return done


class Room:
    """`take mug 1` wins, `put mug 1` ends without success, `open drawer` breaks the world; else nothing happens."""

    def __init__(self) -> None:
        self.admissible_actions: Sequence[str] = ()
        self.task_text = ""
        self.steps = 0

    def tasks(self, split: str) -> Sequence[Task]:
        return [TASK]

    def reset(self, task: Task) -> str:
        if task.payload is not None:
            raise task.payload
        self.task_text = f"task {task.task_id}"
        self._offer()
        return "room 1"

    def step(self, action: str) -> StepResult:
        self.steps += 1
        if action == "open drawer":
            raise EnvironmentFault("the drawer is stuck")
        if action == "close drawer":
            raise KeyError("a bug")
        won, over = action == "take mug 1", action == "put mug 1"
        self._offer()
        return StepResult(f"room {self.steps + 1}", reward=1.0 if won else 0.25, done=won or over, won=won)

    def _offer(self) -> None:
        self.admissible_actions = ["look", f"go {self.steps}"]

    @staticmethod
    def parse_action(response_text: str) -> tuple[str, bool]:
        return response_text, not response_text.startswith("you")

    @staticmethod
    def prompt_parts(
        task_text: str,
        history: Sequence[tuple[str, str]],
        observation: str,
        admissible_actions: Sequence[str],
        history_length: int,
    ) -> PromptParts:
        shown = history[len(history) - min(history_length, len(history)) :]
        return PromptParts(
            role="",
            task=task_text,
            history_header="",
            history=tuple(f"{seen} : {done}" for seen, done in shown),
            current=f"{len(history)} {observation}",
            actions=", ".join(admissible_actions),
            turn=TURN_LINE,
        )


class AsyncRoom(Room):
    """The same room at the other end of a line; the task's payload, if any, is what every step waits for."""

    async def reset(self, task: Task) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        await asyncio.sleep(0)
        self.wait = task.payload
        return super().reset(Task(task.task_id, task.task_type, None))

    async def step(self, action: str) -> StepResult:  # pyright: ignore[reportIncompatibleMethodOverride]
        await (self.wait() if self.wait else asyncio.sleep(0))
        return super().step(action)


TASK = Task("t", "kind", None)


def request(name: str, seed: int = 7, task: Task = TASK) -> EpisodeRequest:
    return EpisodeRequest(trajectory_id=name, group_id="g", task=task, seed=seed)


def play(engine: ScriptedEngine, *names: str, settings: EpisodeSettings = SETTINGS, on_episode=None) -> list[Episode]:
    asked = [request(name, seed=index) for index, name in enumerate(names)]
    return run_episodes(engine, TOKENIZER, Room, asked, settings, on_episode or (lambda episode: None))
