"""The Prefect API that a run reports to: the user's server, or one of our own that lives as long as the run.

Whoever may use the API may run code here. So a server of ours answers nobody without its auth string, which our own
processes get through their environment, no web page of another origin, and no request for another host."""

from __future__ import annotations

import base64
import fcntl
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows import settings
from infra import processes
from infra.scratch import scratch_folder
from opid_core import proxies
from opid_core.errors import ConfigError, InfrastructureError

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = "127.0.0.1"
STARTUP_TIMEOUT_S = 600.0  # a server that fails ends, and that is seen at once; a crowded machine is slow
STEADY_S = 300.0  # what lived for so long had started well: its end counts as a first failure


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


def check_api(url: str) -> None:
    """Raise ConfigError unless a Prefect server answers at `url`, and takes the auth string or key of the settings."""
    import httpx
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    proxies.check(url)
    headers = {}
    if auth := PREFECT_API_AUTH_STRING.value():
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    elif key := PREFECT_API_KEY.value():
        headers["Authorization"] = f"Bearer {key}"
    try:
        answer = httpx.get(f"{url.rstrip('/')}/hello", headers=headers, timeout=5.0)
        if answer.status_code in (401, 403):
            given = "does not take the one given" if headers else "none is given"
            raise ConfigError(
                f"PREFECT_API_URL={url}: this server needs an auth string, and {given}; set PREFECT_API_AUTH_STRING "
                "(`opid serve` says where its own is)"
            )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigError(
            f"PREFECT_API_URL={url}: no healthy Prefect server there{proxies.through(url)} ({error}); start it, or "
            "unset the variable: the command then starts a server of its own"
        ) from None


def new_auth_string() -> str:
    """A secret for a new server."""
    return f"opid:{secrets.token_urlsafe(32)}"


def server_settings(url: str, auth: str) -> dict[str, str]:
    """The environment of a server at `url` that answers those alone who give the secret `auth`."""
    return {
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": url.removesuffix("/api"),
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # of 10 s: SQLite has one writer, and campaigns keep the disk busy
        "PREFECT__SERVER_FINAL": "1",
    }


def listen(port: int) -> socket.socket:
    """A socket for a server of ours on this machine's loopback interface; `port` 0 takes a free one. While no server
    lives requests wait in it, instead of being refused. Raises OSError."""
    return socket.create_server((LOOPBACK, port), backlog=128)


def start_server(listener: socket.socket, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a server on `listener` that dies with this process."""
    return processes.start([sys.executable, "-m", "flows.prefect_api"], log, env, stdin=listener.fileno())


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
    auth = new_auth_string()
    with scratch_folder() as folder, listen(0) as listener:
        url = f"http://{LOOPBACK}:{listener.getsockname()[1]}/api"
        log = folder / "prefect-server.log"
        # No background services: they schedule and watch other people's runs.
        env = {**server_settings(url, auth), "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
        with kept_alive(lambda: start_server(listener, log, env)) as server:
            wait_until_healthy(url, server, log)
            from prefect.logging.handlers import APILogHandler
            from prefect.settings import (
                PREFECT_API_AUTH_STRING,
                PREFECT_API_URL,
                PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
                temporary_settings,
            )

            # No heartbeats: nobody looks for them here, and each flow's end waits up to a second for their thread.
            heartbeats = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
            with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth, **heartbeats}):
                try:
                    yield
                finally:
                    APILogHandler().flush()  # while there is a server that takes the last lines


def wait_before_start_s(failures: int) -> float:
    """The wait before a new start of what has failed so often in a row, each time within `STEADY_S`."""
    return min(2.0 ** min(failures - 1, 10), 60.0)


@contextmanager
def kept_alive(
    start: Callable[[], subprocess.Popen[bytes]], announce: Callable[[float], None] = lambda wait_s: None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process that `start` starts, started again whenever it ends: its clients try again until it is back.

    A thread of its own waits for that, because this process's requests wait for the server too. `announce` is called
    before each wait for a new start: 1 s, 2 s, 4 s ... for failures in a row, anew for one that was alive five minutes.
    """
    started = [start()]
    ending = threading.Event()

    def watch() -> None:
        failures = 0
        while not ending.is_set():
            began_s = time.monotonic()
            started[-1].wait()
            failures = 1 if time.monotonic() - began_s > STEADY_S else failures + 1
            wait_s = wait_before_start_s(failures)
            if not ending.is_set():
                announce(wait_s)
            if not ending.wait(wait_s):
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


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as `server` answers at `url`. Raises InfrastructureError with the last lines of its log."""
    import httpx

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    if not processes.becomes_ready(server, answers, STARTUP_TIMEOUT_S):
        raise InfrastructureError(
            f"the Prefect server did not start; its last lines ({log}):\n{processes.last_lines(log)}"
        )


def _serve() -> None:
    """Serve on the socket that is this process's standard input."""
    processes.collect_garbage_less_often()
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.settings import PREFECT_SERVER_LOGGING_LEVEL
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from flows import prefect_database  # noqa: F401 - a service of the server, once it is imported

    # SQLite refuses at once, whatever its time limit, a transaction that has read and then writes when another wrote in
    # between; one that takes the lock as it begins waits its turn. Prefect has both kinds, and most are the first.
    begin = AioSqliteConfiguration.begin_transaction
    AioSqliteConfiguration.begin_transaction = lambda self, session, with_for_update=True: begin(self, session, True)
    # A page of another site whose name leads here asks for that name.
    app = TrustedHostMiddleware(create_app(), allowed_hosts=[LOOPBACK, "localhost"])
    server = uvicorn.Server(uvicorn.Config(app, log_level=PREFECT_SERVER_LOGGING_LEVEL.value().lower()))
    _start_alone(server)
    server.run(sockets=[socket.socket(fileno=0)])


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
    _serve()
