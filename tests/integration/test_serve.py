"""`opid serve` with a real Prefect server and worker; the flow is a small one that does exactly what a test needs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from flows.cli.serve import serve_until_interrupted
from flows.prefect_api import check_api
from infra import automations
from opid_core.errors import ConfigError
from tests.integration.served import DECLARATION, FLOW, LIMIT_S, Served, child_of, has_ended, starts, wait_for

pytestmark = pytest.mark.integration


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
