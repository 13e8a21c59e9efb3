"""`opid serve`: a local Prefect server and a worker that runs campaigns one after another, both kept alive.

Everything that Prefect keeps (queue, schedules, history) is a convenience: campaigns live in their store, and any run
of the same config continues there.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml
from rich.console import Console

from flows import settings
from infra import automations, processes, work_pool
from opid_core.config import load_config
from opid_core.errors import ConfigError, InfrastructureError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DECLARATION = Path(processes.__file__).with_name("prefect.yaml")
HOST = "127.0.0.1"
START_LIMIT_S = 180.0
SILENCE_LIMIT_S = 60.0
STOP_GRACE_S = 40.0  # Prefect's worker gives a campaign 30 s to end
LONGEST_WAIT_S = 60.0


@dataclass
class Service:
    """A child process that is to be alive; `failures` in a row make the waits before a new start longer."""

    name: str
    arguments: list[str]
    log: Path
    env: Mapping[str, str]
    failures: int = 0
    started_at: float = field(default=0.0, init=False)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        self.process = processes.start(self.arguments, self.log, self.env)
        self.started_at = time.monotonic()

    def stop(self, grace_s: float = 0.0) -> None:
        if self.process is not None:
            processes.kill(self.process, grace_s=grace_s)
            self.process = None

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait_before_restart_s(self) -> float:
        """1 s, 2 s, 4 s ... for failures in a row; anew for a service that was alive for five minutes."""
        self.failures = 1 if time.monotonic() - self.started_at > 300 else self.failures + 1
        return min(2.0 ** (self.failures - 1), LONGEST_WAIT_S)


def serve(
    configs: Sequence[Path],
    cron: str | None,
    port: int,
    pool: str,
    console: Console,
    *,
    lost_after_s: float = automations.LOST_AFTER_S,
    attempts: int = automations.ATTEMPTS,
    declaration: Path = DECLARATION,
) -> None:
    """Serve until interrupted (Ctrl-C or SIGTERM); every process that was started is gone when this returns.

    Each of `configs` becomes a deployment named after its campaign, with the schedule `cron` (UTC) where given. A
    server that PREFECT_API_URL names is used instead of a local one. Raises ConfigError for a config, schedule, port
    or pool that cannot be used, before anything is started; InfrastructureError when the server does not come up.
    """
    campaigns = _load(configs, cron, declaration)
    settings.make_prefect_home()
    folder = Path(os.environ["PREFECT_HOME"]).parent / "serve"
    folder.mkdir(exist_ok=True)
    own = f"http://{HOST}:{port}/api"
    url = os.environ.get("PREFECT_API_URL", own).rstrip("/")
    with ExitStack() as stack:
        stack.enter_context(_only_one(folder / "lock"))
        stack.enter_context(_interrupted_by_sigterm())
        server = None
        if url == own:
            _check_port(port)
            server = _server(port, folder)
            stack.callback(server.stop, 10.0)
            console.print(f"Starting the Prefect server ({server.log}) ...", soft_wrap=True)
            server.start()
        worker = _worker(url, pool, folder)
        stack.callback(worker.stop, STOP_GRACE_S)
        try:
            _wait_until_healthy(url, server)
            with _client(url) as client:
                work_pool.ensure(client, pool)
                automations.ensure(client, automations.automations(lost_after_s=lost_after_s, attempts=attempts))
                _deploy(client, url, pool, campaigns, cron, declaration, folder / "deploy.log")
                work_pool.take_back(client, pool, attempts, console)
            worker.start()
            _introduce(console, url, pool, campaigns, cron, folder)
            _watch(url, server, worker, pool, attempts, console)
        except httpx.HTTPError as error:
            raise InfrastructureError(f"the Prefect server at {url}: {error or type(error).__name__}") from error
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):  # the end is bounded in time, let it finish
                signal.signal(number, signal.SIG_IGN)
            console.print("Stopping the worker, its campaign and the server; `opid serve` continues later.")


# Before anything starts --------------------------------------------------------------------------------------------


def _load(configs: Sequence[Path], cron: str | None, declaration: Path) -> dict[str, Path]:
    """Campaign name -> config path, all loaded once."""
    if cron is not None:
        from prefect.client.schemas.schedules import CronSchedule
        from pydantic import ValidationError

        if not configs:
            raise ConfigError("--cron: needs the CONFIG that it schedules")
        try:
            CronSchedule(cron=cron)
        except ValidationError as error:
            raise ConfigError(f"--cron {cron!r}: {error.errors()[0]['msg']}") from None
    taken = {entry["name"]: declaration for entry in yaml.safe_load(declaration.read_text())["deployments"]}
    campaigns: dict[str, Path] = {}
    for path in configs:
        name = load_config(path).campaign
        if name in {**taken, **campaigns}:
            raise ConfigError(f"{path}: campaign {name!r} is already the name of a deployment, of {taken[name]}")
        campaigns[name] = taken[name] = path.resolve()
    return campaigns


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"another `opid serve` (process {lock.read().strip()}) runs on {path.parent.parent}: "
                "stop it, or choose another --root"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port}: {error.strerror}{_holder(port)}; choose another with --port, "
                f"or set PREFECT_API_URL=http://{HOST}:{port}/api to use a Prefect server that runs there"
            ) from None


def _holder(port: int) -> str:
    import psutil

    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port  # pyright: ignore[reportAttributeAccessIssue]
        if listens and connection.pid:
            command = " ".join(psutil.Process(connection.pid).cmdline())
            return f", by process {connection.pid} ({command[:120]})"
    return ""


# The server and what it must know ----------------------------------------------------------------------------------


def _server(port: int, folder: Path) -> Service:
    return Service(
        "Prefect server",
        [sys.executable, "-m", "prefect", "server", "start"],
        folder / "server.log",
        {
            # As settings, not as options: the UI reads its server's address from them.
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_API_URL": f"http://{HOST}:{port}/api",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # of 10 s: SQLite has one writer, and campaigns keep the disk busy
        },
    )


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def _wait_until_healthy(url: str, server: Service | None) -> None:
    """Return as soon as the server answers. Raises InfrastructureError that shows why it does not."""
    deadline = time.monotonic() + (START_LIMIT_S if server else 10.0)
    while not _is_healthy(url):
        if server is None and time.monotonic() > deadline:
            raise InfrastructureError(
                f"{url}: no Prefect server answers; start it, or unset PREFECT_API_URL for a local one"
            )
        if server and (server.has_ended or time.monotonic() > deadline):
            state = "ended" if server.has_ended else f"did not answer within {START_LIMIT_S:g} s"
            raise InfrastructureError(
                f"the Prefect server {state}; its last lines ({server.log}):\n{processes.last_lines(server.log)}"
            )
        time.sleep(0.5)
    if server and server.has_ended:  # then another program took the port and answers
        raise InfrastructureError(f"{url}: another server answers; ours said:\n{processes.last_lines(server.log)}")


def _client(url: str) -> SyncPrefectClient:
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(api=url)


def _deploy(
    client: SyncPrefectClient,
    url: str,
    pool: str,
    campaigns: Mapping[str, Path],
    cron: str | None,
    declaration: Path,
    log: Path,
) -> None:
    """Deploy `declaration`, then for each campaign a copy of its first deployment with the config filled in."""
    with open(log, "wb") as output:
        code = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(declaration)],
            env={**os.environ, "PREFECT_API_URL": url, "OPID_WORK_POOL": pool, "OPID_DIRECTORY": str(Path.cwd())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    if code != 0:
        raise InfrastructureError(f"{declaration}: not deployed; Prefect said ({log}):\n{processes.last_lines(log)}")
    entry = yaml.safe_load(declaration.read_text(encoding="utf-8"))["deployments"][0]
    declared = client.read_deployment_by_name(f"{entry['entrypoint'].rsplit('.', 1)[-1]}/{entry['name']}")
    for name, path in campaigns.items():
        identifier = client.create_deployment(
            flow_id=declared.flow_id,
            name=name,
            parameters={"config": str(path)},
            work_pool_name=pool,
            tags=declared.tags,
            entrypoint=declared.entrypoint,
            pull_steps=declared.pull_steps,
            parameter_openapi_schema=declared.parameter_openapi_schema,
            enforce_parameter_schema=True,
            description=f"The campaign of {path}",
        )
        if cron is not None:
            _schedule(client, identifier, cron)


def _schedule(client: SyncPrefectClient, deployment: Any, cron: str) -> None:
    """Make `cron` the deployment's only schedule; if it is already, it stays as it is, paused or not."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    existing = client.read_deployment_schedules(deployment)
    if len(existing) == 1 and getattr(existing[0].schedule, "cron", None) == cron:
        return
    for schedule in existing:
        client.delete_deployment_schedule(deployment, schedule.id)
    client.create_deployment_schedules(
        deployment, [DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone="UTC"), active=True)]
    )


# The worker, and the watch over both -------------------------------------------------------------------------------


def _worker(url: str, pool: str, folder: Path) -> Service:
    return Service(
        "worker",
        [*[sys.executable, "-m", "prefect", "worker", "start"], "--pool", pool, "--name", work_pool.worker_name(pool)],
        folder / "worker.log",
        {"PREFECT_API_URL": url, "PREFECT_LOGGING_LEVEL": "INFO"},
    )


def _watch(url: str, server: Service | None, worker: Service, pool: str, attempts: int, console: Console) -> None:
    """Start what ends, for ever. A server that is silent for a minute counts as ended."""
    answered_at = time.monotonic()
    while True:
        time.sleep(2.0)
        if _is_healthy(url):
            answered_at = time.monotonic()
        elif server and (server.has_ended or time.monotonic() - answered_at > SILENCE_LIMIT_S):
            _restart(server, console)
            try:
                _wait_until_healthy(url, server)
            except InfrastructureError as error:
                console.print(str(error), soft_wrap=True, markup=False)
            answered_at = time.monotonic()
            continue
        else:
            continue  # the worker cannot start without its server
        try:
            with _client(url) as client:
                if worker.has_ended:
                    worker.stop()  # its campaign too: nobody could cancel it any more
                    work_pool.take_back(client, pool, attempts, console)
                else:
                    work_pool.retry_overlooked(client, pool, attempts, console)
        except httpx.HTTPError as error:
            console.print(f"The server refused or failed: {error}", soft_wrap=True, markup=False)
            continue
        if worker.has_ended:
            _restart(worker, console)


def _restart(service: Service, console: Console) -> None:
    how = "does not answer" if not service.has_ended else "ended"
    service.stop()
    wait_s = service.wait_before_restart_s()
    console.print(
        f"The {service.name} {how}: it is started again in {wait_s:g} s. Its log: {service.log}", soft_wrap=True
    )
    time.sleep(wait_s)
    service.start()


def _introduce(
    console: Console, url: str, pool: str, campaigns: Mapping[str, Path], cron: str | None, folder: Path
) -> None:
    console.print(f"\nReady. Server and page: {url.removesuffix('/api')}   Logs: {folder}", soft_wrap=True)
    for name, path in campaigns.items():
        console.print(f"  {name}: {path}" + (f", cron {cron!r} (UTC)" if cron else ""), soft_wrap=True)
    console.print("In another terminal (docs/scheduling.md has more):")
    console.print(f"  export PREFECT_API_URL={url}", soft_wrap=True)
    for name in campaigns or ["train -p config=configs/quickstart.yaml"]:
        console.print(f"  prefect deployment run train/{name}", soft_wrap=True)
    console.print(f"  prefect flow-run ls    prefect work-pool pause {pool}    prefect flow-run cancel ID")
    console.print("Ctrl-C stops everything; a campaign in progress continues at the next `opid serve`.")
