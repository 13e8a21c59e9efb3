"""Our ALFWorld simulator against textworld, game by game: `python -m benchmarks.alfworld_conformance --data FOLDER`.

Every game of the data is played in both at once: the planner's solution, then a random walk with inadmissible and
malformed commands. After each command the observation, the sorted list of admissible commands, won and done must be the
same. Each finished game is one line of the state file, and a second run goes on where the first was stopped; games that
differed are played again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.textworld_oracle import OriginalWorld
from envs.alfworld.games import TASK_TYPES, Game
from envs.alfworld.generator import GameOptions
from envs.alfworld.planner import solve
from envs.alfworld.tasks import game_of, stored_splits, stored_tasks
from envs.alfworld.world import World

GAMES_A_PROCESS = 100
"""textworld keeps what it has parsed: after some hundred games a process has a gigabyte and is three times slower."""
_IDLE = ("go", "examine", "look", "help", "inventory")


@dataclass
class Comparison:
    """One game in both engines. `mismatch` says where they first differ; "" where they never do."""

    split: str
    game_id: str
    task_type: str
    plan: int = 0
    """Commands of the planner's solution."""
    walk: int = 0
    """Commands of the random walk."""
    refused: int = 0
    """Commands that changed nothing: inadmissible or malformed ones."""
    seconds: float = 0.0
    mismatch: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alfworld_conformance", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("OPID_SHARED_DATA", "../shared/data") + "/alfworld")
    parser.add_argument("--splits", nargs="+", default=["valid_seen", "valid_unseen", "train"])
    parser.add_argument("--limit", type=int, help="games of each split (all)")
    parser.add_argument("--walk", type=int, default=40, help="commands of the random walk")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--state", type=Path, default=Path("alfworld_conformance.jsonl"))
    parser.add_argument("--out", type=Path, help="file for the table (printed in any case)")
    given = parser.parse_args()
    stored_splits(given.data)
    games = {split: _games(given.data, split, given.limit) for split in given.splits}
    done = read_state(given.state)
    waiting = [
        (split, game, given.walk)
        for split, some in games.items()
        for game in some
        if (split, game.game_id) not in done or done[split, game.game_id].mismatch
    ]
    with given.state.open("a", encoding="utf-8") as state:
        for count, result in enumerate(_compared(waiting, given.workers), start=1):
            done[result.split, result.game_id] = result
            state.write("\n" + json.dumps(asdict(result)))  # a line that was cut off stays alone
            state.flush()
            wrong = sum(bool(one.mismatch) for one in done.values())
            print(f"\r{count} of {len(waiting)} games, {wrong} differ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    text = table(list(done.values()), {split: len(some) for split, some in games.items()})
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def compare(original: OriginalWorld, game: Game, walk: int, split: str = "") -> Comparison:
    """Play `game` in both engines and stop at the first difference."""
    result = Comparison(split, game.game_id, game.task_type)
    started_s = time.perf_counter()
    world = World(game)
    first = original.reset(game)
    result.mismatch = _difference("reset", world, world.reset(), original, first)
    for command in solve(game):
        if result.mismatch:
            break
        result.plan += 1
        result.mismatch = _step(world, original, command)
    if not result.mismatch and not world.won:
        result.mismatch = f"after the planner's {result.plan} commands: not won"
    rng, seen = random.Random(f"walk {game.game_id}"), set(world.admissible_commands)
    while not result.mismatch and result.walk < walk:
        seen.update(world.admissible_commands)
        command = random_command(rng, world.admissible_commands, sorted(seen))
        result.walk += 1
        result.refused += command.strip() not in world.admissible_commands
        result.mismatch = _step(world, original, command)
    result.seconds = round(time.perf_counter() - started_s, 3)
    return result


def random_command(rng: random.Random, admissible: Sequence[str], seen: Sequence[str]) -> str:
    """Mostly an admissible command that does something; else one that was offered before, or a malformed one."""
    doing = [command for command in admissible if command.split()[0] not in _IDLE]
    kind = rng.random()
    if kind < 0.5 and doing:
        return rng.choice(doing)
    if kind < 0.8:
        return rng.choice(admissible)
    if kind < 0.9:
        return rng.choice(seen)
    command = rng.choice(admissible)
    return rng.choice(
        [command.upper(), f"  {command} \n", command.replace(" ", "  "), f"{command}.", "", "take", "xyz"]
    )


def _step(world: World, original: OriginalWorld, command: str) -> str:
    return _difference(command, world, world.step(command), original, original.step(command))


def _difference(command: str, world: World, observation: str, original: OriginalWorld, expected: str) -> str:
    """Where the engines differ after `command`; "" where they do not."""
    pairs = {
        "observation": (observation, expected),
        "admissible": (world.admissible_commands, original.admissible_commands),
        "won": (world.won, original.won),
        "done": (world.won, original.done),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            return f"after {command!r}: {what} {ours!r}, textworld: {theirs!r}"
    return ""


def read_state(path: Path) -> dict[tuple[str, str], Comparison]:
    """The games compared before: (split, id) -> the last result. A line that was cut off counts as none."""
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            result = Comparison(**json.loads(line))
            done[result.split, result.game_id] = result
    return done


def table(results: Sequence[Comparison], sizes: Mapping[str, int]) -> str:
    """Markdown: per split and task type, the games compared, their commands and how many games differ."""
    cells: defaultdict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for result in results:
        if result.split in sizes:
            for task_type in (result.task_type, "all"):
                cells[result.split, task_type].append(result)
    lines = [
        "| split | task type | games | planner's commands | random commands | of these refused | games that differ |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for split, task_type in itertools.product(sizes, (*TASK_TYPES, "all")):
        some = cells[split, task_type]
        games = f"{len(some)} of {sizes[split]}" if task_type == "all" else f"{len(some)}"
        counts = [sum(getattr(one, name) for one in some) for name in ("plan", "walk", "refused")]
        wrong = sum(bool(one.mismatch) for one in some)
        lines.append(f"| {split} | {task_type} | {games} | {' | '.join(f'{count:,}' for count in counts)} | {wrong} |")
    wrong = [f"* {one.split} {one.game_id}: {one.mismatch}" for one in results if one.mismatch]
    return "\n".join([*lines, *(["", *wrong] if wrong else [])])


def _games(data: str, split: str, limit: int | None) -> list[Game]:
    """In a seeded order, so that a run that is stopped has played games of every task type."""
    games = [game_of(task, GameOptions()) for task in stored_tasks(data, split, TASK_TYPES)]
    return random.Random(split).sample(games, len(games))[:limit]


def _compared(waiting: Sequence[tuple[str, Game, int]], workers: int) -> Iterator[Comparison]:
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=GAMES_A_PROCESS) as pool:
        yield from pool.imap_unordered(_compare_here, waiting)


_here: list[OriginalWorld] = []
"""This process's textworld: it cannot be unloaded, so there is one."""


def _compare_here(waiting: tuple[str, Game, int]) -> Comparison:
    split, game, walk = waiting
    if not _here:
        _here.append(OriginalWorld())
        gc.disable()  # the translator makes hundreds of thousands of objects: they go all at once, after each game
        gc.freeze()
    result = compare(_here[0], game, walk, split)
    gc.collect()
    return result


if __name__ == "__main__":
    main()
