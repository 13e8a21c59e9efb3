"""Episodes on textworld, each in a process of its own: textworld is not thread-safe.

A server imports textworld once and forks a process for every episode, in a few milliseconds and with shared memory. A
process that dies or hangs breaks its own episode alone. The server ends when this process closes its end of their
socket, however that happens, and the kernel then kills what the server forked (PR_SET_PDEATHSIG). Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from envs.alfworld.games import Game
from envs.alfworld.original import OriginalWorld
from envs.alfworld.pddl import parse
from opid_core.errors import EnvironmentFault

_PR_SET_PDEATHSIG = 1


class TextworldWorld:
    """One episode of a game on textworld, with the fields of `envs.alfworld.world.World`.

    Raises DataError for a game that the native simulator could not use either; EnvironmentFault, from `reset` and
    `step`, when the episode's process died, gave no answer within `timeout_s`, or textworld failed.
    """

    timeout_s = 120.0
    """How long one answer may take; loading a large room takes a second."""

    def __init__(self, game: Game) -> None:
        parse(game)
        self.game = game
        self.admissible_commands: list[str] = []
        self.won = False
        self.process_id = 0
        self._connection: Connection | None = None

    def reset(self) -> str:
        """Start from the game's initial state; the first observation, with textworld's banner and the task sentence."""
        if self._connection is None:
            self._connection = _fork()
            self.process_id = self._answer()
        return self._ask("reset", self.game)

    def step(self, command: str) -> str:
        """Do `command` and return the observation; what is not admissible changes nothing."""
        return self._ask("step", command)

    def _ask(self, method: str, argument: Game | str) -> str:
        if self._connection is None:
            raise EnvironmentFault(f"game {self.game.game_id}: its textworld process is gone")
        with suppress(OSError):  # a process that died is noticed below
            self._connection.send((method, argument))
        answer = self._answer()
        if isinstance(answer, str):
            raise EnvironmentFault(f"game {self.game.game_id}: textworld failed:\n{answer}")
        observation, self.admissible_commands, self.won = answer
        return observation

    def _answer(self) -> Any:
        assert self._connection is not None
        try:
            if self._connection.poll(self.timeout_s):
                return self._connection.recv()
            what = f"gave no answer within {self.timeout_s:g} s"
            if self.process_id:
                os.kill(self.process_id, signal.SIGKILL)
        except (EOFError, OSError):
            what = "died"
        self._connection.close()
        self._connection = None
        raise EnvironmentFault(f"game {self.game.game_id}: its textworld process {what}")


class _Server:
    """The process that forks the episodes' processes, and this end of the socket to it."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from envs.alfworld import processes; processes.serve()", str(theirs.fileno())],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which then closes the socket
                pass_fds=[theirs.fileno()],
            )


_lock = threading.Lock()
_servers: list[_Server] = []
"""The running server, if there is one."""


def _fork() -> Connection:
    """The connection to a new process. What goes wrong there is found when its first answer is awaited."""
    ours, theirs = socket.socketpair()
    with _lock, theirs:
        if _servers and _servers[0].process.poll() is not None:
            _servers.pop().control.close()
        if not _servers:
            _servers.append(_Server())
        with suppress(OSError):
            socket.send_fds(_servers[0].control, [b"."], [theirs.fileno()])
    return Connection(ours.detach())


# In the server and the processes it forks -------------------------------------------------------------------------


def serve() -> None:
    """The server; the first argument of its command is the socket to its parent."""
    control = socket.socket(fileno=int(sys.argv[1]))
    world, server = OriginalWorld(), os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked processes
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            _play(Connection(descriptors[0]), world, server)
        os.close(descriptors[0])


def _play(connection: Connection, world: OriginalWorld, server: int) -> None:
    """Answer until the other end closes: observation, admissible commands and won, or the text of an error."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # it died before we asked
        os._exit(0)
    with suppress(EOFError, OSError):
        connection.send(os.getpid())
        while True:
            method, argument = connection.recv()
            try:
                observation = getattr(world, method)(argument)
                answer = (observation, world.admissible_commands, world.won)
            except Exception:  # the boundary: whatever textworld raised is told to the episode
                answer = traceback.format_exc()
            connection.send(answer)
    os._exit(0)
