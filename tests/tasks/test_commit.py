from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from infra.manifest import GateResult, Manifest, from_bytes, to_bytes
from infra.store import CampaignStore, manifests, new_attempt, open_campaign, put_folder, read_table, verify
from opid_core.config import CampaignConfig, build_config
from opid_core.errors import DataError
from opid_core.hashing import config_hash
from opid_core.schema import from_rows
from tasks import progress
from tasks.commit import build_manifest, commit, metric_rows, times
from tasks.context import Context, Policy, StageResult, merge
from tasks.stage import save
from tasks.version import code_version


@pytest.fixture
def config(tmp_path) -> CampaignConfig:
    return build_config({"campaign": "demo", "root": str(tmp_path / "runs"), "seed": 4})


@pytest.fixture
def store(config) -> CampaignStore:
    return open_campaign(config.root, config.campaign, config.model_dump(mode="json"))


def make_policy(store: CampaignStore, tmp_path, version: int) -> Policy:
    attempt = new_attempt()
    local = tmp_path / attempt
    local.mkdir()
    (local / "model.safetensors").write_bytes(b"weights %d" % version)
    return Policy(version=version, folder=put_folder(store, local, f"policies/{version:06d}/{attempt}"))


def make_context(config, store, tmp_path, parent: Manifest | None) -> Context:
    first = parent is None
    policy = make_policy(store, tmp_path, 0) if first else Policy(version=parent.policy_version, folder=parent.policy)
    iteration = "start" if first else len(manifests(store)) - 1
    content = "" if first else parent.content
    return Context(config, store, iteration, 11, content, 0, time.monotonic(), policy=policy, reference=policy)


METRICS = {"rollout/success_micro": 0.25, "seconds/rollout_s": 1.5, "rollout/broken": 0, "rollout/return": math.nan}


def test_metric_rows_are_sorted_and_undefined_numbers_are_null():
    assert metric_rows(3, StageResult(metrics=METRICS).metrics) == [
        {"iteration": 3, "name": "rollout/broken", "value": 0.0},
        {"iteration": 3, "name": "rollout/return", "value": None},
        {"iteration": 3, "name": "rollout/success_micro", "value": 0.25},
        {"iteration": 3, "name": "seconds/rollout_s", "value": 1.5},
    ]


def test_the_manifest_holds_what_the_stages_made(config, store, tmp_path):
    context = make_context(config, store, tmp_path, None)
    result = save(context, "metrics", from_rows("metrics", metric_rows(-1, {"rollout/broken": 0.0})), {})
    result = merge(result, StageResult(metrics=METRICS))
    facts = {"created_at": datetime(2026, 1, 2, tzinfo=UTC), "code_version": "0.1.0", "prefect_run_id": None}
    manifest = build_manifest(context, context.policy, result, None, **facts)
    assert manifest.iteration == "start"
    assert manifest.policy_version == 0
    assert manifest.tables == result.tables
    assert manifest.gates == {"metrics": result.gates[0]}
    assert manifest.config_hash == config_hash(config)
    assert manifest.preset == "released"
    assert manifest.seeds == {"campaign": 4, "iteration": 11}
    assert manifest.metrics == {"rollout/success_micro": 0.25, "rollout/return": None}
    assert manifest.created_at == "2026-01-02T00:00:00.000+00:00"
    assert manifest.degraded == ()
    with pytest.raises(DataError, match="predecessor must be start, got None"):
        build_manifest(replace(context, iteration=0), context.policy, result, None, **facts)


def test_an_exceeded_failure_budget_marks_the_manifest(config, store, tmp_path):
    context = make_context(config, store, tmp_path, None)
    gates = tuple(
        GateResult(table=table, passed=True, expectations=(), degraded=reasons)
        for table, reasons in (("steps", ()), ("skills", ("more than 10% of the analyses failed", "too few")))
    )
    facts = {"created_at": datetime(2026, 1, 2, tzinfo=UTC), "code_version": "0.1.0", "prefect_run_id": None}
    manifest = build_manifest(context, context.policy, StageResult(gates=gates), None, **facts)
    assert manifest.degraded == ("skills: more than 10% of the analyses failed", "skills: too few")
    assert from_bytes(to_bytes(manifest), "000000.json", None) == manifest


def test_a_commit_watches_its_metrics_for_drift(config, store, tmp_path):
    start_context = make_context(config, store, tmp_path, None)
    commit_once = commit.__wrapped__
    start = commit_once(start_context, start_context.policy, [], None)
    context = make_context(config, store, tmp_path, start)
    results = [StageResult(metrics={**METRICS, "skills/chars": 300.0})]
    history = [{"skills/chars": 100.0, "rollout/success_micro": 0.25}] * 5
    committed = commit_once(context, make_policy(store, tmp_path, 1), results, start, history)
    (warning,) = committed.gates["metrics"].warnings
    assert warning.column == "drifted"
    assert warning.failing_rows == (
        {"name": "skills/chars", "value": 300.0, "low": 50.0, "high": 150.0, "drifted": True},
    )
    assert committed.metrics["skills/chars"] == 300.0  # the history of the next


def test_commits_chain_and_a_slower_run_adopts_the_faster(config, store, tmp_path):
    notes = []
    stop = progress.listen(lambda event: notes.append((event.iteration, event.stage, event.note)))
    start_context = make_context(config, store, tmp_path, None)
    commit_once = commit.__wrapped__
    start = commit_once(
        start_context, start_context.policy, [StageResult(metrics={"evaluation/t1/success_micro": 0.5})], None
    )
    context = make_context(config, store, tmp_path, start)
    results = [StageResult(metrics=METRICS)]
    first = commit_once(context, make_policy(store, tmp_path, 1), results, start)
    again = commit_once(context, make_policy(store, tmp_path, 1), results, start)
    stop()
    assert first == again
    assert manifests(store) == [start, first]
    assert (first.iteration, first.policy_version) == (0, 1)
    stored = {row["name"]: row["value"] for row in read_table(store, first.tables["metrics"]).to_pylist()}
    taken = {name: stored.pop(name) for name in ("seconds/iteration_s", "seconds/overhead_s")}
    assert stored == StageResult(metrics=METRICS).metrics
    assert taken["seconds/overhead_s"] == pytest.approx(taken["seconds/iteration_s"] - 1.5)
    assert taken == {name: first.metrics[name] for name in taken}
    assert set(read_table(store, start.tables["metrics"]).column("iteration").to_pylist()) == {-1}
    assert verify(store) == 4
    assert notes == [
        (None, "committed", "start: committed, evaluation/t1/success 50.0%"),
        (0, "committed", "0: committed, rollout/success 25.0%"),
        (0, "committed", "0: committed by another run, adopted, rollout/success 25.0%"),
    ]


def test_overhead_is_what_engine_environments_and_learner_leave():
    results = [
        StageResult(metrics={"seconds/push_s": 1.0, "seconds/rollout_s": 20.0, "seconds/stage/rollout_s": 21.5}),
        StageResult(metrics={"seconds/rescore_s": 10.0}, reused=True),  # in an earlier run: no part of this one
        StageResult(metrics={"seconds/update_s": 30.0, "seconds/store_policy_s": 1.0}),
    ]
    assert times(results, 60.0) == {"seconds/iteration_s": 60.0, "seconds/overhead_s": 60.0 - 51.0}


def test_the_code_version_begins_with_the_packages():
    assert code_version().startswith("0.1.0")
