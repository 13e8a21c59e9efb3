"""What messages say; `test_campaign.py` has when they are sent."""

from __future__ import annotations

from typing import Any

import pytest

from flows.notify import NOTES, committed, on_failure
from infra.store import local_folder, open_campaign
from opid_core.config import build_config
from opid_core.errors import ConfigError
from tests.factories import make_chain
from tests.infra.servers import receiving


def last_commit(tmp_path, **notify: Any):
    """A campaign of one iteration, which is degraded: its config, store and newest commit."""
    config = build_config({"campaign": "demo", "root": str(tmp_path / "runs"), "iterations": 1, "notify": notify})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    return config, store, make_chain(store, tmp_path, 2)[-1].model_copy(update={"degraded": ["a reason"]})


@pytest.mark.parametrize("notify", [{}, {"url_env": "OPID_NOTIFY_URL", "on": ["failed"]}])
def test_the_store_is_not_read_where_no_message_is_wanted(tmp_path, notify):
    config, store, manifest = last_commit(tmp_path, **notify)
    for event in ("degraded", "finished"):  # a folder cannot be read
        local_folder(store, f"{NOTES}/000001-{event}").mkdir(parents=True)
    committed(config, store, manifest)


def test_one_iteration_is_no_more(tmp_path, monkeypatch):
    config, store, manifest = last_commit(tmp_path, url_env="OPID_NOTIFY_URL", on=["finished"])
    with receiving() as (url, received):
        monkeypatch.setenv("OPID_NOTIFY_URL", url.replace("http", "json"))
        committed(config, store, manifest)
    assert [message["message"].splitlines()[0] for message in received] == ["1 iteration"]


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
