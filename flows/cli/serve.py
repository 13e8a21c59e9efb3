"""`opid serve`: a local Prefect server and a worker that runs campaigns one after another, both kept alive.

Queue, schedules, history, cancelling and the limit of one campaign at a time are Prefect's (`prefect deploy`, a process
work pool, automations). Here is what Prefect does not do, each with its drill in tests/integration/test_serve.py: a
server or worker that dies is started again
(`test_a_locked_database_is_waited_for_what_dies_is_started_again_and_the_campaign_ends`), no process outlives its
parent, and what they ran continues at the next start
(`test_stopping_leaves_no_process_and_the_next_serve_continues_and_keeps_its_schedule`). Everything that Prefect keeps
is a convenience: campaigns live in their store, and any run of the same config continues there.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from flows import prefect_api, settings
from flows.cli.common import app, console
from infra import automations, processes, work_pool
from opid_core.errors import ConfigError, InfrastructureError
from opid_core.local_paths import local_path

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DECLARATION = Path(processes.__file__).with_name("prefect.yaml")
AUTH_FILE = "auth"
STOP_GRACE_S = 40.0  # Prefect's worker gives a campaign 30 s to end


@app.command()
def serve(
    configs: Annotated[
        list[Path] | None, typer.Argument(metavar="[CONFIG]...", help="Configs to deploy, each as train/<campaign>.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="Schedule of these deployments, in UTC: '0 3 * * *'.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server on 127.0.0.1.")] = 4200,
    pool: Annotated[
        str, typer.Option(help="Work pool; each `opid serve` that shares a server needs its own.")
    ] = "opid",
    root: Annotated[Path, typer.Option(help="Prefect's files and the logs go to ROOT/.prefect.")] = Path("runs"),
) -> None:
    """Queue and schedule campaigns on this machine, one at a time, and bring back what dies; until Ctrl-C.

    A Prefect server, a worker and two automations; with PREFECT_API_URL set, that server is used. docs/scheduling.md
    has the commands to run, schedule, pause and cancel.

    Example: [bold]opid serve configs/quickstart.yaml[/], then in another terminal
    [bold]prefect deployment run train/quickstart[/]
    """
    settings.apply(local_path(root, "--root"))
    serve_until_interrupted(configs or [], cron, port, pool)


def serve_until_interrupted(
    configs: Sequence[Path],
    cron: str | None,
    port: int,
    pool: str,
    *,
    attempts: int = automations.ATTEMPTS,
    declaration: Path = DECLARATION,
) -> None:
    """Serve until Ctrl-C or SIGTERM; every process that was started is gone when this returns.

    Each of `configs` becomes a deployment named after its campaign, with the schedule `cron` (UTC) where given. A
    server that PREFECT_API_URL names is used instead of a local one. Raises ConfigError for a config, schedule, port,
    server or pool that cannot be used, before anything is started; InfrastructureError when the server does not come
    up.
    """
    import httpx
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import PREFECT_API_AUTH_STRING

    declared = _declared(configs, cron, declaration)
    settings.make_prefect_home()
    folder = Path(os.environ["PREFECT_HOME"]).parent / "serve"
    folder.mkdir(exist_ok=True)
    local = f"http://{prefect_api.LOOPBACK}:{port}/api"
    url = (os.environ.get("PREFECT_API_URL") or local).rstrip("/")
    with ExitStack() as stack:
        stack.enter_context(_only_one(folder / "lock"))
        listener = None
        if url == local:
            listener = stack.enter_context(_listen(port))
            auth = _auth_string(folder / AUTH_FILE)
        else:
            prefect_api.check_api(url)
            auth = PREFECT_API_AUTH_STRING.value()
        api = {"PREFECT_API_URL": url, **({"PREFECT_API_AUTH_STRING": auth} if auth else {})}
        for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background job ignores it
            stack.callback(signal.signal, number, signal.signal(number, signal.default_int_handler))
        client = stack.enter_context(SyncPrefectClient(api=url, auth_string=auth))
        worker = _worker(api, pool, folder)
        try:
            if listener and auth:
                _start_server(stack, url, auth, listener, folder / "server.log")
            stack.enter_context(work_pool.alone(pool, work_pool.ensure(client, pool)))
            stack.callback(worker.stop, STOP_GRACE_S)  # the last to start is the first to stop
            automations.ensure(client, automations.automations(attempts))
            _deploy(declared, api, pool, folder)
            work_pool.requeue(client, pool, attempts, console, worker_gone=True)
            worker.start()
            _introduce(url, listener is not None, pool, [entry["name"] for entry in declared["deployments"]], folder)
            _watch(client, worker, pool, attempts)
        except httpx.HTTPError as error:
            raise InfrastructureError(f"the Prefect server at {url}: {error or type(error).__name__}") from error
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):  # the end is bounded in time, let it finish
                signal.signal(number, signal.SIG_IGN)
            console.print("Stopping the worker, its campaign and the server; `opid serve` continues later.")


# Before anything starts --------------------------------------------------------------------------------------------


def _declared(configs: Sequence[Path], cron: str | None, declaration: Path) -> dict:
    """`declaration`, a file for `prefect deploy`, with a deployment more for each config, like its first one."""
    from opid_core.config import load_config

    if cron is not None:
        from prefect.client.schemas.schedules import CronSchedule
        from pydantic import ValidationError

        if not configs:
            raise ConfigError("--cron: needs the CONFIG that it schedules")
        try:
            CronSchedule(cron=cron)
        except ValidationError as error:
            raise ConfigError(f"--cron {cron!r}: {error.errors()[0]['msg']}") from None
    declared = yaml.safe_load(declaration.read_text(encoding="utf-8"))
    deployments = declared["deployments"]
    sources: dict[str, Path] = {entry["name"]: declaration for entry in deployments}
    for path in configs:
        name = load_config(path).campaign
        if name in sources:
            raise ConfigError(f"{path}: campaign {name!r} is already the name of a deployment, of {sources[name]}")
        sources[name] = path.resolve()
        parameters, description = {"config": str(sources[name])}, f"The campaign of {sources[name]}"
        deployment = {**deployments[0], "name": name, "description": description, "parameters": parameters}
        if cron is not None:  # by its slug Prefect knows it again: it stays paused where it was
            deployment["schedules"] = [{"cron": cron, "timezone": "UTC", "slug": "opid-serve"}]
        deployments.append(deployment)
    for deployment in deployments:
        deployment["work_pool"] = {**deployment["work_pool"], "job_variables": work_pool.JOB_VARIABLES}
    return declared


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with open(path, "a+", encoding="utf-8") as lock:
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


def _listen(port: int) -> socket.socket:
    try:
        return prefect_api.listen(port)
    except OSError as error:
        raise ConfigError(
            f"port {port}: {os.strerror(error.errno or 0)}; choose another with --port, or set "
            f"PREFECT_API_URL=http://localhost:{port}/api to use a Prefect server that runs there, with a --pool of "
            "its own where another `opid serve` has started it"
        ) from None


def _auth_string(path: Path) -> str:
    """The secret of the server, in a file that this user alone can read; made anew where there is none, or where
    another could have read or written it."""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return path.read_text(encoding="utf-8")
        path.unlink()
    auth = prefect_api.new_auth_string()
    draft = path.with_suffix(f".{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(auth)
    draft.replace(path)
    return auth


# The server, the worker, and what both must know -------------------------------------------------------------------


def _start_server(stack: ExitStack, url: str, auth: str, listener: socket.socket, log: Path) -> None:
    """Start the server, which is kept alive until `stack` ends, and wait for its first answer."""
    env = {
        **prefect_api.server_settings(url, auth),
        "PREFECT_API_URL": url,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_UI_API_URL": url,
    }
    console.print(f"Starting the Prefect server ({log}) ...", soft_wrap=True)
    start = partial(prefect_api.start_server, listener, log, env)
    server = stack.enter_context(prefect_api.kept_alive(start, partial(_announce, "Prefect server", log)))
    prefect_api.wait_until_healthy(url, server, log)


def _announce(name: str, log: Path, wait_s: float) -> None:
    console.print(f"The {name} ended: it is started again in {wait_s:g} s. Its log: {log}", soft_wrap=True)


@dataclass
class Worker:
    """The worker's process; `failures` in a row make the waits before a new start longer."""

    command: list[str]
    log: Path
    env: Mapping[str, str]
    failures: int = 0
    started_at: float = field(default=0.0, init=False)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process, which dies with this one."""
        self.process = processes.start(self.command, self.log, self.env)
        self.started_at = time.monotonic()

    def stop(self, grace_s: float = 0.0) -> None:
        """End the process and all that it started."""
        if self.process is not None:
            processes.kill(self.process, grace_s=grace_s)
            self.process = None

    @property
    def has_ended(self) -> bool:
        """Whether it must be started (again)."""
        return self.process is None or self.process.poll() is not None

    def restart(self) -> None:
        """Start it again after 1 s, 2 s, 4 s ... for failures in a row; anew for one that was alive five minutes."""
        self.stop()
        is_new = time.monotonic() - self.started_at > prefect_api.STEADY_S
        self.failures = 1 if is_new else self.failures + 1
        wait_s = prefect_api.wait_before_start_s(self.failures)
        _announce("worker", self.log, wait_s)
        time.sleep(wait_s)
        self.start()


def _worker(api: Mapping[str, str], pool: str, folder: Path) -> Worker:
    name = work_pool.worker_name(pool)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
    return Worker(command, folder / "worker.log", {**api, "PREFECT_LOGGING_LEVEL": "INFO"})


def _deploy(declared: dict, api: Mapping[str, str], pool: str, folder: Path) -> None:
    path, log = folder / "prefect.yaml", folder / "deploy.log"
    env = {**api, "OPID_WORK_POOL": pool, "OPID_DIRECTORY": str(Path.cwd())}
    path.write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    with open(log, "wb") as output:
        deployed = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)],
            env={**os.environ, **processes.PYTHON, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if deployed.returncode != 0:
        raise InfrastructureError(f"{path}: not deployed; Prefect said ({log}):\n{processes.last_lines(log)}")


def _watch(client: SyncPrefectClient, worker: Worker, pool: str, attempts: int) -> None:
    """Start what ends, for ever."""
    import httpx

    while True:
        time.sleep(2.0)
        try:
            if worker.has_ended:
                worker.stop()  # its campaign too: nobody could cancel it any more
                work_pool.requeue(client, pool, attempts, console, worker_gone=True)
                worker.restart()
            else:
                work_pool.requeue(client, pool, attempts, console)
        except (httpx.HTTPError, InfrastructureError) as error:
            console.print(f"The server refused or failed: {error}", soft_wrap=True)


def _introduce(url: str, is_ours: bool, pool: str, deployments: Sequence[str], folder: Path) -> None:
    console.print(
        f"\nReady. Server and page: {url.removesuffix('/api')}   Logs and prefect.yaml: {folder}", soft_wrap=True
    )
    console.print("In another terminal (docs/scheduling.md has more):")
    console.print(f"  export PREFECT_API_URL={url}", soft_wrap=True)
    if is_ours:
        console.print(
            f'  export PREFECT_API_AUTH_STRING="$(cat {folder / AUTH_FILE})"   # the page asks for it too',
            soft_wrap=True,
        )
    for name in deployments[1:] or [f"{deployments[0]} -p config=configs/quickstart.yaml"]:
        console.print(f"  prefect deployment run train/{name}", soft_wrap=True)
    # Prefect cuts the IDs to the terminal's width.
    for command in ("COLUMNS=160 prefect flow-run ls", "prefect flow-run cancel ID", f"prefect work-pool pause {pool}"):
        console.print(f"  {command}", soft_wrap=True)
    console.print("Ctrl-C stops all; a campaign in progress goes on with the next `opid serve`.")
