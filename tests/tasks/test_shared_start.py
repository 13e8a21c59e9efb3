from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra import stages
from infra.manifest import GateResult
from infra.store import CampaignStore, commit, open_campaign, put_folder, read_table, write_table
from opid_core.config import CampaignConfig, build_config
from tasks import shared_start
from tasks.commit import build_manifest
from tasks.evaluate import evaluation_metrics
from tasks.iteration import CampaignRun
from tasks.results import StageResult, made_from, read_result
from tasks.shared_start import adopt_evaluation
from tests.factories import make_table, valid_rows

GATE = GateResult(table="evaluations", passed=True)
EVALUATIONS = make_table("evaluations", valid_rows()["evaluations"])


def campaign(tmp_path: Path, name: str) -> tuple[CampaignConfig, CampaignStore]:
    config = build_config({"campaign": name, "root": str(tmp_path / "runs"), "seed": 4})
    return config, open_campaign(config.root, name, config.model_dump(mode="json"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """The policy that all campaigns start from."""
    (folder := tmp_path / "policy").mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def other(tmp_path, folder) -> CampaignStore:
    """Of a campaign that has committed its start."""
    config, store = campaign(tmp_path, "first")
    it = CampaignRun(config, store).begin(0, 0)
    it.results["initial_policy"] = StageResult(policy=put_folder(store, folder, "policies/000000/a"))
    record = write_table(store, "evaluations", 0, "a", EVALUATIONS)
    it.results["evaluate"] = StageResult(tables={"evaluations": record}, gates=(GATE,))
    commit(store, build_manifest(it, created_at=datetime(2026, 1, 2, tzinfo=UTC), prefect_run_id=None))
    return store


def test_the_evaluation_is_a_finished_stage_of_the_other_campaign_too(tmp_path, folder, other):
    config, store = campaign(tmp_path, "second")
    assert adopt_evaluation(config, store, folder, other)
    recorded = stages.recorded(store, 0, 0, "evaluate", made_from(config, None, "evaluate"))
    assert recorded is not None
    result = read_result(recorded)
    assert read_table(store, result.tables["evaluations"]).equals(EVALUATIONS)
    assert (result.gates, result.metrics, result.policy) == ((GATE,), evaluation_metrics(EVALUATIONS), None)
    assert not adopt_evaluation(config, store, folder, other)  # it has one now


def test_another_policy_is_evaluated_anew(tmp_path, folder, other):
    config, store = campaign(tmp_path, "second")
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")  # of the same size
    assert not adopt_evaluation(config, store, folder, other)
    (folder / "model.safetensors").unlink()
    assert not adopt_evaluation(config, store, folder, other)
    assert stages.finished(store, 0, 0) == set()


def test_another_version_of_the_program_evaluates_anew(tmp_path, folder, other, monkeypatch):
    monkeypatch.setattr(shared_start, "code_version", lambda: "another")
    config, store = campaign(tmp_path, "second")
    assert not adopt_evaluation(config, store, folder, other)
    assert stages.finished(store, 0, 0) == set()


def test_a_start_that_is_not_committed_is_none(tmp_path, folder):
    _, other = campaign(tmp_path, "first")
    assert not adopt_evaluation(*campaign(tmp_path, "second"), folder, other)


def test_a_campaign_that_has_begun_keeps_its_own(folder, other):
    config = build_config({"campaign": "first", "root": other.root, "seed": 4})
    assert not adopt_evaluation(config, other, folder, other)
