"""`opid serve` with a real Prefect server and worker; the flow is a small one that does exactly what a test needs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings
from prefect.states import Cancelling

from flows.cli.serve import serve_until_interrupted
from flows.prefect_api import check_api
from infra import automations
from opid_core.errors import ConfigError

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 240.0

FLOW = """
import os, signal, sys, time
from pathlib import Path
from prefect import flow, get_client, task
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Suspended
from infra import automations, processes

@task
def stage() -> None: ...

@flow(name="train")
def train(config: str, overrides: list[str] = []) -> None:
    folder = Path(config).with_suffix("")
    with open(folder / "starts", "a") as starts:
        starts.write(f"{os.getpid()}\\n")
    count = len((folder / "starts").read_text().split())
    if "die" in overrides or ("die once" in overrides and count == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in overrides:
        raise ValueError("a bug")
    if "pause" in overrides and count == 1:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Suspended(timeout_seconds=600))
        with automations.suspension_event():
            related = [{"prefect.resource.id": "prefect.tag.opid", "prefect.resource.role": "tag"}]
            run = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}
            emit_event("prefect.flow-run.heartbeat", resource=run, related=related)  # of the stage that it still ends
            for _ in range(300):  # it hears of its suspension by an event, or within 10 s, and ends at the next stage
                stage()
                time.sleep(0.2)
    if "wait" in overrides:
        child = processes.start([sys.executable, "-c", "import time; time.sleep(600)"], folder / "child.log")
        (folder / "child.new").write_text(str(child.pid))
        (folder / "child.new").rename(folder / "child")
        while not (folder / "go").exists():
            time.sleep(0.1)
    (folder / "done").touch()
"""
DECLARATION = """
name: test
deployments:
  - name: train
    entrypoint: small_flow.train
    tags: [opid]
    work_pool: {name: "{{ $OPID_WORK_POOL }}"}
    pull:
      - prefect.deployments.steps.set_working_directory: {directory: "{{ $OPID_DIRECTORY }}"}
"""
SERVE = """
import sys
from pathlib import Path
from flows import settings
settings.apply(sys.argv[1])
from flows.cli.serve import serve_until_interrupted
from opid_core.errors import OpidError
configs = [Path(argument) for argument in sys.argv[3:]]
try:
    serve_until_interrupted(configs, "* * * * *" if configs else None, int(sys.argv[2]), "pool",
                            attempts=3, declaration=Path(sys.argv[1]) / "prefect.yaml")
except OpidError as error:
    sys.exit(str(error))
"""


def wait_for(happened: Callable[[], Any], what: str) -> Any:
    """The first true answer of `happened`."""
    deadline = time.monotonic() + LIMIT_S
    while not (answer := happened()):
        assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}"
        time.sleep(0.1)
    return answer


class Served:
    """One `opid serve` under `root`, and what a user would do with Prefect's own commands."""

    def __init__(self, root: Path, port: int):
        self.root, self.port = root, port
        self.url = f"http://127.0.0.1:{port}/api"
        self.client = SyncPrefectClient(api=self.url)  # until the server has its secret
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *configs: Path) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        with open(self.root / "output.txt", "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", SERVE, str(self.root), str(self.port), *map(str, configs)],
                cwd=self.root,
                env={
                    **inherited,
                    "PYTHONPATH": f"{REPOSITORY}:{self.root}",
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return (self.root / "output.txt").read_text(encoding="utf-8")

    def wait_until_ready(self, times: int) -> None:
        assert self.process is not None
        process = self.process
        wait_for(lambda: self.printed.count("Ready.") == times or process.poll() is not None, "serve is ready")
        assert process.poll() is None, self.printed
        self.client = SyncPrefectClient(api=self.url, auth_string=self.auth_file.read_text(encoding="utf-8"))

    @property
    def auth_file(self) -> Path:
        return self.root / ".prefect" / "serve" / "auth"

    def family(self) -> list[psutil.Process]:
        """Every process that serves or runs something for this root."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PYTHONPATH", "").endswith(str(self.root)):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def run(self, name: str, *overrides: str) -> tuple[UUID, Path]:
        """What `prefect deployment run` does; the folder is where the flow says what it did."""
        folder = self.root / name
        folder.mkdir()
        deployment = self.client.read_deployment_by_name("train/train")
        run = self.client.create_flow_run_from_deployment(
            deployment.id, parameters={"config": str(folder), "overrides": list(overrides)}
        )
        return run.id, folder

    def read(self, run: UUID) -> FlowRun:
        return self.client.read_flow_run(run)

    def wait_for_state(self, run: UUID, name: str) -> FlowRun:
        try:
            wait_for(lambda: self.read(run).state_name == name, f"state {name}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.read(run).state}\n{self.printed}") from None
        return self.read(run)

    def states(self, run: UUID) -> list[str]:
        return [state.name or "" for state in self.client.read_flow_run_states(run)]

    def cancel(self, run: UUID) -> None:
        self.client.set_flow_run_state(run, Cancelling())


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().split()) if (folder / "starts").exists() else 0


def child_of(folder: Path) -> psutil.Process:
    wait_for((folder / "child").exists, "the flow's child")
    return psutil.Process(int((folder / "child").read_text()))


def has_ended(process: psutil.Process) -> bool:
    """Also where nobody has asked for its exit code, as in a container without an init process."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    (home := root / ".prefect" / "home").mkdir(parents=True, mode=0o700)
    shutil.copy(prefect_database, home)
    (root / "small_flow.py").write_text(FLOW, encoding="utf-8")
    (root / "prefect.yaml").write_text(DECLARATION, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    served = Served(root, port)
    served.process = served.start()
    try:
        served.wait_until_ready(1)
        yield served
    finally:
        served.process.send_signal(signal.SIGTERM)
        try:
            served.process.wait(LIMIT_S)
        finally:
            for process in served.family():  # none, where the tests pass
                process.kill()


def test_a_killed_run_comes_back_under_its_own_id_and_a_second_one_waits_for_it(served):
    first, first_folder = served.run("first", "die once", "wait")
    wait_for(lambda: starts(first_folder) == 2, "a second start")
    second, second_folder = served.run("second")
    child_of(first_folder)
    wait_for(lambda: served.read(second).state_name in ("Late", "Scheduled"), "the second in the queue")
    assert served.read(first).state_name == "Running"
    assert starts(second_folder) == 0
    (first_folder / "go").touch()
    assert served.wait_for_state(first, "Completed").run_count == 2
    assert "Crashed" in served.states(first)
    assert "AwaitingRetry" in served.states(first)
    served.wait_for_state(second, "Completed")
    finished = (first_folder / "done").stat().st_mtime
    assert (second_folder / "starts").stat().st_mtime > finished
    assert starts(second_folder) == 1


@pytest.fixture(scope="module")
def hopeless(served) -> tuple[UUID, Path]:
    """A run that dies whenever it is started, and its folder: between its attempts others run."""
    return served.run("dies", "die")


def test_a_bug_is_not_retried_and_cancel_ends_a_run_and_its_children(served, hopeless):
    bug, bug_folder = served.run("bug", "fail")
    assert served.wait_for_state(bug, "Failed").run_count == 1
    run, folder = served.run("cancelled", "wait")
    child = child_of(folder)  # the next run has started: the bug's has not
    assert served.read(bug).state_name == "Failed"
    assert starts(bug_folder) == 1
    served.cancel(run)
    served.wait_for_state(run, "Cancelled")
    wait_for(lambda: has_ended(child), "the end of the child")
    assert not (folder / "done").exists()


def test_a_run_without_heartbeats_is_crashed_unless_suspended_and_the_limit_of_attempts_holds(served, hopeless):
    dead, dead_folder = hopeless
    wait_for(lambda: (served.read(dead).run_count, served.read(dead).state_name) == (3, "Crashed"), "three attempts")
    paused, paused_folder = served.run("paused", "pause")
    served.wait_for_state(paused, "Suspended")
    run, folder = served.run("silent", "wait")
    child_of(folder)
    process = psutil.Process(int((folder / "starts").read_text()))
    process.suspend()  # as a machine that is gone: no exit code, no heartbeat
    # 75 s, which cannot be made shorter: a run hears of its suspension within 10 s, and a busy machine takes as long.
    wait_for(lambda: "Crashed" in served.states(run), "Crashed")
    process.kill()
    wait_for(lambda: starts(folder) == 2, "another start")
    (folder / "go").touch()
    served.wait_for_state(run, "Completed")
    assert "AwaitingRetry" in served.states(run)
    assert (served.read(paused).state_name, starts(paused_folder)) == ("Suspended", 1)
    served.client.resume_flow_run(paused)
    served.wait_for_state(paused, "Completed")
    assert starts(paused_folder) == 2
    assert "Crashed" not in served.states(paused)
    # One that may go on has come back since; the other has not.
    assert (served.read(dead).state_name, starts(dead_folder)) == ("Crashed", 3)


def test_a_locked_database_is_waited_for_what_dies_is_started_again_and_the_campaign_ends(served):
    run, folder = served.run("disturbed", "wait")
    child = child_of(folder)

    def kill(*command: str) -> None:
        (victim,) = (process for process in served.family() if process.cmdline()[1 : len(command) + 1] == [*command])
        victim.kill()

    kill("-m", "flows.prefect_api")
    wait_for(lambda: "The Prefect server ended: it is started again in 1 s." in served.printed, "the new server")
    wait_for(lambda: served.client.api_healthcheck() is None, "its answer")

    database = sqlite3.connect(served.root / ".prefect" / "home" / "prefect.db", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as other:
        asked = other.submit(served.client.update_work_pool, "pool", WorkPoolUpdate(description="written late"))
        assert wait([asked], timeout=2.0).not_done == {asked}
        database.execute("ROLLBACK")
        asked.result(LIMIT_S)
    database.close()
    assert served.client.read_work_pool("pool").description == "written late"

    kill("-m", "prefect", "worker")
    wait_for(lambda: starts(folder) == 2, "a start by the new worker")
    assert has_ended(child)
    assert "The worker ended: it is started again in 1 s." in served.printed
    (folder / "go").touch()
    wait_for((folder / "done").exists, "the end of the campaign")
    served.wait_for_state(run, "Completed")


def test_nobody_else_is_answered(served):
    """Not another user of the machine, not a page of another site in the user's browser, whatever name it has."""
    secret = served.auth_file.read_text(encoding="utf-8")
    assert (served.auth_file.lstat().st_mode & 0o777, served.auth_file.lstat().st_uid) == (0o600, os.getuid())
    assert f'export PREFECT_API_AUTH_STRING="$(cat {served.auth_file})"' in served.printed
    assert secret not in served.printed
    with httpx.Client(base_url=served.url) as http:
        for wrong in (None, ("opid", "guessed")):
            assert http.get("/work_pools/pool", auth=wrong).status_code == 401
        http.auth = tuple(secret.split(":"))
        assert http.get("/work_pools/pool").status_code == 200
        assert http.get("/work_pools/pool", headers={"Host": "elsewhere.example"}).status_code == 400
        assert http.patch("/work_pools/pool", json={"is_paused": True}).status_code == 403  # no CSRF token
        foreign = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
        assert "access-control-allow-origin" not in http.options("/work_pools/pool", headers=foreign).headers
    assert not served.client.read_work_pool("pool").is_paused
    with (
        temporary_settings({PREFECT_API_AUTH_STRING: None}),  # another server's may be in the environment
        pytest.raises(ConfigError, match=r"PREFECT_API_URL=.*: this server needs an auth string, and none is given"),
    ):
        check_api(served.url)
    with (
        temporary_settings({PREFECT_API_AUTH_STRING: "opid:guessed"}),
        pytest.raises(ConfigError, match="not take the"),
    ):
        check_api(served.url)


def test_the_commands_that_it_shows_work_as_they_are_and_what_it_says_fits_80_columns(served):
    first, _, last = served.printed.partition("Ctrl-C stops all")
    lines = [*first.splitlines(), "Ctrl-C stops all" + last.splitlines()[0]]
    assert max(len(line) for line in lines if str(served.root) not in line) <= 80
    address, auth, run, runs, cancel, pause = [line.strip() for line in lines if line.startswith("  ")]
    assert address == f"export PREFECT_API_URL={served.url}"
    assert str(served.auth_file) in auth
    assert run == "prefect deployment run train/train -p config=configs/quickstart.yaml"
    assert cancel == "prefect flow-run cancel ID"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    script = "\n".join(["set -e", address, auth, runs, pause])
    told = subprocess.run(["bash", "-c", script], env={**inherited, "PATH": path}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert served.client.read_work_pool("pool").is_paused
    served.client.update_work_pool("pool", WorkPoolUpdate(is_paused=False))


def test_a_second_serve_is_refused(served, tmp_path, monkeypatch):
    again = served.start()
    assert again.wait(LIMIT_S) == 1
    assert f"another `opid serve` (process {served.process.pid})" in served.printed
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ConfigError, match=f"port {served.port}: Address already in use; choose another with --port"):
        serve_until_interrupted([], None, served.port, "pool")
    monkeypatch.setenv("PREFECT_API_URL", f"http://localhost:{served.port}/api")  # as that error says
    auth = served.auth_file.read_text(encoding="utf-8")
    with (
        temporary_settings({PREFECT_API_AUTH_STRING: auth}),
        pytest.raises(ConfigError, match=rf"work pool 'pool': another `opid serve` \(process {served.process.pid}\)"),
    ):
        serve_until_interrupted([], None, served.port, "pool")


def test_stopping_leaves_no_process_and_the_next_serve_continues_and_keeps_its_schedule(served, tmp_path):
    run, folder = served.run("interrupted", "wait")
    child_of(folder)
    assert len(served.family()) >= 5  # serve, server, worker, flow, its child
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(LIMIT_S) == 0
    assert served.family() == []

    secret = served.auth_file.read_text(encoding="utf-8")
    served.auth_file.chmod(0o644)  # who knows who has read it
    config = tmp_path / "nightly.yaml"
    config.write_text("campaign: nightly\n", encoding="utf-8")
    scheduled = config.with_suffix("")
    scheduled.mkdir()
    (folder / "go").touch()
    served.process = served.start(config)
    served.wait_until_ready(2)
    assert served.auth_file.stat().st_mode & 0o777 == 0o600
    assert served.auth_file.read_text(encoding="utf-8") != secret
    assert served.wait_for_state(run, "Completed").run_count == 2
    nightly = served.client.read_deployment_by_name("train/nightly")
    assert nightly.parameters == {"config": str(config)}
    assert [schedule.schedule.cron for schedule in nightly.schedules] == ["* * * * *"]
    wait_for((scheduled / "done").exists, "a run that the schedule of every minute began")
    names = [automation["name"] for automation in automations.automations()]
    assert [len(served.client.read_automations_by_name(name)) for name in names] == [1, 1]


@pytest.mark.parametrize(
    ("text", "cron", "message"),
    [
        ("campaign: nightly\n", "every day", "--cron 'every day'"),
        ("campaign: nightly\nunknown: 1\n", None, "unknown"),
        ("campaign: train\n", None, "campaign 'train' is already the name of a deployment"),
    ],
)
def test_bad_input_starts_nothing(tmp_path, monkeypatch, text, cron, message):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect" / "home"))
    config = tmp_path / "config.yaml"
    config.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        serve_until_interrupted([config], cron, 1, "pool")
    assert not (tmp_path / ".prefect").exists()
