"""`python -m benchmarks.fleet_actors`: a fleet of real processes on a Ray cluster that sleep in place of sampling.

What `benchmarks.fleet_simulation` counts by clocks passes here as it does: each replica is a place on a local raylet,
an actor without a GPU, and a process below it (`infra.ray_hosting`, as in a campaign), which sleeps as long as the cost
model (`flows.cost`, Qwen2.5-3B on an H100, eight episodes at once) says that sampling takes. The driver is the real
one: fleet, calls over Ray, and with `rollout.loop: driver` the worlds (small rooms of ALFWorld) and the tokenizer.
With `rollout.loop: replicas` the replicas play no world, and tell an episode that was played before.

* idle of the replicas: the share of the rollout in which they do not sleep: they wait for the driver, have no work
  left, or wait for a core of this machine, on which all of them are.
* noticed: from the SIGKILL of an actor, while all play, to the InfrastructureError in the driver.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

from benchmarks.fleet_simulation import MAX_STEPS, Batch, batch_of, by_driver
from flows.cost import ASSUMED, CARDS, estimate, play_of, play_seconds
from infra import ray_hosting, ray_nodes
from infra.ray_hosting import RayGroup, RayPlaces
from opid_core.config import load_config
from opid_core.errors import InfrastructureError
from opid_core.policy_shape import KNOWN_SHAPES
from opid_core.rollout.engines.fleet import EngineFleet
from opid_core.rollout.episodes import Episode, EpisodeRequest, run_episodes
from tasks.players import PlayerFleet, RemotePlayer
from tasks.remote_engine import RemoteEngine
from tests.clusters import Cluster, raylets, use_a_token

FACTORY = "benchmarks.sleeping:SleepingReplica"
CONFIG = "configs/paper/alfworld_qwen2.5_3b.yaml"
POLICY_DIR = Path("policy")
STARTS = 3
"""Tries to start the raylet, which Ray ends where it needs more than 30 s."""
START_TIMEOUT_S = 1800.0
SHARE_OF_A_CPU = 0.01
"""What a place reserves: it only sleeps."""
KILLED_AFTER_S = (1.0, 3.0)


class SleepingPlayer(RemotePlayer):
    """A `SleepingReplica` behind a group."""

    turns = MAX_STEPS

    def begin_play(self, requests: Sequence[EpisodeRequest], temperature: float | None) -> None:
        """Begin to play `requests`, of which ids and seeds cross."""
        self._requests = {request.trajectory_id: request for request in requests}
        self.group.begin("play", [(request.trajectory_id, request.seed) for request in requests], self.turns)

    def ended(self) -> Episode | None:
        """See `RemotePlayer.ended`."""
        told = super().ended()
        if told is None:
            return None
        name, episode = told  # pyright: ignore[reportGeneralTypeIssues]
        return replace(pickle.loads(episode), request=self._requests[name])


def step_seconds(replicas: int) -> float:
    """Of a token of all that runs on a replica, prompts included, by the cost model."""
    config = load_config(CONFIG, ["environment.options={}", "rollout.loop=replicas", f"learner.ranks={replicas}"])
    engine = config.engine.model_copy(update={"replicas": replicas})
    rollout = config.rollout.model_copy(update={"tasks_per_iteration": replicas, "group_size": 8})
    config = config.model_copy(update={"engine": engine, "rollout": rollout})
    shape, card = KNOWN_SHAPES["qwen2.5-3b"], CARDS["H100"]
    steps = estimate(config, shape, card).samples / (8 * replicas)
    seconds = play_seconds(config, shape, card, replace(ASSUMED, turn_s=0.0), 8 * replicas)
    return seconds / (steps * play_of(config).response_tokens)


@contextmanager
def one_node() -> Iterator[Cluster]:
    """A raylet that this process has joined."""
    with ExitStack() as stack:
        for left in reversed(range(STARTS)):
            try:
                cluster = stack.enter_context(raylets(1, cpus=os.cpu_count() or 1))
                break
            except AssertionError:
                if not left:
                    raise
        ray_nodes.connect(cluster.address)
        try:
            yield cluster
        finally:
            ray_nodes.disconnect()


@contextmanager
def replicas_on(count: int, batch: Batch, step_s: float, tokens: int) -> Iterator[tuple[RayPlaces, list[RayGroup]]]:
    """Places, and a replica in each that has started."""
    request = batch.requests[0]
    (episode,) = by_driver(replace(batch, requests=[request]), 1, step_s, tokens).episodes
    arguments = POLICY_DIR, step_s, tokens, batch.answer, pickle.dumps(episode, protocol=5)
    places = RayPlaces([{"CPU": SHARE_OF_A_CPU}] * count, START_TIMEOUT_S)
    try:
        names = [f"engine replica {number + 1} of {count}" for number in range(count)]
        groups = [places.group(name, FACTORY, *arguments, seats=[seat], envs=[{}]) for seat, name in enumerate(names)]
        for group in groups:
            group.create()
        for group in groups:
            group.call("worked_s")
        yield places, groups
    finally:
        places.close()


def first_done(replicas: Sequence[RemoteEngine]) -> RemoteEngine:
    """See `EngineFleet`."""
    done = ray_hosting.first_done([replica.group for replica in replicas])  # pyright: ignore[reportArgumentType]
    return next(replica for replica in replicas if replica.group is done)


def family(cluster: Cluster) -> list[psutil.Process]:
    """The processes of the cluster."""
    raylet = psutil.Process(cluster.raylets[0].pid)
    return [raylet, *raylet.children(recursive=True)]


def cpu_seconds(cluster: Cluster) -> float:
    """Of the cluster's living processes, so far."""
    total_s = 0.0
    for process in family(cluster):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def memory_mib(processes: Sequence[psutil.Process]) -> float:
    """Proportional set size: what processes share is counted once."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def rollout(cluster: Cluster, groups: Sequence[RayGroup], loop: str, batch: Batch, step_s: float, tokens: int) -> str:
    """A row of the table: one rollout of all replicas."""
    before_s = sum(group.call("worked_s") for group in groups)
    handle = SleepingPlayer if loop == "replicas" else RemoteEngine
    replicas = [handle(group.name, group, POLICY_DIR) for group in groups]
    others_s, computed_s, began_s = cpu_seconds(cluster), time.process_time(), time.monotonic()
    if loop == "replicas":
        episodes = [*PlayerFleet(replicas, POLICY_DIR, first_done).play(batch.requests, None)]  # pyright: ignore
    else:
        fleet = EngineFleet(replicas, POLICY_DIR, first_done)  # pyright: ignore[reportArgumentType]
        episodes = run_episodes(fleet, batch.tokenizer, batch.make_environment, batch.requests, batch.rules)
    wall_s, driver_s = time.monotonic() - began_s, time.process_time() - computed_s
    others_s = cpu_seconds(cluster) - others_s
    worked_s = sum(group.call("worked_s") for group in groups) - before_s
    generated = [replica.tokens_generated for replica in replicas]
    turns = sum(len(episode.turns) for episode in episodes)
    assert turns == MAX_STEPS * len(batch.requests)
    count = len(groups)
    return (
        f"| {count} | {loop} | {len(episodes):,} | {turns:,} | {wall_s:.0f} | {MAX_STEPS * tokens * step_s:.0f} "
        f"| {driver_s:.1f} | {1000 * driver_s / turns:.2f} | {others_s:.0f} | {1 - worked_s / (count * wall_s):.0%} "
        f"| {max(generated) * count / sum(generated):.2f} | {memory_mib(family(cluster)) / 1024:.1f} "
        f"| {memory_mib([psutil.Process()]) / 1024:.1f} |"
    )


def noticed_s(
    places: RayPlaces, groups: Sequence[RayGroup], kills: int, batch: Batch, turns: int, generator: random.Random
) -> list[float]:
    """Seconds from the loss of an actor to the error, once for each of `kills`, while episodes of so many `turns` are
    played; the rest of the fleet plays the next ones."""
    left, found = [*range(len(groups))], []
    for _ in range(kills):
        players = [SleepingPlayer(groups[seat].name, groups[seat], POLICY_DIR) for seat in left]
        for player in players:
            player.turns = turns
            player.group.call("worked_s")  # what was begun before is over
        victim, killed_s = generator.choice(left), []

        def kill(victim: int = victim, killed_s: list[float] = killed_s) -> None:
            killed_s.append(time.monotonic())
            os.kill(places.process_ids[victim], signal.SIGKILL)

        timer = threading.Timer(generator.uniform(*KILLED_AFTER_S), kill)
        timer.start()
        told = ""
        try:
            for _ in PlayerFleet(players, POLICY_DIR, first_done).play(batch.requests, None):  # pyright: ignore
                pass
        except InfrastructureError as error:
            if not killed_s:
                raise
            found.append(time.monotonic() - killed_s[0])
            told = str(error)
        finally:
            timer.cancel()  # the process may be gone, and its number another's
        if f"the {groups[victim].name} (process" not in told:
            raise AssertionError(f"the loss of {groups[victim].name} was not named: {told or 'all was played'}")
        left.remove(victim)
    return found


def main() -> None:
    """Print the tables, a line as soon as it is there; what Ray prints goes to stderr."""
    tell = partial(print, file=sys.stdout, flush=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--loops", nargs="+", default=["driver", "replicas"], choices=["driver", "replicas"])
    parser.add_argument("--kills", type=int, default=5, help="of each fleet")
    parser.add_argument("--tokens", type=int, default=150, help="mean length of a response")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed and when")
    given = parser.parse_args()
    with redirect_stdout(sys.stderr):
        measure(given, tell)


def measure(given: argparse.Namespace, tell: Callable[[str], None]) -> None:
    """What `main` was asked for."""
    use_a_token()  # the same for one cluster after the other
    generator, drills, each_mib = random.Random(given.seed), [], 0.0
    tell(
        "| replicas | loop | episodes | turns | seconds of the rollout | of an episode by itself | driver's seconds "
        "| ms a turn | replicas' own seconds | replicas idle | imbalance | GiB of the replicas | of the driver |\n|"
        + "---|"
        * 13
    )
    for count in given.replicas:
        step_s, batch = step_seconds(count), batch_of(count, given.tokens)
        if (room_mib := psutil.virtual_memory().available / 2**20) < count * each_mib:
            drills.append(
                f"| {count} | not started: each takes {each_mib:.0f} MiB, {room_mib:.0f} MiB are free | | | | |"
            )
            break
        # So that all play at the last moment of a kill, however short their responses.
        turns = math.ceil(2 * KILLED_AFTER_S[1] / (given.tokens * step_s)) + 1
        with one_node() as cluster:
            alone_mib, started_s = memory_mib(family(cluster)), time.monotonic()
            with replicas_on(count, batch, step_s, given.tokens) as (places, groups):
                started_s = time.monotonic() - started_s
                each_mib = (memory_mib(family(cluster)) - alone_mib) / count
                for loop in given.loops:
                    tell(rollout(cluster, groups, loop, batch, step_s, given.tokens))
                found = noticed_s(places, groups, given.kills, batch, turns, generator)
        drills.append(
            f"| {count} | {each_mib:.0f} | {started_s:.0f} | {len(found)} | {statistics.median(found):.2f} "
            f"| {min(found):.2f} to {max(found):.2f} |"
        )
    tell(
        "\n| replicas | MiB of each | seconds to start | actors killed | noticed after, s: median | range |\n|"
        + "---|" * 6
    )
    tell("\n".join(drills))
    tell(f"\nA step takes {1000 * step_s:.2f} ms; the load at the end is {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
