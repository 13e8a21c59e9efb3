from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.lease import acquire
from infra.manifest import GateResult, Manifest, from_bytes, to_bytes
from infra.store import manifests, new_attempt, open_campaign, put_folder, read_table, verify
from opid_core.config import build_config
from opid_core.errors import DataError, LeaseLost
from opid_core.hashing import config_hash
from tasks import progress
from tasks.commit import build_manifest, commit, history, metric_rows, times, what_changed
from tasks.iteration import CampaignRun, Iteration
from tasks.results import StageResult
from tasks.version import code_version
from tests.factories import make_manifest

METRICS = {"rollout/success_micro": 0.25, "seconds/rollout_s": 1.5, "rollout/broken": 0, "rollout/return": math.nan}


@pytest.fixture
def run(tmp_path) -> CampaignRun:
    config = build_config({"campaign": "demo", "root": str(tmp_path / "runs"), "seed": 4})
    return CampaignRun(config, open_campaign(config.root, config.campaign, config.model_dump(mode="json")))


def finished(run: CampaignRun, tmp_path, **result: Any) -> Iteration:
    """The iteration after the chain, whose one stage made a policy and `result`."""
    it, attempt = run.begin(len(run.chain), 0), new_attempt()
    local = tmp_path / attempt
    local.mkdir()
    (local / "model.safetensors").write_bytes(b"weights %d" % it.number)
    policy = put_folder(run.store, local, f"policies/{it.number:06d}/{attempt}")
    it.results["update"] = StageResult(policy=policy, **result)
    return it


def committed(run: CampaignRun, it: Iteration) -> Manifest:
    with run:
        return commit("demo", it.number, it.attempt)


def test_metric_rows_are_sorted_and_undefined_numbers_are_null():
    assert metric_rows(3, StageResult(metrics=METRICS).metrics) == [
        {"iteration": 3, "name": "rollout/broken", "value": 0.0},
        {"iteration": 3, "name": "rollout/return", "value": None},
        {"iteration": 3, "name": "rollout/success_micro", "value": 0.25},
        {"iteration": 3, "name": "seconds/rollout_s", "value": 1.5},
    ]


def test_the_manifest_holds_what_the_stages_made(run, tmp_path):
    it = finished(run, tmp_path, metrics=METRICS)
    manifest = build_manifest(it, created_at=datetime(2026, 1, 2, tzinfo=UTC), prefect_run_id=None)
    assert (manifest.iteration, manifest.policy_version) == (0, 0)
    assert (manifest.policy, manifest.tables) == (it.next_policy, {})
    assert manifest.config_hash == config_hash(run.config)
    assert manifest.preset == "released"
    assert manifest.seeds == {"campaign": 4, "iteration": it.seed}
    assert manifest.metrics == {"rollout/success_micro": 0.25, "rollout/return": None}
    assert manifest.created_at == "2026-01-02T00:00:00.000+00:00"
    assert manifest.code_version == code_version()
    assert manifest.degraded == ()
    it.number = 1
    with pytest.raises(DataError, match="iteration 1: its predecessor cannot be that of iteration None"):
        build_manifest(it, created_at=datetime(2026, 1, 2, tzinfo=UTC), prefect_run_id=None)


def test_an_exceeded_failure_budget_marks_the_manifest(run, tmp_path):
    gates = tuple(
        GateResult(table=table, passed=True, degraded=reasons)
        for table, reasons in (("steps", ()), ("skills", ("more than 10% of the analyses failed", "too few")))
    )
    it = finished(run, tmp_path, gates=gates)
    manifest = build_manifest(it, created_at=datetime(2026, 1, 2, tzinfo=UTC), prefect_run_id=None)
    assert manifest.degraded == ("skills: more than 10% of the analyses failed", "skills: too few")
    assert from_bytes(to_bytes(manifest), "000000.json", None) == manifest


@pytest.mark.integration
def test_a_commit_watches_its_metrics_for_drift(run, tmp_path, prefect_server):
    for chars in (100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 300.0):
        it = finished(run, tmp_path, metrics={**METRICS, "skills/chars": chars})
        run.chain.append(committed(run, it))
    assert history(it) == [{"skills/chars": 100.0, "rollout/success_micro": 0.25}] * 5
    (warning,) = run.chain[-1].gates["metrics"].warnings
    assert warning.column == "drifted"
    assert warning.failing_rows == (
        {"name": "skills/chars", "value": 300.0, "low": 50.0, "high": 150.0, "drifted": True},
    )
    assert run.chain[-1].metrics["skills/chars"] == 300.0  # the history of the next


@pytest.mark.integration
def test_commits_chain_and_a_slower_run_adopts_the_faster(run, tmp_path, prefect_server):
    notes = []
    stop = progress.listen(lambda e: notes.append((e.iteration, e.event, e.note)) if e.event != "progress" else None)
    start = committed(run, finished(run, tmp_path, metrics={"evaluation/t1/success_micro": 0.5}))
    run.chain.append(start)
    first = committed(run, finished(run, tmp_path, metrics=METRICS))
    again = committed(run, finished(run, tmp_path, metrics=METRICS))
    stop()
    assert first == again
    assert manifests(run.store) == [start, first]
    assert (first.iteration, first.policy_version) == (1, 1)
    stored = {row["name"]: row["value"] for row in read_table(run.store, first.tables["metrics"]).to_pylist()}
    taken = {name: stored.pop(name) for name in ("seconds/iteration_s", "seconds/overhead_s")}
    assert stored == StageResult(metrics=METRICS).metrics
    assert taken["seconds/overhead_s"] == pytest.approx(taken["seconds/iteration_s"] - 1.5)
    assert taken == {name: first.metrics[name] for name in taken}
    assert set(read_table(run.store, start.tables["metrics"]).column("iteration").to_pylist()) == {0}
    assert verify(run.store) == 4
    assert notes == [
        (0, "committed", f"start committed: evaluation t1 50.0%, {seconds(start)}"),
        (1, "committed", f"iteration 1 of 150 committed: 25.0% of rollouts won, {seconds(first)}"),
        (
            1,
            "committed",
            f"iteration 1 of 150 committed by another run, adopted: 25.0% of rollouts won, {seconds(first)}",
        ),
    ]


def seconds(manifest: Manifest) -> str:
    return f"{manifest.metrics['seconds/iteration_s']:.0f} s"


def test_a_line_about_a_commit_says_what_changed(run, tmp_path):
    def manifest(**metrics: float | None) -> Manifest:
        it = finished(run, tmp_path)
        return build_manifest(it, created_at=datetime(2026, 1, 2, tzinfo=UTC), prefect_run_id=None).model_copy(
            update={"iteration": 3, "metrics": metrics}
        )

    before = manifest(**{"rollout/success_micro": 0.25})
    after = manifest(
        **{
            "rollout/success_micro": 0.375,
            "evaluation/t1/success_micro": 0.52,
            "evaluation/t1/success_low": 0.46,
            "update/kl_k3": 0.00213,
            "seconds/iteration_s": 61.4,
        }
    )
    assert what_changed(4, after, before, won=True) == (
        "iteration 3 of 4 committed: 37.5% of rollouts won (+12.5 points), evaluation t1 52.0%, KL 0.0021, 61 s"
    )
    nothing = manifest(**{"rollout/success_micro": 0.0})
    assert what_changed(4, before, nothing, won=True) == (
        "iteration 3 of 4 committed: 25.0% of rollouts won (+25.0 points)"
    )
    unknown = manifest()
    assert what_changed(4, before, unknown, won=True) == "iteration 3 of 4 committed: 25.0% of rollouts won"


@pytest.mark.integration
def test_a_driver_whose_campaign_was_taken_over_commits_no_more(run, tmp_path, prefect_server):
    run.lease = acquire(run.store, 30)
    acquire(run.store, 30, wait=lambda seconds: None)
    with pytest.raises(LeaseLost):
        committed(run, finished(run, tmp_path))
    assert manifests(run.store) == []


def test_overhead_is_what_engine_environments_and_learner_leave(run):
    it = run.begin(1, 0)
    it.results = {
        "rollout": StageResult(
            metrics={"seconds/push_s": 1.0, "seconds/rollout_s": 20.0, "seconds/stage/rollout_s": 21.5}
        ),
        "rescore": StageResult(metrics={"seconds/rescore_s": 10.0}),
        "update": StageResult(metrics={"seconds/update_s": 30.0, "seconds/store_policy_s": 1.0}),
    }
    it.reused_stages = {"rescore"}  # in an earlier run: no part of this one
    assert times(it, 60.0) == {"seconds/iteration_s": 60.0, "seconds/overhead_s": 60.0 - 51.0}


def test_a_rollout_that_was_played_ahead_counts_in_the_iteration_in_which_it_was_played(run, tmp_path):
    it = run.begin(0, 0)
    run.begin_ahead(make_manifest(run.store, tmp_path, None), 0)
    assert run.ahead is not None
    run.ahead.results = {"rollout": StageResult(metrics={"seconds/push_s": 1.0, "seconds/rollout_s": 20.0})}
    assert times(it, 60.0, run.ahead)["seconds/overhead_s"] == 60.0 - 21.0
    run.ahead.reused_stages = {"rollout"}
    assert times(it, 60.0, run.ahead)["seconds/overhead_s"] == 60.0


def test_the_code_version_begins_with_the_packages():
    assert code_version().startswith("0.1.0")
