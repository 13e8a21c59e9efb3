"""What the replicas of the simulations do in place of computing: they count tokens, and what these take.

Of the standard library alone: `benchmarks.fleet_actors` holds it in a hundred processes at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the loop reads of a completion."""

    request_id: str
    token_ids: list[int]
    log_probs: list[float]


@dataclass
class Sampling:
    """The responses that run on a replica. A step takes `step_s`, whatever runs, and gives each a token; a response
    ends after a number of tokens that its seed gives: from half to one and a half times `tokens`."""

    step_s: float
    tokens: int
    answer: list[int]
    """What each response says."""
    generated: int = 0
    """Tokens so far."""
    worked_s: float = 0.0
    remaining: dict[str, int] = field(default_factory=dict)

    def submit(self, request_id: str, seed: int) -> None:
        """Let a response run."""
        self.remaining[request_id] = self.tokens // 2 + seed % (self.tokens + 1)

    def advance(self, max_steps: int | None = None) -> tuple[float, list[Answer]]:
        """Go on until a response ends, or for `max_steps`: what that takes in seconds, and what ended."""
        first = min(self.remaining.values())
        steps = first if max_steps is None else min(first, max_steps)
        self.generated += steps * len(self.remaining)
        self.worked_s += steps * self.step_s
        self.remaining = {name: left - steps for name, left in self.remaining.items()}
        ended = [name for name, left in self.remaining.items() if not left]
        for name in ended:
            del self.remaining[name]
        return steps * self.step_s, [Answer(name, self.answer, [-1.0] * len(self.answer)) for name in ended]


class SleepingReplica:
    """In the process of a replica, in place of a `VllmEngine` and of a `Player`: it sleeps as long as sampling takes,
    and plays no world: each episode that it plays ends as `episode`, a pickled one."""

    def __init__(self, policy_dir: Path, step_s: float, tokens: int, answer: list[int], episode: bytes) -> None:
        self._policy_dir, self._episode = policy_dir, episode
        self._sampling = Sampling(step_s, tokens, answer)
        self._told = 0
        self._turns_left: dict[str, int] = {}
        self._seeds: dict[str, int] = {}
        self._ended: list[str] = []

    def worked_s(self) -> float:
        """Seconds of sampling so far."""
        return self._sampling.worked_s

    def advance(
        self, submissions: Sequence[Mapping[str, Any]], max_steps: int | None = None
    ) -> tuple[list[Answer], int, Path]:
        """See `VllmEngine.advance`."""
        for one in submissions:
            self._sampling.submit(one["request_id"], one["seed"])
        seconds, answers = self._sampling.advance(max_steps)
        time.sleep(seconds)
        return answers, self._sampled(), self._policy_dir

    def play(self, asked: Sequence[tuple[str, int]], turns: int) -> tuple[Any, int, Path]:
        """Begin to play an episode of so many turns for each id and seed, in place of all that ran; see `go_on`."""
        self._sampling.remaining, self._ended = {}, []
        self._turns_left, self._seeds = {name: turns for name, _ in asked}, dict(asked)
        for name, seed in asked:
            self._sampling.submit(name, seed)
        return self.go_on()

    def go_on(self) -> tuple[tuple[str, bytes] | None, int, Path]:
        """Play until an episode ends: its id and what is told of it. None when all have ended. See `Player.go_on`."""
        while self._sampling.remaining and not self._ended:
            seconds, answers = self._sampling.advance()
            time.sleep(seconds)
            for answer in answers:
                self._turns_left[answer.request_id] -= 1
                if left := self._turns_left[answer.request_id]:
                    self._sampling.submit(answer.request_id, self._seeds[answer.request_id] + 7919 * left)
                else:
                    self._ended.append(answer.request_id)
        ended = (self._ended.pop(0), self._episode) if self._ended else None
        return ended, self._sampled(), self._policy_dir

    def _sampled(self) -> int:
        sampled, self._told = self._sampling.generated - self._told, self._sampling.generated
        return sampled
