"""`opid serve` of a small flow that does exactly what a test needs, and what a user does with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

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
            for number in range(300):  # it ends at the next stage after it has heard of its suspension
                if number % 25 == 24:  # an event from before Prefect's listener was there is lost, and none looks again
                    with get_client(sync_client=True) as client:
                        client.set_flow_run_state(flow_run.id, Suspended(timeout_seconds=600), force=True)
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
