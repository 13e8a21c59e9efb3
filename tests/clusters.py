"""Local raylets for tests and drills: on loopback, with a secret, without dashboard or statistics."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra import processes

HOST = "127.0.0.2"
"""Loopback by a name that Ray does not take for this machine's other address, as it does 127.0.0.1."""
START_TIMEOUT_S = 300.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}


@dataclass(frozen=True)
class Cluster:
    """A head and further raylets, each below a process of its own that ends with this one."""

    address: str
    raylets: list[subprocess.Popen[bytes]]
    """The head first."""
    folder: Path


def use_a_token() -> None:
    """Set the secret by which this process and its raylets know each other. Ray reads it when it is imported, by vLLM
    too, and never again."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))


@contextmanager
def raylets(
    count: int, *, cpus: int = 1, gpus: int = 0, head_works: bool = True, envs: Sequence[Mapping[str, str]] = ()
) -> Iterator[Cluster]:
    """`count` raylets of so many CPUs (and GPUs, which need not exist), unless the first one, the head, has none, each
    with its own of the `envs` where these are given; the environment that reaches them is set in the block. Nothing of
    them is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # names of sockets are short
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *ENVIRONMENT)}
    use_a_token()
    os.environ.update(ENVIRONMENT)
    started: list[subprocess.Popen[bytes]] = []
    try:
        address = f"{HOST}:{free_ports(1)[0]}"
        for number in range(count):
            is_head = number == 0
            has = {"cpus": cpus, "gpus": gpus} if head_works or not is_head else {"cpus": 0, "gpus": 0}
            env = envs[number] if envs else {}
            started.append(start_raylet(address, folder, is_head=is_head, env=env, **has))
            if is_head:
                _wait_until_up(started[0], folder / f"{started[0].pid}.log")
        for raylet in started[1:]:
            _wait_until_up(raylet, folder / f"{raylet.pid}.log")
        yield Cluster(address, started, folder)
    finally:
        for raylet in reversed(started):
            processes.kill(raylet)
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def start_raylet(
    address: str, folder: Path, *, is_head: bool, cpus: int, gpus: int, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a raylet, and the head's other processes, below a process that waits for them."""
    host, _, port = address.rpartition(":")
    metrics, listen, grpc, environments = free_ports(4)  # chosen by agents themselves they may come too late
    role = ["--head", f"--port={port}", "--include-dashboard=false", "--no-monitor", f"--temp-dir={folder}"]
    log = folder / "start.log"
    process = processes.start(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(role if is_head else [f"--address={address}"]),
            *(f"--node-ip-address={host}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"),
            *("--object-store-memory=80000000", "--include-log-monitor=false"),
            *(f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={listen}"),
            *(f"--dashboard-agent-grpc-port={grpc}", f"--runtime-env-agent-port={environments}"),
        ],
        log,
        env,
    )
    log.rename(folder / f"{process.pid}.log")
    return process


def _wait_until_up(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while "Ray runtime started" not in log.read_text(encoding="utf-8", errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise AssertionError(processes.last_lines(log))
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
