"""Task lists of search-based QA: generated or stored questions by split."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from envs.base import Task, check_split
from envs.manifest import manifest_splits, pick, pick_splits
from envs.search_qa.data import Question, question_files, read_questions
from envs.search_qa.generator import SPLITS, GeneratorOptions, make_world
from opid_core.errors import ConfigError

HELD_OUT_SHARE = 0.1
"""Share of the questions of a file without splits that `valid_unseen` gets; `train` gets the others."""


def split_of(question: Question) -> str:
    """The question's own split, else one by its hash: the same on every machine, whatever else the file holds."""
    if question.split:
        return question.split
    return "valid_unseen" if int(_hash(question)[:8], 16) < HELD_OUT_SHARE * 2**32 else "train"


def stored_tasks(path: str, split: str, manifest: str | None = None) -> list[Task]:
    """The questions of `split` in a file, or a folder of files, in the order of their hashes: every prefix mixes the
    data sources.

    With a `manifest` (a file of task ids a split) the splits and their order are the manifest's instead. Raises
    ConfigError for a missing file and an unknown split, DataError for a question or an id that cannot be used.
    """
    by_split = _questions_by_split(path)
    if manifest:
        return pick(tasks_of([question for part in by_split.values() for question in part]), manifest, split)
    if split not in by_split:
        raise ConfigError(f"split: unknown split {split!r}; {path} has: {', '.join(sorted(by_split))}")
    return tasks_of(by_split[split])


def stored_splits(path: str, manifest: str | None = None) -> list[str]:
    """The splits of a file's questions, or those of the manifest."""
    if manifest:
        return pick_splits(sorted(manifest_splits(manifest)), manifest)
    return sorted(_questions_by_split(path))


def generated_splits(manifest: str | None = None) -> list[str]:
    """The splits of the generated questions (those that the manifest names, if there is one)."""
    return pick_splits(SPLITS, manifest)


def generated_tasks(options: GeneratorOptions, split: str, manifest: str | None = None) -> list[Task]:
    """The questions of `split` about the generated world (those that `manifest` names, in its order)."""
    check_split(split, SPLITS)
    tasks = tasks_of(make_world(options).questions[split])  # pyright: ignore[reportArgumentType] -- frozen, hence hashable
    return pick(tasks, manifest, split) if manifest else tasks


def tasks_of(questions: Sequence[Question]) -> list[Task]:
    """One task a question; its type is the data source, so that a report by type is one by data set."""
    return [Task(question.task_id, question.data_source, question) for question in questions]


def _questions_by_split(path: str) -> dict[str, list[Question]]:
    files = question_files(path, "environment.options.questions")
    return _by_split(*((file, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache(maxsize=4)
def _by_split(*files_and_times_ns: tuple[Path, int]) -> dict[str, list[Question]]:
    splits: dict[str, list[Question]] = {}
    for question in sorted(read_questions(*(file for file, _ in files_and_times_ns)), key=_hash):
        splits.setdefault(split_of(question), []).append(question)
    return splits


def _hash(question: Question) -> str:
    return hashlib.sha256(question.task_id.encode()).hexdigest()
