"""Manifests: files that name the tasks of each split by id, in task order, for any environment.

Either text with a `split id` pair a line (`#` begins a comment), or JSON `{"train": [id, ...]}`. A task belongs to one
split, and is named once: what is held out must not be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from envs.base import Task
from opid_core.errors import ConfigError, DataError
from opid_core.local_paths import local_path
from opid_core.reading import parse_json, read_text


def pick(tasks: Sequence[Task], manifest: str, split: str) -> list[Task]:
    """The tasks that `manifest` names for `split`, in its order.

    Raises ConfigError for an unreadable file and one without the split, DataError that names file and line (or entry)
    for an unknown or repeated id.
    """
    by_id = {task.task_id: task for task in tasks}
    picked = []
    for where, task_id in _manifest_entries(manifest, split):
        if task_id not in by_id:
            raise DataError(f"{where}: no task {task_id!r} among the {len(tasks)} of split {split}")
        picked.append(by_id[task_id])
    return picked


def pick_splits(splits: Sequence[str], manifest: str | None) -> list[str]:
    """Those of `splits` that `manifest` names; all of them without one."""
    if manifest is None:
        return list(splits)
    named = manifest_splits(manifest)
    return [split for split in splits if named.get(split)]


def _manifest_entries(manifest: str, split: str) -> Iterator[tuple[str, str]]:
    """(where it stands, task id) of each entry of `split`."""
    splits = manifest_splits(manifest)
    if not splits.get(split):
        raise ConfigError(f"split: {manifest} names no task of {split!r}; it has: {', '.join(sorted(splits))}")
    yield from splits[split]


def manifest_splits(manifest: str) -> dict[str, list[tuple[str, str]]]:
    """Split -> (where it stands, task id) of each of its entries.

    Raises ConfigError for an unreadable file, DataError for one of another form and for a task that is named twice, be
    it for one split or for two.
    """
    try:
        text = read_text(local_path(manifest, "environment.options.manifest"))
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
    _refuse_repeated(splits)
    return splits


def _refuse_repeated(splits: dict[str, list[tuple[str, str]]]) -> None:
    named: dict[str, tuple[str, str]] = {}
    for split, entries in splits.items():
        for where, task_id in entries:
            if task_id in named:
                other_split, other = named[task_id]
                raise DataError(
                    f"{where}: task {task_id!r} is named twice: here for {split}, for {other_split} at {other}"
                )
            named[task_id] = split, where


def _json_manifest(text: str, manifest: str) -> dict[str, list[tuple[str, str]]]:
    def distinct(fields: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in fields]
        for number, name in enumerate(names, start=1):
            if (first := names.index(name) + 1) < number:
                raise DataError(f"{manifest}, field {name}: stands twice, as field {first} and as field {number}")
        return dict(fields)

    try:
        data = parse_json(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise DataError(f"{manifest}, line {error.lineno}: not valid JSON: {error.msg}") from None
    splits = {}
    for split, ids in data.items():
        if not isinstance(ids, list) or not all(isinstance(task_id, str) for task_id in ids):
            raise DataError(f"{manifest}, field {split}: expected a list of task ids")
        splits[split] = [(f"{manifest}, {split}, entry {n}", task_id) for n, task_id in enumerate(ids, start=1)]
    return splits
