"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from infra import local_s3, s3_objects
from infra.ray_hosting import RayPlaces
from tests.clusters import Cluster, raylets, use_a_token
from tests.sharing import end_what_is_shared, prefect_api_on, shared_between_processes

S3_BUCKET = "opid"
# Children import what the tests hand them, and take nothing from the working directory.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).strip(
    ":"
)

# One thread each: threads of libraries that wait for each other take the processors from the tests beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as `opid` does: libraries read it when they are imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for the hub; that of the hub has a server of its own

use_a_token()  # before any test imports Ray

# No test is timed: how long an example takes tells of the machine's other work.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first, so that no process is left alone with one of them at the end. Of these the first file makes
    the tiny campaign; the others that look at it come last, so that no process waits for it."""
    waits = {item.path for item in items if "campaign" in getattr(item, "fixturenames", ())}
    items.sort(
        key=lambda item: (
            "integration" not in item.path.parts,
            item.path in waits and item.path.name != "test_campaign.py",
        )
    )


def pytest_sessionfinish() -> None:
    """Not as a fixture ends: the limit of the last test would hold for the wait."""
    end_what_is_shared()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[local_s3.LocalS3]:
    """A real S3 server; its credentials are in the environment, where the AWS chain finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("OPID_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        s3_objects.forget_connections()
        server = local_s3.start(
            tmp_path_factory.mktemp("s3"),
            access_key="tests",
            secret_key="secret-of-the-tests",
            bucket=S3_BUCKET,
        )
        yield server
        local_s3.stop(server)
        s3_objects.forget_connections()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder that all processes of this run of the tests share: what takes long is made there once, under a lock."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def prefect_database(shared_folder) -> Path:
    """An empty Prefect database: to make one takes a server twice as long as all else that it does to start."""
    home = shared_folder / "prefect"
    with FileLock(shared_folder / "prefect.lock"):
        if not (home / "made").exists():
            subprocess.run(
                [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"],
                env={**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": ""},
                check=True,
                capture_output=True,
            )
            (home / "made").touch()
    return home / "prefect.db"


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory, prefect_database, shared_folder) -> Iterator[dict[str, str]]:
    """A real Prefect API for the flows and tasks of all processes of this run of the tests, and the environment in
    which others report to it. Each further server would take as long to start as all small tests of a package."""
    from flows import settings

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        before = {*os.environ}
        settings.apply(tmp_path_factory.mktemp("prefect"))
        settings.make_prefect_home()
        answer = shared_between_processes(
            shared_folder / "prefect-server",
            lambda folder: prefect_api_on(prefect_database, folder),
        )
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        from flows.prefect_api import prefect_api

        url, auth = answer.split()
        patch.setenv("PREFECT_API_URL", url)  # `prefect_api` starts no other one
        with prefect_api(), temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth}):
            patch.delenv("PREFECT_API_URL")
            yield {PREFECT_API_URL.name: url, PREFECT_API_AUTH_STRING.name: auth}
        for name in {*os.environ} - before:  # what `apply` has set
            del os.environ[name]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Cluster]:
    """Two local raylets of three CPUs each, which this process has joined; no process is left of them."""
    from infra import ray_nodes

    with raylets(2, cpus=3) as cluster:
        ray_nodes.connect(cluster.address)
        yield cluster
        ray_nodes.disconnect()


@pytest.fixture(scope="module")
def ray_places(ray_cluster) -> Iterator[RayPlaces]:
    """A place on each of the two raylets, which leaves a CPU on either."""
    from infra.ray_hosting import RayPlaces

    places = RayPlaces([{"CPU": 2}] * 2, 300.0)
    yield places
    places.close()


@pytest.fixture
def user_modules(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder on the path of modules; what is imported from it is forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
