"""`python -m benchmarks.fleet_simulation`: is the driver the limit of a large fleet? Prints a table in Markdown.

The real episode loop, fleet, environment and tokenizer, with replicas that compute nothing: each of their steps takes
`--step-ms` and gives every running response a token. Time is the processor time of the process that runs the loop (the
driver, or each replica beside its engine: `rollout.loop`) plus the time in which it waits, so that other work on the
machine does not count and a thousand seconds of sampling pass at once.

* idle of the replicas: the share of the rollout in which a replica with requests waits for the loop, or has none.
* imbalance: tokens of the busiest replica over the mean.
"""

from __future__ import annotations

import argparse
import math
import pickle
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.episode_loop import alfworld_requests, settings
from benchmarks.sleeping import Answer, Sampling
from envs.base import Environment
from opid_core.policies import load_tokenizer
from opid_core.rollout.engines.fleet import EngineFleet, dealt
from opid_core.rollout.episodes import Episode, EpisodeRequest, EpisodeSettings, ended_episodes, run_episodes

POLICY = "configs/policies/alfworld_tiny"
THOUGHT = " The next place is worth a look."
ACTION = "</think><action>look</action>"
MAX_STEPS = 25
"""Of an episode, of which none is won: as long as the paper's are in the mean."""


@dataclass(frozen=True)
class Batch:
    """What is played, and what says the answers."""

    tokenizer: Any
    answer: list[int]
    make_environment: Callable[[], Environment]
    requests: Sequence[EpisodeRequest]
    rules: EpisodeSettings


@dataclass
class Clock:
    """The time of a process that runs the loop: what it computed and what it waited."""

    waited_s: float = 0.0

    def now_s(self) -> float:
        return time.process_time() + self.waited_s

    def wait_until(self, moment_s: float) -> None:
        self.waited_s += max(0.0, moment_s - self.now_s())


@dataclass
class SimulatedReplica:
    """An engine whose steps take time of its clock alone."""

    name: str
    clock: Clock
    sampling: Sampling
    policy_dir: Any = "policy"
    done_s: float | None = None
    """When the steps that were begun end; None where nothing was."""
    sampled: list[Answer] = field(default_factory=list)

    @property
    def tokens_generated(self) -> int:
        return self.sampling.generated

    @property
    def is_idle(self) -> bool:
        return not self.sampling.remaining and self.done_s is None

    def submit(self, request_id: str, prompt_ids: Sequence[int], *, seed: int, **sampling: Any) -> None:
        self.sampling.submit(request_id, seed)

    def begin(self, max_steps: int | None = 1) -> None:
        if not self.sampling.remaining or self.done_s is not None:
            return
        began_s = self.clock.now_s()
        seconds, self.sampled = self.sampling.advance(max_steps)
        self.done_s = began_s + seconds

    def step(self) -> list[Answer]:
        self.begin(max_steps=None)
        assert self.done_s is not None
        self.clock.wait_until(self.done_s)
        self.done_s = None
        return self.sampled

    def begin_load(self, policy_dir: Any) -> None:
        self.policy_dir = policy_dir

    def begin_sleep(self) -> None:
        """There is no GPU."""

    def begin_wake(self) -> None:
        """There is no GPU."""

    def finish(self) -> None:
        """Nothing was begun."""

    def kill(self) -> None:
        """There is no process."""


def first_done(replicas: Sequence[SimulatedReplica]) -> SimulatedReplica:
    """The one whose steps end first: `step` waits for it."""
    return min(replicas, key=lambda replica: replica.done_s if replica.done_s is not None else float("inf"))


@dataclass(frozen=True)
class Played:
    """What a rollout took: `driver_s` computed by the driver, `wall_s` from its beginning to its end."""

    episodes: list[Episode]
    driver_s: float
    wall_s: float
    engines: list[SimulatedReplica]


def by_driver(batch: Batch, replicas: int, step_s: float, tokens: int) -> Played:
    """One loop for all replicas (`rollout.loop: driver`)."""
    clock = Clock()
    engines = [SimulatedReplica(f"replica {n}", clock, Sampling(step_s, tokens, batch.answer)) for n in range(replicas)]
    computed_s, began_s = time.process_time(), clock.now_s()
    fleet = EngineFleet(engines, "policy", first_done)
    episodes = run_episodes(fleet, batch.tokenizer, batch.make_environment, batch.requests, batch.rules)
    return Played(episodes, time.process_time() - computed_s, clock.now_s() - began_s, engines)


def by_replicas(batch: Batch, replicas: int, step_s: float, tokens: int) -> Played:
    """A loop beside each replica (`rollout.loop: replicas`): one after the other here, each with a clock of its own,
    and the driver takes the episodes as they cross between processes."""
    homes = dealt([request.group_id for request in batch.requests], replicas)
    engines, crossed, walls_s = [], [], []
    for number in range(replicas):
        requests = [request for request in batch.requests if homes[request.group_id] == number]
        clock = Clock()
        engine = SimulatedReplica(f"replica {number}", clock, Sampling(step_s, tokens, batch.answer))
        began_s = clock.now_s()
        for episode in ended_episodes(engine, batch.tokenizer, batch.make_environment, requests, batch.rules):
            crossed.append(pickle.dumps(episode, protocol=5))
        walls_s.append(clock.now_s() - began_s)
        engines.append(engine)
    computed_s = time.process_time()
    episodes = [pickle.loads(message) for message in crossed]
    driver_s = time.process_time() - computed_s
    return Played(episodes, driver_s, max(*walls_s, driver_s), engines)


def batch_of(tasks: int, tokens: int) -> Batch:
    """`tasks` groups of eight, whose answers have so many tokens."""
    tokenizer = load_tokenizer(POLICY)
    thought = tokenizer.encode(THOUGHT, add_special_tokens=False)
    answer = tokenizer.encode("<think>") + thought * (tokens // len(thought)) + tokenizer.encode(ACTION)
    make_environment, requests = alfworld_requests(8 * tasks)
    # Episodes end by their steps: a busy machine must not cut them.
    rules = replace(settings(MAX_STEPS, max_prompt_tokens=900), timeout_s=math.inf)
    return Batch(tokenizer, answer, make_environment, requests, rules)


def row(tasks: int, replicas: int, loop: str, step_s: float, tokens: int) -> str:
    """A row of the table: `tasks` groups of eight on so many replicas."""
    played = (by_driver if loop == "driver" else by_replicas)(batch_of(tasks, tokens), replicas, step_s, tokens)
    turns = sum(len(episode.turns) for episode in played.episodes)
    idle = 1 - sum(engine.sampling.worked_s for engine in played.engines) / (replicas * played.wall_s)
    generated = [engine.tokens_generated for engine in played.engines]
    imbalance = max(generated) * replicas / sum(generated)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    alone_s, driver_s = MAX_STEPS * tokens * step_s, played.driver_s
    return (
        f"| {tasks} x 8 | {replicas} | {loop} | {turns:,} | {played.wall_s:.0f} | {alone_s:.0f} | {driver_s:.1f} "
        f"| {1000 * driver_s / turns:.2f} | {idle:.0%} | {imbalance:.2f} | {peak_gib:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["16:1", "16:8", "128:32", "512:128"], metavar="TASKS:REPLICAS")
    parser.add_argument("--loops", nargs="+", default=["driver", "replicas"], choices=["driver", "replicas"])
    parser.add_argument("--step-ms", type=float, default=5.0, help="of an engine, for all that runs on it")
    parser.add_argument("--tokens", type=int, default=150, help="mean length of a response")
    given = parser.parse_args()
    print(
        "| episodes | replicas | loop | turns | seconds of the rollout | of an episode by itself | driver's seconds "
        "| ms a turn | replicas idle | imbalance | peak GiB |\n|" + "---|" * 11
    )
    for size in given.sizes:
        tasks, replicas = map(int, size.split(":"))
        for loop in given.loops:
            print(row(tasks, replicas, loop, given.step_ms / 1000, given.tokens), flush=True)


if __name__ == "__main__":
    main()
