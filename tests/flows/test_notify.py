"""What messages say, and when a campaign sends them."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import task

from flows import campaign
from flows.campaign import run_campaign
from flows.notify import NOTES, committed, on_failure
from infra.store import commit, find_campaign, local_folder, manifests, open_campaign
from opid_core.config import build_config
from opid_core.errors import ConfigError
from tasks import progress
from tasks.iteration import TASK
from tests.factories import make_chain, make_manifest
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


@pytest.fixture
def notified(tmp_path, monkeypatch, prefect_server):
    """`notified(OUTCOME, ...)` runs the rest of a campaign with `notify`, each iteration an error or a reason why it is
    degraded ("": none); its messages, and what people were told."""

    def run(
        *outcomes: Exception | str, status: int = 200, **notify: Any
    ) -> tuple[list[tuple[str, str, str]], list[str]]:
        values = {"campaign": "demo", "root": str(tmp_path / "runs"), "recovery": {"retry_delay_s": 0.0}}
        config = build_config({**values, "iterations": 2, "notify": {"url_env": "OPID_NOTIFY_URL", **notify}})
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        left, told = iter(outcomes), []

        def run_iteration(name: str, iteration: int, attempt: int, degrade: bool):
            if isinstance(outcome := next(left), Exception):
                raise outcome
            chain, reasons = manifests(store), [outcome] if outcome else []
            success = {"evaluation/t1/success_micro": 0.25, "rollout/return": 1.0}
            before = chain[-1] if chain else None
            return commit(store, make_manifest(store, tmp_path, before, degraded=reasons, metrics=success))[0]

        monkeypatch.setattr(campaign, "run_iteration", run_iteration)
        stop = progress.listen(lambda event: told.append(event.note) if event.stage == "notify" else None)
        with receiving(status) as (url, received):
            monkeypatch.setenv("OPID_NOTIFY_URL", f"{url.replace('http', 'json')}/a-secret")
            try:
                run_campaign(config)
            except ConfigError:
                assert any(isinstance(outcome, ConfigError) for outcome in outcomes)
            finally:
                stop()
        return [(one["type"], one["title"], one["message"]) for one in received], told

    return run


FINISHED = ("success", "OPID: demo finished", "2 iterations\nevaluation/t1/success_micro 0.25")


def test_people_are_told_what_became_of_a_campaign(notified, tmp_path):
    failed, _ = notified("", ConfigError("no right to write"))
    ((kind, title, text),) = failed
    assert (kind, title) == ("failure", "OPID: demo failed")
    assert text.startswith("ConfigError: no right to write\n")
    assert text.endswith(f"Look: opid status demo --root {tmp_path}/runs")
    reason = "skills: 2 of 6 analyses failed"
    assert notified(reason, "")[0] == [("warning", "OPID: demo degraded", f"iteration 1: {reason}"), FINISHED]
    assert notified()[0] == []  # it was finished before


def test_people_are_told_of_the_end_though_the_process_ends_in_what_follows_it(notified, monkeypatch):
    ended = ConfigError("no right to track")

    @task(**TASK)
    def track(campaign: str, iteration: int) -> None:
        if iteration == 2:
            raise ended

    monkeypatch.setattr(campaign, "track", track)
    assert notified("", "", "", ended, on=["finished"])[0] == [FINISHED]


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_process_that_is_killed_around_a_message_has_it_told_by_the_next(notified, monkeypatch, is_sent):
    """At least once: one that was sent, but not noted, is sent again."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if is_sent:
            patched.setattr(campaign.notify, "create_object", killed)
        else:
            patched.setattr(campaign.notify, "_tell", killed)
        with pytest.raises(KeyboardInterrupt):
            notified("a reason")
    warning = ("warning", "OPID: demo degraded", "iteration 0: a reason")
    assert notified("", "")[0] == [warning, FINISHED]
    assert notified()[0] == []


def test_people_are_told_what_they_asked_for(notified):
    assert notified("", "degraded", "", on=["finished"])[0] == [FINISHED]


def test_a_message_that_is_lost_is_said_costs_nothing_else_and_is_sent_when_the_campaign_goes_on(notified, tmp_path):
    lost = notified("", "", "", status=500)
    assert lost == ([FINISHED], ["the message that demo finished was lost: not delivered"])
    assert len(manifests(find_campaign(tmp_path / "runs", "demo"))) == 3
    kept = [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not [data for data in kept if b"a-secret" in data]
    assert notified() == ([FINISHED], [])
    assert notified() == ([], [])
