"""What messages say; `test_campaign.py` has when they are sent."""

from __future__ import annotations

import pytest

from flows.notify import on_failure
from opid_core.config import build_config
from opid_core.errors import ConfigError
from tests.infra.servers import receiving


def test_the_command_in_a_failure_names_the_server_of_the_store(monkeypatch):
    storage = {"endpoint_url": "http://127.0.0.1:9000"}
    values = {
        "campaign": "demo",
        "root": "s3://bucket/runs",
        "storage": storage,
        "notify": {"url_env": "OPID_NOTIFY_URL"},
    }
    with receiving() as (url, received):
        monkeypatch.setenv("OPID_NOTIFY_URL", url.replace("http", "json"))
        with pytest.raises(ConfigError), on_failure(build_config(values)):
            raise ConfigError("no right to write")
    (message,) = received
    assert message["message"] == (
        "ConfigError: no right to write\n\nThe same command continues it. Look: "
        "opid status demo --root s3://bucket/runs --endpoint-url http://127.0.0.1:9000"
    )
