"""The processes of a round, and which of them is what."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

MARK = "OPID_CHAOS_ROUND"
"""Environment variable that all processes of a round inherit."""

DRIVER, TREE, ENGINE, RANK, TORCHRUN = "driver", "whole tree", "engine", "learner rank", "torchrun"
PREFECT, STORAGE, WORKER, RUN = "Prefect server", "storage server", "worker", "flow run"
FROZEN = "driver, frozen"
"""SIGSTOP instead, until another driver has long taken the campaign over; then it thaws."""


def processes_of(mark: str) -> list[psutil.Process]:
    """Every living process with the round's mark in its environment."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def kind_of(process: psutil.Process) -> str | None:
    """What a process of a round is; None where it is none of the victims, has just ended, or still loads."""
    try:
        words = process.cmdline()
        if "torch.distributed.run" in words:
            return TORCHRUN
        if "infra.hosting" in words:
            return _hosted(process)
    except psutil.Error:
        return None
    text = " ".join(words)
    marks = {
        "flows.cli train": DRIVER,
        "benchmarks.slow_upload": DRIVER,
        "prefect.engine": RUN,
        "prefect worker start": WORKER,
        "flows.prefect_api": PREFECT,
    }
    return next((kind for mark, kind in marks.items() if mark in text), None)


def kill(victim: str, mark: str, generator: random.Random) -> bool:
    """SIGKILL one victim of the kind (all processes of the round for the tree); whether there was one."""
    victims = processes_of(mark)
    if victim != TREE:
        candidates = [process for process in victims if kind_of(process) == victim and not _is_frozen(process)]
        victims = [generator.choice(candidates)] if candidates else []
    return sum(_killed(victims)) > 0


def _is_frozen(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def commands(processes: Sequence[psutil.Process]) -> list[str]:
    """Process ids and command lines, for messages."""
    texts = []
    for process in processes:
        try:
            texts.append(f"{process.pid}: {' '.join(process.cmdline())[:160]}")
        except psutil.Error:
            texts.append(f"{process.pid}: ended meanwhile")
    return texts


def _killed(processes: Sequence[psutil.Process]) -> Iterator[bool]:
    for process in processes:
        try:
            process.kill()
            yield True
        except psutil.NoSuchProcess:
            yield False


def _hosted(process: psutil.Process) -> str | None:
    """The command lines of engine and learner are alike, their libraries are not."""
    if "RANK" in process.environ():
        return RANK
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return None
    if "/vllm/" in maps:
        return ENGINE
    return RANK if "/torch/" in maps else None  # of a learner of one rank, or the reference policy
