"""Whole campaigns whose optimizer states are stored in the background, with an engine and a learner in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import CONFIG, InProcessWorkers
from flows.campaign import run_campaign
from infra import stages
from infra.manifest import FolderRecord, GateResult, Manifest
from infra.store import CampaignStore, find_campaign, list_objects, manifests, orphans, verify
from opid_core.config import CampaignConfig, load_config
from opid_core.errors import InfrastructureError
from tasks import commit, iteration
from tests.factories import make_tiny_policy_folder

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

FUTURE = -3600.0
"""An age that every object has: older than one hour from now."""
SCORED = ("record extract_skills", "record route", "record rescore")


class Script:
    """What happens in a campaign, and what is to go wrong, once each: an error to raise when its event comes."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.faults: dict[str, BaseException] = {}
        self.weights = b""
        """Added to those of each policy from now on."""
        self.other_weights_from = ""
        """The event from which they are others."""

    def __call__(self, event: str) -> None:
        self.events.append(event)
        if event == self.other_weights_from:
            self.weights = b"others"
        if (fault := self.faults.pop(event, None)) is not None:
            raise fault

    def after(self, event: str) -> list[str]:
        return self.events[self.events.index(event) + 1 :]


def scripted(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The script of all campaigns from now on."""
    script = Script()

    class Workers(InProcessWorkers):
        def engine(self, policy: FolderRecord) -> Any:
            script(f"push {int(policy.uri.split('/')[1])}")
            return super().engine(policy)

        def export(self, folder: Path) -> None:
            super().export(folder)
            with open(folder / "model.safetensors", "ab") as file:
                file.write(script.weights)

        def store(self, store: CampaignStore, uri: str) -> FolderRecord:
            script(f"weights {int(uri.split('/')[1])}")
            return super().store(store, uri)

        def stored(self) -> FolderRecord:
            script(f"state {int(self._stored.uri.split('/')[1])}")
            return super().stored()

    record, make_commit = stages.record, commit.campaign_store.commit

    def recording(store: CampaignStore, number: int, attempt: int, stage: str, *given: Any) -> Any:
        script(f"record {stage} {number}")
        return record(store, number, attempt, stage, *given)

    def committing(store: CampaignStore, manifest: Manifest) -> Any:
        script(f"commit {manifest.iteration}")
        return make_commit(store, manifest)

    def passing(table: str, *given: Any, **limits: Any) -> GateResult:
        """Gates take most of the time of such small iterations."""
        return GateResult(table=table, passed=True)

    monkeypatch.setattr(iteration, "Workers", Workers)
    monkeypatch.setattr(iteration.gates, "check", passing)
    monkeypatch.setattr(iteration.stages, "record", recording)
    monkeypatch.setattr(commit.campaign_store, "commit", committing)
    return script


def config_of(policy: Path, folder: Path, *overrides: str) -> CampaignConfig:
    path = folder / "soak.yaml"
    path.write_text(CONFIG.format(root=folder / "runs", policy=policy, iterations=2), encoding="utf-8")
    return load_config(path, ["evaluation.tasks=1", "recovery.retry_delay_s=0", "recovery.lease_ttl_s=1", *overrides])


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return make_tiny_policy_folder(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def one_after_the_other(policy, tmp_path_factory, prefect_server) -> tuple[list[str], list[str]]:
    """Without anything in the background, and undisturbed: the campaign's contents, and what happened."""
    config = config_of(policy, tmp_path_factory.mktemp("one after the other"), "storage.background=false")
    with pytest.MonkeyPatch.context() as monkeypatch:
        script = scripted(monkeypatch)
        return contents(config), script.after("commit 0")


@pytest.fixture
def script(monkeypatch) -> Script:
    return scripted(monkeypatch)


@pytest.fixture
def config(policy, tmp_path) -> CampaignConfig:
    return config_of(policy, tmp_path)


def contents(config: CampaignConfig) -> list[str]:
    return [manifest.content for manifest in run_campaign(config)]


def of(number: int, *events: str) -> list[str]:
    return [f"{event} {number}" for event in events]


def test_the_next_rollout_comes_before_the_state_is_stored_and_nothing_else_does(script, config, one_after_the_other):
    expected, events = one_after_the_other
    assert contents(config) == expected
    first = ["push 0", *of(1, "record rollout", *SCORED, "weights")]
    assert script.after("commit 0") == [
        *first,
        *("push 1", "record rollout 2"),
        *of(1, "state", "record update", "commit"),
        *of(2, *SCORED, "weights", "state", "record update", "push", "record evaluate", "commit"),
    ]
    assert events == [
        *first,
        *of(1, "state", "record update", "commit"),
        *("push 1", "record rollout 2"),
        *of(2, *SCORED, "weights", "state", "record update", "push", "record evaluate", "commit"),
    ]


def test_a_state_that_is_not_stored_is_a_fault_of_the_update_which_is_done_again(script, config):
    script.faults["state 1"] = InfrastructureError("the store is away")
    run_campaign(config)
    repeated = of(1, "state", "weights", "state", "record update", "commit")
    assert script.after("record rollout 2")[:6] == [*repeated, "record extract_skills 2"]
    store = find_campaign(config.root, config.campaign)
    assert [stages.failures(store, number) for number in (1, 2)] == [[], []]
    assert verify(store) > 0


def test_a_crash_while_the_state_is_stored_repeats_the_update_alone(script, config, one_after_the_other):
    script.faults["state 1"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_campaign(config)
    store = find_campaign(config.root, config.campaign)
    assert len(manifests(store)) == 1
    assert stages.finished(store, 1, 0) == {"rollout", "extract_skills", "route", "rescore"}
    assert stages.finished(store, 2, 0) == {"rollout"}
    played_ahead = [info.path for table in ("steps", "trajectories") for info in list_objects(store, table)]
    assert len(played_ahead) == 2 * 2
    assert {info.path for info in orphans(store, FUTURE)}.isdisjoint(played_ahead)
    script.events.clear()
    assert contents(config) == one_after_the_other[0]
    repeated = [event for event in script.events if event.startswith(("weights", "state", "record", "commit"))]
    assert repeated == [
        *of(1, "weights", "state", "record update", "commit"),
        *of(2, *SCORED, "weights", "state", "record update", "record evaluate", "commit"),
    ]


def test_a_rollout_that_was_played_with_other_weights_is_played_again(script, config):
    script.faults["state 1"] = InfrastructureError("the store is away")
    script.other_weights_from = "record rollout 2"
    chain = run_campaign(config)
    assert script.events.count("record rollout 2") == 2
    store = find_campaign(config.root, config.campaign)
    (given_up,) = stages.failures(store, 2)
    assert given_up["reason"].startswith("AttemptUnusable: stage rollout of iteration 2 cannot be reused")
    assert stages.finished(store, 2, 1) >= {"rollout", "update"}
    assert manifests(store) == chain


def test_a_rollout_that_fails_ahead_is_told_and_played_when_its_time_has_come(script, config, one_after_the_other):
    script.faults["push 1"] = InfrastructureError("the engine died")
    assert contents(config) == one_after_the_other[0]
    assert script.after("commit 0")[len(of(1, "record rollout", *SCORED)) + 1 :][:7] == [
        *("weights 1", "push 1"),
        *of(1, "state", "record update", "commit"),  # the learner went on storing
        *("push 1", "record rollout 2"),
    ]
