"""The episode loop's numbers on this machine: `python -m benchmarks.episode_loop [PART ...]`.

* turns: turns a second with an engine that answers at once, so of the loop, the world and the tokenizer alone.
* overlap: the share of a rollout in which an engine with steps of `--step-ms` does nothing, by the processor's clock.
* idle: that share with a tiny policy on vLLM in a process of its own.
* latency: what a search server's latency costs a batch of episodes, with an engine whose every step takes `--step-ms`.

`turns`, `overlap` and `latency` can be run on older code too: there nothing calls `begin`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tasks.places
from benchmarks.sleeping import Answer
from envs.base import PromptParts, StepResult, Task, make
from infra.hosting import HostedGroup
from opid_core.config import CampaignConfig
from opid_core.rollout.episodes import EpisodeRequest, EpisodeSettings, run_episodes
from opid_core.seeds import derive
from tasks.engines import start_engine
from tests.factories import make_tiny_policy_folder, make_tokenizer

WORDS = "go to desk 1 , open drawer 2 , look : book 1"
"""What the engine that answers at once says; no world admits it."""


@dataclass
class NextStepEngine:
    """Answers everything at the next step."""

    token_ids: list[int]
    tokens_generated: int = 0
    asked: list[str] = field(default_factory=list)

    def submit(self, request_id: str, prompt_ids: Sequence[int], **sampling: Any) -> None:
        self.asked.append(request_id)

    def step(self) -> list[Answer]:
        asked, self.asked = self.asked, []
        self.tokens_generated += len(asked) * len(self.token_ids)
        return [Answer(name, self.token_ids, [-1.0] * len(self.token_ids)) for name in asked]


@dataclass
class SteadyEngine:
    """Every step takes `step_s` and gives each running response a token, of 10 to 30. `processor_clock`: time passes
    only while the loop computes or waits, so that other work on the machine does not count."""

    step_s: float
    processor_clock: bool = False
    remaining: dict[str, int] = field(default_factory=dict)
    begun_s: float | None = None
    slept_s: float = 0.0
    steps: int = 0
    tokens_generated: int = 0

    def now_s(self) -> float:
        return time.process_time() + self.slept_s if self.processor_clock else time.monotonic()

    def submit(self, request_id: str, prompt_ids: Sequence[int], *, seed: int, **sampling: Any) -> None:
        self.remaining[request_id] = 10 + seed % 21

    def begin(self) -> None:
        if self.remaining and self.begun_s is None:
            self.begun_s = self.now_s()
            self.sampled = self.sample()

    def step(self) -> list[Answer]:
        if self.begun_s is not None:
            self.sleep_until(self.begun_s + self.step_s)
            self.begun_s = None
            return self.sampled
        ended: list[Answer] = []
        while not ended:
            self.sleep_until(self.now_s() + self.step_s)
            ended = self.sample()
        return ended

    def sample(self) -> list[Answer]:
        self.steps += 1
        self.remaining = {name: tokens - 1 for name, tokens in self.remaining.items()}
        ended = [name for name, tokens in self.remaining.items() if not tokens]
        for name in ended:
            del self.remaining[name]
        return [Answer(name, [5] * 20, [-1.0] * 20) for name in ended]

    def sleep_until(self, until_s: float) -> None:
        missing_s = max(0.0, until_s - self.now_s())
        if self.processor_clock:
            self.slept_s += missing_s
        else:
            time.sleep(missing_s)


class Searching:
    """A world of `turns` steps, each of which waits for `latency_s`: in the way, or in the background."""

    admissible_actions: Sequence[str] = ()
    task_text = "task"
    turns, latency_s, in_background = 4, 0.05, True

    def __init__(self) -> None:
        self.done = 0

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task("t", "kind", None)]

    def reset(self, task: Task) -> str:
        return "room"

    def step(self, action: str) -> StepResult | Coroutine[Any, Any, StepResult]:
        if self.in_background:
            return self._later()
        time.sleep(self.latency_s)
        return self._result()

    async def _later(self) -> StepResult:
        await asyncio.sleep(self.latency_s)
        return self._result()

    def _result(self) -> StepResult:
        self.done += 1
        return StepResult("room", 0.0, self.done == self.turns, False)

    @staticmethod
    def parse_action(response_text: str) -> tuple[str, bool]:
        return response_text, True

    @staticmethod
    def prompt_parts(
        task_text: str, history: Any, observation: str, admissible_actions: Any, history_length: int
    ) -> PromptParts:
        return PromptParts("", task_text, "", (), observation, "", "")


def settings(max_steps: int, max_prompt_tokens: int = 2048, max_response_tokens: int = 32) -> EpisodeSettings:
    return EpisodeSettings(
        max_steps=max_steps,
        history_length=2,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        temperature=1.0,
        success_reward=10.0,
        timeout_s=600.0,
    )


def alfworld_requests(count: int) -> tuple[Any, list[EpisodeRequest]]:
    """A maker of small generated rooms, and groups of eight episodes in them."""
    options = {"generator": {"size": "small"}}
    split = make("alfworld", options).tasks("train")
    named = [(f"{index // 8}-{index % 8}", split[index // 8]) for index in range(count)]
    requests = [EpisodeRequest(name, task.task_id, task, derive(0, name)) for name, task in named]
    return (lambda: make("alfworld", options)), requests


def measure_turns(given: argparse.Namespace) -> None:
    tokenizer = make_tokenizer()
    maker, requests = alfworld_requests(given.episodes)
    engine = NextStepEngine(tokenizer.encode(WORDS, add_special_tokens=False))
    best = 0.0
    for _ in range(given.repeat):
        started_s = time.process_time()
        episodes = run_episodes(engine, tokenizer, maker, requests, settings(20))
        turns = sum(len(episode.turns) for episode in episodes)
        best = max(best, turns / (time.process_time() - started_s))
    print(f"turns: {best:.0f} turns a second of processor time, {given.episodes} episodes of 20 turns", flush=True)


def timed_engine(*arguments: Any, **named: Any) -> Any:
    """A `VllmEngine` that knows how long it worked (called in the engine's process)."""
    from opid_core.rollout.engines.vllm import VllmEngine

    class TimedEngine(VllmEngine):
        worked_s = 0.0

        def advance(self, *arguments: Any) -> Any:
            started_s = time.monotonic()
            try:
                return super().advance(*arguments)
            finally:
                self.worked_s += time.monotonic() - started_s

        def seconds(self) -> float:
            return self.worked_s

    return TimedEngine(*arguments, **named)


def measure_idle(given: argparse.Namespace) -> None:
    """The engine's idle share: 1 - (time within `advance`) / (time of the rollout)."""
    groups: list[HostedGroup] = []

    def hosted(name: str, factory: str, *arguments: Any, **named: Any) -> HostedGroup:
        groups.append(HostedGroup(name, "benchmarks.episode_loop:timed_engine", *arguments, **named))
        return groups[-1]

    tasks.places.HostedGroup = hosted
    tokenizer = make_tokenizer()
    maker, requests = alfworld_requests(given.episodes)
    config = CampaignConfig.model_validate(
        {
            "campaign": "idle",
            "threads": 1,
            "environment": {"name": "alfworld"},
            "rollout": {"max_prompt_tokens": 900, "max_response_tokens": 32},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = start_engine(config, make_tiny_policy_folder(Path(folder), max_positions=1024), trained=False)
        try:
            for _ in range(given.repeat + 1):  # the first warms up
                worked_s = groups[0].call("seconds")
                started_s = time.monotonic()
                episodes = run_episodes(engine, tokenizer, maker, requests, settings(10, 900))
                wall_s = time.monotonic() - started_s
                idle = 1 - (groups[0].call("seconds") - worked_s) / wall_s
                turns = sum(len(episode.turns) for episode in episodes)
                print(f"idle: {idle:.0%} of {wall_s:.1f} s, {turns / wall_s:.0f} turns a second", flush=True)
        finally:
            engine.kill()


def measure_overlap(given: argparse.Namespace) -> None:
    """The idle share of an engine whose step takes `--step-ms`, by the processor's clock."""
    tokenizer = make_tokenizer()
    maker, requests = alfworld_requests(given.episodes)
    for _ in range(given.repeat):
        engine = SteadyEngine(given.step_ms / 1000, processor_clock=True)
        started_s = engine.now_s()
        episodes = run_episodes(engine, tokenizer, maker, requests, settings(10))
        wall_s = engine.now_s() - started_s
        turns = sum(len(episode.turns) for episode in episodes)
        idle = 1 - engine.steps * engine.step_s / wall_s
        print(f"overlap: idle {idle:.0%} of {wall_s:.2f} s, {turns / wall_s:.0f} turns a second", flush=True)


def measure_latency(given: argparse.Namespace) -> None:
    tokenizer = make_tokenizer()
    task = Task("t", "kind", None)
    requests = [EpisodeRequest(str(index), "g", task, derive(0, index)) for index in range(given.episodes)]
    for latency_ms, in_background in ((0, False), (given.latency_ms, False), (given.latency_ms, True)):
        Searching.latency_s, Searching.in_background = latency_ms / 1000, in_background
        engine = SteadyEngine(given.step_ms / 1000)
        started_s = time.monotonic()
        run_episodes(engine, tokenizer, Searching, requests, settings(4))
        wall_s = time.monotonic() - started_s
        how = "in the background" if in_background else "in the way"
        idle = 1 - engine.steps * engine.step_s / wall_s
        print(f"latency: {latency_ms} ms {how}: {wall_s:.1f} s, engine idle {idle:.0%}", flush=True)


PARTS = {"turns": measure_turns, "overlap": measure_overlap, "idle": measure_idle, "latency": measure_latency}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.episode_loop", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--latency-ms", type=int, default=50)
    parser.add_argument("--step-ms", type=float, default=5.0)
    given = parser.parse_args()
    for part in given.parts:
        PARTS[part](given)


if __name__ == "__main__":
    main()
