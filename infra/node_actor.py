"""The part of a campaign on one node of a cluster: an actor that hosts processes there, as `infra.hosting` does on the
driver's machine. What it is asked from afar runs in threads of its own, so that it can always tell news and end things.

The hosted object never lives in the actor itself: a process below it can be killed and waited for, its log is a file,
and no library in it meets those of the cluster.
"""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra import processes
from infra.groups import StoredFolder
from infra.hosting import HostedGroup
from opid_core.errors import InfrastructureError, OpidError

Answer = tuple[str, Any, list[tuple[Any, ...]]]
"""`result`, `error` or `death`; the result, or name and text of the error; the progress that was not told yet."""


class NodeActor:
    """Processes by the key of their group; one process of a group, its rank."""

    def __init__(self) -> None:
        # Ray's own watch takes a raylet that is dead but not reaped for alive.
        processes.die_with_parent()
        self._groups: dict[str, HostedGroup] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._progress: dict[str, list[tuple[Any, ...]]] = {}
        self._failed: dict[str, Exception] = {}
        self._fetched: dict[StoredFolder, Path] = {}

    def about(self) -> tuple[str, int, list[str]]:
        """Host name and process id, and the GPUs that this place has, as CUDA_VISIBLE_DEVICES names them."""
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return socket.gethostname(), os.getpid(), [gpu for gpu in given.split(",") if gpu]

    def free_port(self) -> int:
        """A port that is free now, for the ranks' rendezvous."""
        with socket.socket() as free:
            free.bind(("", 0))
            return free.getsockname()[1]

    def start(
        self,
        key: str,
        name: str,
        factory: str,
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
        env: Mapping[str, str],
        start_timeout_s: float,
    ) -> int:
        """Start a process, see `HostedGroup`; its id."""
        given = self._here(arguments, named)
        group = HostedGroup(name, factory, *given[0], start_timeout_s=start_timeout_s, env=env, **given[1])
        group.name = f"{name} (process {group.process.pid} on {socket.gethostname()})"
        self._groups[key], self._locks[key], self._progress[key] = group, threading.Lock(), []
        return group.process.pid

    def create(self, key: str) -> None:
        """Let the process make its object; what goes wrong is the answer to the next call."""
        with self._locks[key]:
            try:
                self._groups[key].create()
            except Exception as error:  # the boundary, as in `run`
                self._failed[key] = error

    def run(
        self, key: str, method: str, arguments: tuple[Any, ...], named: Mapping[str, Any], with_progress: bool
    ) -> Answer:
        """Call a method of the object and wait for it. Nothing is raised: an error crosses as its name and text."""
        told = self._progress[key]
        with self._locks[key]:
            group = self._groups.get(key)
            if group is None:  # ended by the driver, which hears no answer to this, while the call waited its turn
                return "death", (InfrastructureError.__name__, "it was ended"), []
            try:
                if failed := self._failed.get(key):
                    raise failed
                given, by_name = self._here(arguments, named)
                if with_progress:
                    by_name["on_progress"] = lambda *values: told.append(values)
                return "result", group.attempt(method, *given, **by_name), _taken(told)
            except Exception as error:  # the boundary: it is raised again in the driver
                is_told = isinstance(error, OpidError | RuntimeError)  # else it is a bug in here
                described = type(error).__name__, str(error) if is_told else traceback.format_exc()
                return "death" if group.has_died else "error", described, _taken(told)

    def news(self, key: str) -> tuple[list[tuple[Any, ...]], str]:
        """The progress since it was asked last, and the last lines of the log."""
        return _taken(self._progress[key]), self._groups[key].last_lines()

    def kill(self, key: str) -> None:
        """End the process and all that it started, and wait until they are gone."""
        if group := self._groups.pop(key, None):
            group.kill()

    def forget(self, folder: StoredFolder) -> None:
        """Remove the copy of a folder that was made for this place alone."""
        if folder in self._fetched:
            folder.remove(self._fetched.pop(folder))

    def _here(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments with the paths of this machine. A folder is fetched and hashed once, as long as it lies there: a
        learner is given its reference with each call, and reads it with the first."""

        def local(value: Any) -> Any:
            if not isinstance(value, StoredFolder):
                return value
            whole = replace(value, part="")
            if whole not in self._fetched or not self._fetched[whole].is_dir():
                self._fetched[whole] = whole.path()
            return self._fetched[whole] / value.part

        return [local(value) for value in arguments], {name: local(value) for name, value in named.items()}


def _taken(told: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [told.pop(0) for _ in range(len(told))]
