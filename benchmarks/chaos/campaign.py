"""The tiny campaign of a round, started again whenever it was killed, by hand or by `opid serve`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

import httpx
import yaml

from benchmarks.chaos import victims
from infra import processes
from infra.store import CampaignStore
from tests.integration.campaigns import CONFIG

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "tiny"
ITERATIONS = 2
STOP_LIMIT_S = 120.0
LOST_CODE = 2
"""Exit code of a driver that found another one at work, as of every error that says what to do."""
RECOVERY = {
    "retry_delay_s": 0.5,
    "stage_retries": 6,
    "stage_timeout_s": 900,
    "iteration_attempts": 1000,
    "lease_ttl_s": 5,
}
"""The recovery of a campaign that is killed every few seconds: quick tries, and an end of them only far away."""


class RoundFailed(Exception):
    """What a round must never show. The text says what was expected and what was found."""


@dataclass(frozen=True)
class Setup:
    """Where the campaign of a round works."""

    folder: Path
    """Of the round: config, output, working directory, caches."""
    root: str
    """Of the store."""
    endpoint_url: str | None
    ranks: int
    iterations: int = ITERATIONS
    upload_s: float | None = None
    """So much longer an optimizer state is on its way; None: as long as it takes."""

    @property
    def mark(self) -> str:
        """What the round's processes have in their environment."""
        return str(self.folder)

    @property
    def output(self) -> Path:
        return self.folder / "output.txt"

    def store(self, endpoint_url: str | None) -> CampaignStore:
        """The campaign's store, past the proxy."""
        return CampaignStore(self.root, NAME, endpoint_url)

    def write_config(self) -> Path:
        path = self.folder / "tiny.yaml"
        config = yaml.safe_load(CONFIG)
        config |= {"root": self.root, "iterations": self.iterations, "recovery": RECOVERY}
        config["learner"]["ranks"] = self.ranks
        config["storage"] = {"endpoint_url": self.endpoint_url}
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A marked process in the round's folder; it dies with this one."""
        env = {
            victims.MARK: self.mark,
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_HOME": str(self.folder / ".prefect" / "home"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
            "OPID_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        in_folder = ["env", "-C", str(self.folder), sys.executable, *arguments]
        return processes.start(in_folder, self.output, env)


class TendedRun(Protocol):
    """A campaign on its way."""

    resumes: int
    """How often something had to be started again from outside."""

    def start(self) -> None: ...

    def tend(self, killed: str | None, excused: bool) -> bool:
        """Start again what is dead; whether the campaign has ended. `killed`: what was killed since the last call;
        `excused`: what the driver may itself give up at has happened. Raises RoundFailed where it ended otherwise."""
        ...

    def stop(self) -> None:
        """End it in the orderly way."""
        ...


class CommandRun:
    """`opid train`: whoever finds it dead, or frozen, gives the same command again."""

    def __init__(self, setup: Setup) -> None:
        self.resumes = 0
        self._frozen: list[tuple[subprocess.Popen[bytes], float]] = []
        """Drivers that are stopped, each with the moment when it thaws."""
        self._setup = setup
        self._config = setup.write_config()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        upload_s = self._setup.upload_s
        program = ["flows.cli"] if upload_s is None else ["benchmarks.slow_upload", str(upload_s)]
        self._process = self._setup.start("-m", *program, "train", str(self._config))

    def freeze(self, seconds: float) -> bool:
        """Stop the driver for `seconds`, and start another; whether there was one."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(signal.SIGSTOP)
        self._frozen.append((self._process, time.monotonic() + seconds))
        self.resumes += 1
        self.start()
        return True

    def tend(self, killed: str | None, excused: bool) -> bool:
        assert self._process is not None
        self._thaw(time.monotonic(), excused)
        if killed in (victims.DRIVER, victims.TREE):
            self._process.wait(STOP_LIMIT_S)
        code = self._process.poll()
        if code is None or code == 0:
            return code == 0
        if code != -signal.SIGKILL and not excused:
            raise RoundFailed(f"the driver ended by itself (exit code {code}); its last lines:\n{_tail(self._setup)}")
        self.resumes += 1
        self.start()
        return False

    def stop(self) -> None:
        self._thaw(float("inf"), excused=False)

    def _thaw(self, now_s: float, excused: bool) -> None:
        """Let drivers whose time has come go on. Each must end, of itself because it has lost the campaign (or had
        finished it), or because it was killed meanwhile with the whole tree. Where its successor ends instead, because
        it began to look only when the first one had thawed, that one is the driver again."""
        for frozen in [one for one in self._frozen if one[1] <= now_s]:
            self._frozen.remove(frozen)
            process, deadline_s = frozen[0], time.monotonic() + STOP_LIMIT_S
            process.send_signal(signal.SIGCONT)
            while process.poll() is None and not self._has_lost() and time.monotonic() < deadline_s:
                time.sleep(0.1)
            if process.poll() in (None, 0) and self._has_lost():
                self._process = process
            elif (code := process.poll()) not in (0, LOST_CODE, -signal.SIGKILL) and not excused:
                what = "did not end" if code is None else f"ended with {code}"
                raise RoundFailed(f"a driver that thawed {what}; last lines:\n{_tail(self._setup)}")

    def _has_lost(self) -> bool:
        return self._process is not None and self._process.poll() == LOST_CODE


class ServedRun:
    """A run that `opid serve` keeps alive; only when `serve` itself is killed it is started again from here."""

    def __init__(self, setup: Setup) -> None:
        self.resumes = 0
        self._setup = setup
        self._config = setup.write_config()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{self._port}/api"
        self._process: subprocess.Popen[bytes] | None = None
        self._run: UUID | None = None

    def start(self) -> None:
        self._process = self._setup.start(
            "-m", "benchmarks.chaos.served", str(self._setup.folder), str(self._port), str(self._config)
        )

    def tend(self, killed: str | None, excused: bool) -> bool:
        assert self._process is not None
        if killed == victims.TREE:
            self._process.wait(STOP_LIMIT_S)
        if self._process.poll() is not None:
            if killed != victims.TREE and not excused:
                raise RoundFailed(f"`opid serve` ended by itself; its last lines:\n{_tail(self._setup)}")
            self.resumes += 1
            self.start()
            return False
        state = self._state()
        if state == "FAILED" and excused:
            self.resumes += 1
            self._run = None
        elif state in ("FAILED", "CANCELLED"):
            raise RoundFailed(f"the flow run is {state}; the last lines of `opid serve`:\n{_tail(self._setup)}")
        return state == "COMPLETED"

    def stop(self) -> None:
        """As Ctrl-C does."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(STOP_LIMIT_S)
        if code != 0:
            raise RoundFailed(f"`opid serve` ended with exit code {code}; its last lines:\n{_tail(self._setup)}")

    def _state(self) -> str | None:
        """Type of the flow run's state, which is created when the deployment is there; None while nobody answers."""
        from prefect.client.orchestration import SyncPrefectClient
        from prefect.exceptions import ObjectNotFound

        if "Ready." not in self._setup.output.read_text(encoding="utf-8", errors="replace"):
            return None
        try:
            auth = (self._setup.folder / ".prefect" / "serve" / "auth").read_text(encoding="utf-8")
            with SyncPrefectClient(api=self._url, auth_string=auth) as client:
                if self._run is None:
                    deployment = client.read_deployment_by_name(f"train/{NAME}")
                    self._run = client.create_flow_run_from_deployment(deployment.id).id
                    return None
                state = client.read_flow_run(self._run).state
        except (httpx.HTTPError, ObjectNotFound):  # killed, and not yet back
            return None
        return state.type.value if state else None


def _tail(setup: Setup) -> str:
    return processes.last_lines(setup.output, 40)


def clear_environment(delete: Callable[[str], None] = os.environ.__delitem__) -> None:
    """Nothing that the user has set for Prefect may enter a round."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        delete(name)
