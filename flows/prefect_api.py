"""The Prefect API that a run reports to: the user's server, or one of our own that lives as long as the run."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from flows import settings
from infra import processes
from infra.scratch import scratch_folder
from opid_core.errors import InfrastructureError

if TYPE_CHECKING:
    import uvicorn

STARTUP_TIMEOUT_S = 600.0  # a server that fails ends, and that is seen at once; a crowded machine is slow


@contextmanager
def prefect_api() -> Iterator[None]:
    """A Prefect API for the block. Without PREFECT_API_URL a server without user interface runs for it, on a free port
    and with its database in PREFECT_HOME; it is started again when it dies, and dies with this process.

    Raises InfrastructureError with its last log lines where it does not start.
    """
    with _run_logs_to_api_alone():
        if os.environ.get("PREFECT_API_URL"):
            yield
        else:
            with _own_server():
                yield


@contextmanager
def _run_logs_to_api_alone() -> Iterator[None]:
    """The logs of flow and task runs go to the API, not to the terminal, which has lines of its own."""
    import prefect  # noqa: F401 - sets up its loggers, once

    loggers = [logging.getLogger(f"prefect.{name}") for name in ("flow_runs", "task_runs")]
    for logger in loggers:
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.propagate = True


@contextmanager
def _own_server() -> Iterator[None]:
    settings.make_prefect_home()
    with scratch_folder() as folder, socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        log = folder / "prefect-server.log"
        # No background services: they schedule and watch other people's runs.
        env = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        command = [sys.executable, "-m", "flows.prefect_api", str(listener.fileno())]
        # The socket is ours: while no server lives, requests wait in it instead of being refused.
        with _kept_alive(lambda: processes.start(command, log, env, [listener.fileno()])) as server:
            _wait_until_healthy(url, server, log)
            from prefect.logging.handlers import APILogHandler
            from prefect.settings import PREFECT_API_URL, temporary_settings

            with temporary_settings({PREFECT_API_URL: url}):
                try:
                    yield
                finally:
                    APILogHandler().flush()  # while there is a server that takes the last lines


@contextmanager
def _kept_alive(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    """The process that `start` starts, started again whenever it dies: its clients try again until it is back."""
    started = [start()]
    ending = threading.Event()

    def watch() -> None:
        while not ending.is_set():
            started[-1].wait()
            if not ending.wait(1.0):
                started.append(start())

    watcher = threading.Thread(target=watch, name="prefect-server", daemon=True)
    watcher.start()
    try:
        yield started[0]
    finally:
        ending.set()
        processes.kill(started[-1], grace_s=5.0)
        watcher.join()
        processes.kill(started[-1])


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)  # it does not answer yet
    raise InfrastructureError(f"Prefect's API server did not start; its last lines:\n{processes.last_lines(log)}")


def _serve(descriptor: int) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="error"))
    _start_alone(server)
    server.run(sockets=[socket.socket(fileno=descriptor)])


def _start_alone(server: uvicorn.Server) -> None:
    """Let `server` start while no other does: two campaigns that begin together in one root share a database, and each
    of its migrations can be done once."""
    lock = open(Path(os.environ["PREFECT_HOME"]) / "start.lock", "w", encoding="utf-8")  # noqa: SIM115 - until it is up
    fcntl.flock(lock, fcntl.LOCK_EX)
    start = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await start(sockets)
        lock.close()

    server.startup = startup


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
