"""Objects that live in processes of their own: made there once, called from here, killed when they hang or fail.

A group has one process, or several that torchrun started; each holds its own object, and every call runs on all of
them together. The parent and each process talk over a pair of connected sockets that nobody else can reach: they have
no name, and the parent hands the process its end.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from infra import processes
from infra.scratch import make_scratch_folder
from opid_core import errors
from opid_core.errors import InfrastructureError, OpidError

_FOREIGN_FAULTS = ("AcceleratorError", "DistBackendError", "DistNetworkError", "DistStoreError", "OSError")
"""Exceptions of torch that tell of hardware or of the other ranks, and those of the operating system."""

_UNWRITTEN = ("PytorchStreamWriter failed writing", "unexpected pos", "I/O error")
"""In the texts of the errors that torch and safetensors raise where a file cannot be written."""

_PATIENCE_S = 5.0

_RENDEZVOUS = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
"""Variables by which the ranks of torchrun find each other."""


class HostedGroup:
    """The parent's handle on one object in each of `ranks` processes. Once a call has failed the group is gone."""

    def __init__(
        self,
        name: str,
        factory: str,
        *arguments: Any,
        ranks: int = 1,
        start_timeout_s: float = 600.0,
        env: Mapping[str, str] | None = None,
        **named: Any,
    ) -> None:
        """Start the processes, and let each call `factory` (`package.module:function`) with the arguments.

        Nothing is waited for, so that several groups can start side by side: the first call raises what went wrong, and
        lets `factory` be called unless `create` did.
        """
        self.name = name
        self._ranks = ranks
        self._start_timeout_s = start_timeout_s
        self._creation = factory, arguments, named
        self._folder = make_scratch_folder()
        self._is_connected = False
        self._creating = False
        self._begun = False
        self.has_died = False
        """Whether a process ended by itself: what the others fail with then is not the cause."""
        command = [sys.executable, "-m", "infra.hosting", str(self._folder)]
        if ranks > 1:
            torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "0"]
            command = [sys.executable, "-m", *torchrun, "-m", "infra.hosting", str(self._folder)]
        own_env = {**(env or {}), "TMPDIR": str(self._folder)}  # what a killed process leaves goes with the folder
        # Torchrun hands its ranks its standard input and no other descriptor: each takes one message from there, and
        # with the message its end of a pair.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            self._connections = [_handed_out(ours) for _ in range(ranks)]
            # A driver that torchrun or a job's script started is a rank of its own group, its children are none of it.
            foreign = [name for name in os.environ if _RENDEZVOUS.fullmatch(name)]
            log = self._folder / "start.log"
            self._process = processes.start(command, log, own_env, without=foreign, stdin=theirs.fileno())

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that the parent started: the only one, or torchrun."""
        return self._process

    def create(self) -> None:
        """Let the processes make their objects, and return while they do: the next call waits for them."""
        with processes.killed_when_left(self.kill):
            self._create()

    @property
    def first_connection(self) -> Connection:
        """To the first rank; there is something to read when it has answered, or died."""
        return self._connections[0]

    def call(self, method: str, *arguments: Any, on_progress: Callable[..., None] | None = None, **named: Any) -> Any:
        """Call `method` of the object on every rank; the first rank's result.

        `on_progress` is passed on, and called here with what the first rank calls it with there. Raises the error that
        the method raised; InfrastructureError with the last log lines when a process died. Then, and when the call is
        interrupted (a time-out, Ctrl-C), all processes are killed.
        """
        with processes.killed_when_left(self.kill):
            return self.attempt(method, *arguments, on_progress=on_progress, **named)

    def attempt(
        self, method: str, *arguments: Any, on_progress: Callable[..., None] | None = None, **named: Any
    ) -> Any:
        """`call`, for a caller that ends the group itself: nothing is killed where this fails."""
        self._ask(method, arguments, named, on_progress)
        return self._answers(on_progress)

    def begin(self, method: str, *arguments: Any, **named: Any) -> None:
        """Start what `call` would do, and return while the processes work; `finish` returns the result. Another call
        before that drops it."""
        with processes.killed_when_left(self.kill):
            self._ask(method, arguments, named)
            self._begun = True

    def finish(self) -> Any:
        """Wait for what was begun: the first rank's result. Raises as `call` does."""
        with processes.killed_when_left(self.kill):
            self._begun = False
            self._check_there()
            return self._answers()

    def last_lines(self) -> str:
        """The end of what the first rank has printed."""
        return processes.last_lines(self._folder / "rank-0.log")

    def kill(self) -> None:
        """End the processes and forget them; safe to call twice."""
        processes.kill(self._process)
        for connection in self._connections:
            connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        """Wait until every process has started and plugged itself in."""
        deadline_s = time.monotonic() + self._start_timeout_s
        connections: dict[int, Connection] = {}
        while len(connections) < self._ranks:
            is_late, is_gone = time.monotonic() > deadline_s, False
            ready = wait([c for c in self._connections if c not in connections.values()], timeout=0.2)
            try:
                for connection in ready:
                    assert isinstance(connection, Connection)
                    connections[connection.recv()] = connection
            except (EOFError, OSError):  # the process of this end is gone
                is_gone = True
            if is_gone or (is_late and len(connections) < self._ranks):
                self.has_died = True
                how = self._end() or (f" within {self._start_timeout_s:g} s" if is_late else "")
                log = processes.last_lines(self._folder / "start.log")
                raise InfrastructureError(f"the {self.name} did not start{how}; its last lines:\n{log}")
        self._connections = [connections[rank] for rank in range(self._ranks)]
        self._is_connected = True

    def _create(self) -> None:
        if not self._is_connected:
            self._connect()
            factory, arguments, named = self._creation
            self._send(("__init__", (factory, *arguments), named, False))
            self._creating = True

    def _ask(
        self,
        method: str,
        arguments: Sequence[Any],
        named: Mapping[str, Any],
        on_progress: Callable[..., None] | None = None,
    ) -> None:
        """Send a call to every process, once the objects are there and what was begun is done."""
        self._check_there()
        self._create()
        if self._creating:
            self._creating = False
            self._answers()
        if self._begun:
            self.finish()
        self._send((method, arguments, named, on_progress is not None))

    def _check_there(self) -> None:
        if any(connection.closed for connection in self._connections):
            raise InfrastructureError(f"the {self.name} is gone")

    def _send(self, message: Any) -> None:
        for connection in self._connections:
            with suppress(BrokenPipeError, ConnectionResetError):  # what ended it is found when its answer is awaited
                send(connection, message)

    def _answers(self, on_progress: Callable[..., None] | None = None) -> Any:
        results: dict[int, Any] = {}
        failures: dict[int, tuple[str, str]] = {}
        failed_s = 0.0
        while len(results) + len(failures) < len(self._connections):
            waiting = [c for rank, c in enumerate(self._connections) if rank not in {**results, **failures}]
            # Short waits: a time-out that another thread raises in this one is seen between them only.
            ready = wait(waiting, timeout=0.5)
            # A failed rank leaves the others waiting for it, or failing too: the one that died is the cause.
            if failures and not ready and time.monotonic() > failed_s + _PATIENCE_S:
                break
            for connection in ready:
                rank = self._connections.index(connection)  # pyright: ignore[reportArgumentType]
                try:
                    kind, value = receive(self._connections[rank])
                except (EOFError, OSError):
                    self._died(rank)
                if kind == "result":
                    results[rank] = value
                elif kind == "error":
                    failures[rank] = value
                    failed_s = time.monotonic()
                elif rank == 0 and on_progress is not None:
                    on_progress(*value)
        if failures:
            _raise(self.name, min(failures), *failures[min(failures)])
        return results[0]

    def _end(self) -> str:
        """How the process that the parent started has ended; empty where it lives on."""
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return ""
        return f" (exit code {code})" if code >= 0 else f" (killed by {signal.Signals(-code).name})"

    def _died(self, rank: int) -> NoReturn:
        self.has_died = True
        which = f" on rank {rank} of {len(self._connections)}" if len(self._connections) > 1 else ""
        raise InfrastructureError(
            f"the {self.name}{which} died{self._end()}; its last lines:\n"
            f"{processes.last_lines(self._folder / f'rank-{rank}.log')}"
        )


def first_done(groups: Sequence[HostedGroup]) -> HostedGroup:
    """Wait until one of `groups`, each of which has begun something, can finish it or has died: the first of those."""
    while True:
        # Short waits, as for answers.
        ready = wait([group.first_connection for group in groups], timeout=0.5)
        if ready:
            return next(group for group in groups if group.first_connection in ready)


def send(connection: Connection, message: Any) -> None:
    """Send `message` so that `receive` makes it again; columns of samples and arrays are never copied on the way."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    connection.send_bytes(pickle.dumps((head, len(buffers))))
    for buffer in buffers:
        connection.send_bytes(buffer.raw())


def receive(connection: Connection) -> Any:
    """What the other side sent. Raises EOFError when it is gone."""
    head, buffers = pickle.loads(connection.recv_bytes())
    return pickle.loads(head, buffers=[connection.recv_bytes() for _ in range(buffers)])


def _handed_out(plugs: socket.socket) -> Connection:
    """This end of a new pair of connected sockets; the other one waits in `plugs` for the process that takes it."""
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(plugs, [b"-"], [theirs.fileno()])
    return Connection(ours.detach())


def _raise(name: str, rank: int, kind: str, text: str) -> NoReturn:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, OpidError):
        raise known(text)
    raise RuntimeError(f"bug in the {name} (rank {rank}):\n{text}")


# In the child -----------------------------------------------------------------------------------------------------


def _serve(folder: Path) -> None:
    processes.die_with_parent()
    processes.collect_garbage_less_often()
    rank = int(os.environ.get("LOCAL_RANK", "0"))  # of those that this parent started
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as plugs, open(os.devnull, "rb") as nothing:
        _, (plug,), _, _ = socket.recv_fds(plugs, 1, 1, socket.MSG_CMSG_CLOEXEC)
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    connection = Connection(plug)
    with open(folder / f"rank-{rank}.log", "ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    connection.send(rank)
    hosted: Any = None
    while True:
        try:
            method, arguments, given, with_progress = receive(connection)
        except EOFError:
            # Without the interpreter's tidying up: libraries' exit hooks wait for ranks that are gone.
            os._exit(0)
        named = (
            {**given, "on_progress": lambda *values: send(connection, ("progress", values))} if with_progress else given
        )
        try:
            if method == "__init__":
                factory, *rest = arguments
                module, _, function = factory.partition(":")
                hosted = getattr(importlib.import_module(module), function)(*rest, **named)
                answer = ("result", None)
            else:
                answer = ("result", getattr(hosted, method)(*arguments, **named))
        except Exception as error:  # the boundary: whatever it is, it is raised again in the parent
            answer = ("error", _described(error))
        send(connection, answer)


def _described(error: Exception) -> tuple[str, str]:
    """Name of an error's class, and its text; a foreign fault is an InfrastructureError, a bug brings its trace."""
    if isinstance(error, OpidError):
        return type(error).__name__, str(error)
    if any(text in str(error) for text in _UNWRITTEN):
        return InfrastructureError.__name__, f"{type(error).__name__}: {error} (is the disk of TMPDIR full?)"
    if any(kind.__name__ in _FOREIGN_FAULTS for kind in type(error).__mro__):
        return InfrastructureError.__name__, f"{type(error).__name__}: {error}"
    return type(error).__name__, traceback.format_exc()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
