"""Task lists of ALFWorld: stored games by split, and the game behind a task."""

from __future__ import annotations

import functools
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.alfworld import generator
from envs.alfworld.games import Game, folder_splits, read_folder, read_pack
from envs.alfworld.pddl import parse
from envs.alfworld.planner import solve
from envs.base import Task
from opid_core.errors import ConfigError, DataError
from opid_core.local_paths import local_path

_logger = logging.getLogger(__name__)

_PACK_ENDINGS = (".jsonl", ".jsonl.xz")


def stored_splits(data: str) -> dict[str, Path]:
    """Split -> its pack or folder. Raises ConfigError for a folder that is missing or holds no games."""
    folder = local_path(data, "environment.options.data")
    if not folder.is_dir():
        raise ConfigError(f"environment.options.data: {folder} is no folder (use 'generated' for generated games)")
    packs: dict[str, Path] = {}
    for ending in _PACK_ENDINGS:
        for file in sorted(folder.glob(f"[!.]*{ending}")):
            other = packs.setdefault(file.name.removesuffix(ending), file)
            if other != file:
                raise ConfigError(f"environment.options.data: {other} and {file} are one split: remove one")
    data_sets = {**({folder / "*.jsonl*": packs} if packs else {}), **folder_splits(folder)}
    if len(data_sets) > 1:
        raise ConfigError(
            f"environment.options.data: {folder} holds several data sets: {', '.join(map(str, data_sets))}; name the "
            "folder of one, or remove the others"
        )
    if not data_sets:
        raise ConfigError(
            f"environment.options.data: {folder} holds neither packs (train.jsonl.xz ...) nor what alfworld-download"
            f" makes (json_2.1.1/train/<task>/<trial>/game.tw-pddl)"
        )
    (splits,) = data_sets.values()
    return splits


def stored_tasks(
    data: str, split: str, task_types: Sequence[str], *, skip_malformed: bool = False, check_solvable: bool = False
) -> list[Task]:
    """The stored games of `split` of the given types, in the pack's order (of a folder: sorted by id).

    Raises ConfigError for an unknown split or one without such games, DataError that names a malformed game, or with
    `check_solvable` one that the planner cannot win (or leaves it out with a warning: `skip_malformed`).
    """
    splits = stored_splits(data)
    if split not in splits:
        raise ConfigError(f"split: unknown split {split!r}; {data} has: {', '.join(sorted(splits))}")
    stored, left_out = _read(splits[split], skip_malformed, check_solvable)
    wanted = [Task(one.game_id, one.task_type, one) for one in stored if one.task_type in task_types]
    if not wanted:
        other = Counter(f"of {one.task_type}" for one in stored)
        counts = ", ".join(f"{count} {reason}" for reason, count in [*other.items(), *left_out.items()])
        raise ConfigError(
            f"environment.options.task_types: {splits[split]} has no game of {', '.join(task_types)}; left out are "
            f"{counts or 'none: it is empty'}"
        )
    return wanted


@dataclass(frozen=True)
class _Stored:
    """A game with its problem compressed: to a tenth, which matters for a split of thousands."""

    game_id: str
    task_type: str
    task_desc: str
    pddl_problem: bytes


@functools.lru_cache(maxsize=4)
def _read(path: Path, skip_malformed: bool, check_solvable: bool) -> tuple[tuple[_Stored, ...], Counter[str]]:
    """The games of a split, and how many are left out for which reason."""
    malformed: list[str] | None = [] if skip_malformed else None
    left_out: Counter[str] = Counter()
    check = solve if check_solvable else parse if skip_malformed else None
    try:
        games = read_folder(path, malformed, left_out) if path.is_dir() else read_pack(path, malformed)
        stored = tuple(
            _Stored(game.game_id, game.task_type, game.task_desc, zlib.compress(game.pddl_problem.encode(), level=1))
            for game in (_checked(games, check, path, malformed) if check else games)
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if malformed:
        _logger.warning("%s: skipped %d malformed games:\n%s", path, len(malformed), "\n".join(malformed))
        left_out[f"malformed (the first: {malformed[0]})"] = len(malformed)
    return stored, left_out


def _checked(
    games: Iterable[Game], check: Callable[[Game], object], path: Path, malformed: list[str] | None
) -> Iterator[Game]:
    for game in games:
        try:
            check(game)
        except DataError as error:
            if malformed is None:
                raise DataError(f"{path}: {error}") from None
            malformed.append(f"{path}: {error}")
        else:
            yield game


def game_of(task: Task, options: generator.GameOptions) -> Game:
    """The game of a task: stored, or made by the generator (cached: the members of a group share it)."""
    if isinstance(task.payload, _Stored):
        return _restored(task.payload)
    payload = tuple(sorted(task.payload.items()))
    return _generated(task, payload, options)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable


@functools.lru_cache(maxsize=64)
def _restored(stored: _Stored) -> Game:
    return Game(stored.game_id, stored.task_type, stored.task_desc, zlib.decompress(stored.pddl_problem).decode())


@functools.lru_cache(maxsize=64)
def _generated(task: Task, _payload: tuple, options: generator.GameOptions) -> Game:
    return generator.game(task, options)
