from __future__ import annotations

from typing import NamedTuple

import pytest

from infra import s3_objects
from infra.store import CampaignStore, open_campaign
from tests.conftest import S3_BUCKET
from tests.factories import CONFIG


class Root(NamedTuple):
    """Where a store lies."""

    address: str
    endpoint_url: str | None


@pytest.fixture
def s3_root(s3_server, tmp_path) -> Root:
    return Root(f"s3://{S3_BUCKET}/{tmp_path.name}", s3_server.endpoint_url)


@pytest.fixture(params=["file", "s3"])
def root(request, tmp_path) -> Root:
    """An empty root of either kind."""
    return request.getfixturevalue("s3_root") if request.param == "s3" else Root(str(tmp_path / "runs"), None)


@pytest.fixture
def store(root) -> CampaignStore:
    return open_campaign(root.address, "demo", CONFIG, root.endpoint_url)


@pytest.fixture
def s3_store(s3_root) -> CampaignStore:
    return open_campaign(s3_root.address, "demo", CONFIG, s3_root.endpoint_url)


@pytest.fixture
def credentials(monkeypatch):
    """Set environment variables of the AWS chain for new connections."""

    def choose(**values: str | None) -> None:
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        s3_objects.forget_connections()

    yield choose
    s3_objects.forget_connections()
