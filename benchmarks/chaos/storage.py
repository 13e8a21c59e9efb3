"""The stores of the rounds: a local folder, or an S3 server that is killed, behind a proxy that fails."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.chaos.proxy import FAULTS, Proxy
from infra import local_s3, s3_objects

BUCKET = "opid"
AWAY_S = (1.0, 20.0)
"""Shortest and longest time for which the killed server stays away."""
CALM_S, FAULT_S = (6.0, 20.0), (1.0, 4.0)
"""Shortest and longest time between the proxy's faults, and of one."""


class FileStorage:
    """A local disk, which is always there."""

    endpoint_url = direct_url = None
    is_away = False
    disturbed = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.struck: Counter[str] = Counter()

    def root(self, name: str) -> str:
        """Root of a round's store."""
        return str(self._folder / name / "store")

    def forget(self) -> None: ...

    def tend(self, generator: random.Random) -> None: ...

    def rest(self) -> None: ...

    def close(self) -> None: ...


class S3Storage:
    """A SeaweedFS server with its data in `folder`, and a proxy before it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        os.environ.update(
            AWS_ACCESS_KEY_ID="chaos", AWS_SECRET_ACCESS_KEY=secrets.token_urlsafe(24), AWS_EC2_METADATA_DISABLED="true"
        )
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            os.environ.pop(name, None)
        s3_objects.forget_connections()
        self._server: local_s3.LocalS3 | None = self._started(None)
        self.direct_url = self._server.endpoint_url
        self._port = urlsplit(self.direct_url).port
        assert self._port is not None
        self._proxy = Proxy(self._port, seed)
        self.endpoint_url = self._proxy.url
        self._back_at_s = 0.0
        self._next_s = 0.0
        self._disturbed = False

    @property
    def disturbed(self) -> bool:
        """Whether the storage was away or faulty since `forget`."""
        return self._disturbed or self.is_away or self._proxy.fault is not None

    def forget(self) -> None:
        """What was, was."""
        self._disturbed = False

    @property
    def is_away(self) -> bool:
        return self._server is None

    @property
    def struck(self) -> Counter[str]:
        """Requests that met a fault of the proxy, by fault."""
        return self._proxy.struck

    def root(self, name: str) -> str:
        """Root of a round's store."""
        return f"s3://{BUCKET}/{name}"

    def kill(self, generator: random.Random) -> None:
        """SIGKILL; `tend` starts it again after a random time."""
        assert self._server is not None
        local_s3.stop(self._server)
        self._server = None
        self._back_at_s = time.monotonic() + generator.uniform(*AWAY_S)
        self._disturbed = True

    def tend(self, generator: random.Random) -> None:
        """Bring the server back when it is time, and begin or end a fault of the proxy."""
        now_s = time.monotonic()
        if self._server is None and now_s >= self._back_at_s:
            self._server = self._started(self._port)
        if now_s < self._next_s:
            return
        if self._proxy.fault is None and self._next_s:
            self._proxy.fault = generator.choice(FAULTS)
            self._disturbed = True
            self._next_s = now_s + generator.uniform(*FAULT_S)
        else:
            self._proxy.fault = None
            self._next_s = now_s + generator.uniform(*CALM_S)

    def rest(self) -> None:
        """No faults until `tend` is called again, and the server there."""
        self._proxy.fault = None
        self._next_s = 0.0
        self.forget()
        if self._server is None:
            self._server = self._started(self._port)

    def close(self) -> None:
        self._proxy.stop()
        if self._server is not None:
            local_s3.stop(self._server)

    def _started(self, port: int | None) -> local_s3.LocalS3:
        access_key, secret_key = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        return local_s3.start(self._folder, access_key=access_key, secret_key=secret_key, bucket=BUCKET, port=port)


Storage = FileStorage | S3Storage
