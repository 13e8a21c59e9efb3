"""Task lists of ALFWorld: stored games by split, manifests, and the game behind a task."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.alfworld import generator
from envs.alfworld.games import Game, folder_splits, read_folder, read_pack
from envs.base import Task
from opid_core.errors import ConfigError, DataError

_PACK_ENDINGS = (".jsonl", ".jsonl.xz")


def stored_splits(data: str) -> dict[str, Path]:
    """Split -> its pack or folder. Raises ConfigError for a folder that is missing or holds no games."""
    expanded = os.path.expandvars(os.path.expanduser(data))
    if "$" in expanded:
        raise ConfigError(f"environment.options.data: {data}: the environment variable is not set")
    folder = Path(expanded)
    if not folder.is_dir():
        raise ConfigError(f"environment.options.data: {folder} is no folder (use 'generated' for generated games)")
    packs: dict[str, Path] = {}
    for ending in _PACK_ENDINGS:
        packs.update({file.name.removesuffix(ending): file for file in sorted(folder.glob(f"*{ending}"))})
    splits = packs or folder_splits(folder)
    if not splits:
        raise ConfigError(
            f"environment.options.data: {folder} holds neither packs (train.jsonl.xz ...) nor what alfworld-download"
            f" makes (json_2.1.1/train/<task>/<trial>/game.tw-pddl)"
        )
    return splits


def stored_tasks(data: str, split: str, task_types: Sequence[str]) -> list[Task]:
    """The stored games of `split` of the given types, in the pack's order (of a folder: sorted by id)."""
    splits = stored_splits(data)
    if split not in splits:
        raise ConfigError(f"split: unknown split {split!r}; {data} has: {', '.join(sorted(splits))}")
    games = _read(splits[split])
    wanted = [Task(game.game_id, game.task_type, game) for game in games if game.task_type in task_types]
    if not wanted:
        raise ConfigError(f"environment.options.task_types: {splits[split]} has no game of {', '.join(task_types)}")
    return wanted


@functools.lru_cache(maxsize=4)
def _read(path: Path) -> tuple[Game, ...]:
    try:
        return tuple(read_folder(path) if path.is_dir() else read_pack(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def game_of(task: Task, options: generator.GeneratorOptions) -> Game:
    """The game of a task: the stored one, or made by the generator (cached: the members of a group share it)."""
    if isinstance(task.payload, Game):
        return task.payload
    payload = tuple(sorted(task.payload.items()))
    return _generated(task, payload, options)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable


@functools.lru_cache(maxsize=64)
def _generated(task: Task, _payload: tuple, options: generator.GeneratorOptions) -> Game:
    return generator.game(task, options)


def pick(tasks: Sequence[Task], manifest: str, split: str) -> list[Task]:
    """The tasks that `manifest` names for `split`, in its order.

    Raises ConfigError for an unreadable file and one without the split, DataError that names file and line (or entry)
    for an unknown or repeated id.
    """
    by_id = {task.task_id: task for task in tasks}
    picked: dict[str, Task] = {}
    for where, task_id in _manifest_entries(manifest, split):
        if task_id not in by_id:
            raise DataError(f"{where}: no task {task_id!r} among the {len(tasks)} of split {split}")
        if task_id in picked:
            raise DataError(f"{where}: task {task_id!r} is named twice")
        picked[task_id] = by_id[task_id]
    return list(picked.values())


def _manifest_entries(manifest: str, split: str) -> Iterator[tuple[str, str]]:
    """(where it stands, task id) of each entry of `split`."""
    try:
        text = Path(manifest).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"environment.options.manifest: {manifest} cannot be read: {error}") from None
    if text.lstrip().startswith("{"):
        splits = _json_manifest(text, manifest)
    else:
        splits = {}
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.partition("#")[0].split()
            if len(words) not in (0, 2):
                raise DataError(f"{manifest}, line {number}: expected `split id`, got {line!r}")
            if words:
                splits.setdefault(words[0], []).append((f"{manifest}, line {number}", words[1]))
    if not splits.get(split):
        raise ConfigError(f"split: {manifest} names no task of {split!r}; it has: {', '.join(sorted(splits))}")
    yield from splits[split]


def _json_manifest(text: str, manifest: str) -> dict[str, list[tuple[str, str]]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{manifest}, line {error.lineno}: not valid JSON: {error.msg}") from None
    splits = {}
    for split, ids in data.items():
        if not isinstance(ids, list) or not all(isinstance(task_id, str) for task_id in ids):
            raise DataError(f"{manifest}, field {split}: expected a list of task ids")
        splits[split] = [(f"{manifest}, {split}, entry {n}", task_id) for n, task_id in enumerate(ids, start=1)]
    return splits
