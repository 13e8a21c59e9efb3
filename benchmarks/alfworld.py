"""ALFWorld's numbers on this machine: our simulator beside textworld, and memory: `python -m benchmarks.alfworld`.

Both engines play the same commands of the same games in turns, and must answer the same. Times are processor time,
which other work on the machine disturbs little. Games: of the data folder `--data`, else full-size generated ones.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import envs
from benchmarks.alfworld_conformance import random_command
from benchmarks.textworld_oracle import OriginalWorld
from envs.alfworld.games import Game
from envs.alfworld.pddl import parse
from envs.alfworld.tasks import game_of
from envs.alfworld.world import World


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alfworld", description=__doc__)
    parser.add_argument("--data", default="generated", help="folder with games (its train split is used)")
    parser.add_argument("--games", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="of each game")
    parser.add_argument("--episodes", type=int, default=300, help="that run at once when memory is measured")
    parser.add_argument("--part", choices=sorted(PARTS), help="measure one part, in this process")
    given = parser.parse_args()
    if given.part:
        PARTS[given.part](given)
        return
    for part in PARTS:
        subprocess.run([sys.executable, "-m", "benchmarks.alfworld", *sys.argv[1:], "--part", part], check=True)


def measure_speed(given: argparse.Namespace) -> None:
    """Load and reset, and steps, in both engines in turns."""
    games = list(_spread(given.data, given.games))
    _row(f"{len(games)} games, {given.steps} steps each", "load + reset, ms", "step, ms")
    _row(*["---"] * 3)
    # What textworld was told to remember it does not forget: first as it is, then as the tests run it.
    for name, remember in (("textworld", False), ("textworld that remembers", True)):
        original = OriginalWorld(remember)
        _compare(original, games[0], given.steps)  # warm
        times_ms = [sum(some) for some in zip(*(_compare(original, game, given.steps) for game in games), strict=True)]
        load, load_original = (total / len(games) for total in times_ms[:2])
        step, step_original = (total / len(games) / given.steps for total in times_ms[2:])
        _row(name, f"{load_original:.0f}", f"{step_original:.2f}")
        _row("our simulator, in turns with it", f"{load:.2f}", f"{step:.3f}")
        _row("ratio", f"{load_original / load:.0f}", f"{step_original / step:.0f}")
    print()


def _compare(original: OriginalWorld, game: Game, steps: int) -> tuple[float, float, float, float]:
    """Processor time in ms: our load and reset, the original's, our steps, the original's."""
    parse.cache_clear()
    load, (world, observation) = _timed(lambda: _started(game))
    load_original, expected = _timed(lambda: _started_again(original, game))
    step = step_original = 0.0
    rng, seen = random.Random(game.game_id), set(world.admissible_commands)
    for _ in range(steps):
        assert observation == expected
        assert world.admissible_commands == original.admissible_commands
        seen.update(world.admissible_commands)
        command = random_command(rng, world.admissible_commands, sorted(seen))
        ours, observation = _timed(lambda: world.step(command))  # noqa: B023
        theirs, expected = _timed(lambda: original.step(command))  # noqa: B023
        step, step_original = step + ours, step_original + theirs
    return load, load_original, step, step_original


def _started(game: Game) -> tuple[World, str]:
    world = World(game)
    return world, world.reset()


def _started_again(original: OriginalWorld, game: Game) -> str:
    original.load(game)
    return original.reset(game)


def measure_memory(given: argparse.Namespace) -> None:
    """Episodes of as many different games, all at once in this process."""
    _row(f"{given.episodes} episodes of different games at once, in one process", "memory, MiB")
    _row("---", "---")
    _row("before", f"{_resident_mib():.0f}")
    make = lambda: envs.make("alfworld", {"data": given.data})  # noqa: E731
    tasks = make().tasks("train")
    _row(f"with the list of {len(tasks):,} tasks", f"{_resident_mib():.0f}")
    episodes = []
    for task in tasks[: given.episodes]:
        environment = make()
        environment.reset(task)
        environment.step(environment.admissible_actions[0])
        episodes.append(environment)
    _row(f"with {len(episodes)} episodes", f"{_resident_mib():.0f}")
    print()


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"speed": measure_speed, "memory": measure_memory}


def _spread(data: str, count: int) -> list[Game]:
    """`count` games from all over the training split."""
    environment: Any = envs.make("alfworld", {"data": data})
    tasks = environment.tasks("train")
    return [game_of(task, environment.options.generator) for task in tasks[:: max(1, len(tasks) // count)][:count]]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started_s = time.process_time()
    result = work()
    return 1000 * (time.process_time() - started_s), result


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
