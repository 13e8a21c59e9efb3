from __future__ import annotations

import pytest

from flows.cli.reproduce import HashPair, as_committed, compare, first_difference, notes
from infra.store import open_campaign
from opid_core.config import build_config
from opid_core.errors import ConfigError, DataError
from opid_core.hashing import execution, training_hash
from opid_core.schema import from_rows
from tasks import places
from tasks.gates.run import check
from tasks.version import code_version
from tests.factories import CONFIG, make_manifest, metrics_table, scores_table, valid_rows


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(open_campaign(tmp_path / "runs", "demo", CONFIG), tmp_path, None)


def changed(manifest, table, **fields):
    record = manifest.tables[table].model_copy(update=fields)
    return manifest.model_copy(update={"tables": {**manifest.tables, table: record}})


def test_two_runs_of_the_same_are_equal_whatever_the_clock_said(tmp_path, manifest):
    other = make_manifest(open_campaign(tmp_path / "other", "demo", CONFIG), tmp_path, None, seconds=9.0)
    pairs = compare(manifest, other)
    assert [row.name for row in pairs] == ["scores", "weights", "metrics"]
    assert all(row.equal and row.committed for row in pairs)
    assert manifest.tables["metrics"].sha256 != other.tables["metrics"].sha256


def test_a_table_that_differs_is_found(manifest):
    doctored = changed(manifest, "scores", content_hash="0" * 64)
    assert [row.name for row in compare(doctored, manifest) if not row.equal] == ["scores"]
    # Where the file lies and how it is packed is not compared.
    assert all(row.equal for row in compare(changed(manifest, "scores", path="elsewhere", sha256="0" * 64), manifest))


def test_weights_that_differ_are_found(tmp_path, manifest):
    other = make_manifest(open_campaign(tmp_path / "other", "demo", CONFIG), tmp_path, None, weights=b"WEIGHTS")
    assert [row.name for row in compare(manifest, other) if not row.equal] == ["weights"]


def test_a_table_of_one_side_alone_differs(manifest):
    added = manifest.model_copy(update={"tables": {**manifest.tables, "new": manifest.tables["scores"]}})
    content_hash = manifest.tables["scores"].content_hash
    assert compare(added, manifest)[-1] == HashPair("new", content_hash, None)
    assert compare(manifest, added)[-1] == HashPair("new", None, content_hash)
    assert not compare(manifest, added)[-1].equal


def test_the_first_difference_of_two_tables_in_words():
    assert first_difference(scores_table(-0.5), scores_table(-0.75)) == (
        "column old_log_probs[0] first differs in row 0 (trajectory_id a, step 0): committed -0.5, again -0.75"
    )
    assert first_difference(scores_table(), scores_table()) == "the rows are equal; the manifest names another hash"
    assert first_difference(scores_table(), scores_table().slice(1)) == "1 rows committed, 0 again"
    one, other = valid_rows()["steps"], valid_rows()["steps"]
    other[1]["response_ids"] = [5, 6]
    other[2]["action"] = "x" * 200
    assert first_difference(from_rows("steps", one), from_rows("steps", other)) == (
        "column response_ids first differs in row 1 (trajectory_id a, step 1, task_id t): committed [5], again [5, 6]"
    )
    other[1]["response_ids"] = [5]
    assert first_difference(from_rows("steps", one), from_rows("steps", other)).endswith(
        f"(trajectory_id b, step 0, task_id t): committed 'look', again '{'x' * 99}..."
    )


def test_clocks_are_no_difference():
    assert first_difference(metrics_table(seconds=1.0), metrics_table(seconds=2.0)).startswith("the rows are equal")
    assert first_difference(metrics_table(value=0.5), metrics_table(seconds=2.0, value=0.25)) == (
        "column value first differs in row 0 (name rollout/return): committed 0.5, again 0.25"
    )
    one, other = valid_rows()["trajectories"], valid_rows()["trajectories"]
    other[0]["seconds"] = 9.0
    equal = first_difference(from_rows("trajectories", one), from_rows("trajectories", other))
    assert equal.startswith("the rows are equal")


def test_what_may_make_it_differ_is_said_before(manifest):
    config = build_config({"campaign": "demo"})
    same = {"code_version": code_version(), "execution": execution(config)}
    assert notes(config, manifest.model_copy(update=same)) == []
    (version,) = notes(config, manifest.model_copy(update={**same, "code_version": "0.0.9"}))
    assert version == f"Another version of the program: this is {code_version()}, the iteration was made by 0.0.9."
    other = {**execution(config), "engine.replicas": 3, "learner.micro_batch_tokens": 99}
    (fitted,) = notes(config, manifest.model_copy(update={**same, "execution": other}))
    assert "engine.replicas=3, learner.micro_batch_tokens=99" in fitted


def test_it_is_run_with_the_replicas_and_ranks_of_the_iteration(manifest):
    config = build_config({"campaign": "demo", "engine": {"replicas": 2}, "threads": 3})
    values = {**execution(config), "threads": 1, "engine.replicas": 4, "learner.gradient_checkpointing": True}
    again = as_committed(config, manifest.model_copy(update={"execution": values}))
    assert execution(again) == values
    assert training_hash(again) == training_hash(config)
    out_of_bounds = manifest.model_copy(update={"execution": {"threads": -3, "engine.replicas": 2}})
    with pytest.raises(DataError, match="manifest of iteration 0: execution: threads: Input should be greater than"):
        as_committed(config, out_of_bounds)


@pytest.mark.parametrize(("gpus", "shares"), [([], False), (["0"], True)])
def test_it_is_run_where_there_are_no_gpus_to_share(manifest, monkeypatch, gpus, shares):
    monkeypatch.setattr(places, "visible_gpus", lambda: gpus)
    config = build_config({"campaign": "demo", "engine": {"share_gpus": True}})
    again = as_committed(config, manifest.model_copy(update={"execution": execution(config)}))
    assert again.engine.share_gpus is shares


def test_it_is_run_without_the_gates_that_the_campaign_began_with(manifest):
    """It may have gone on with milder ones, which are stored nowhere; what is gone since cannot be called."""
    own = {"table": "skills", "expectation": "ExpectTableRowCountToBeBetween", "arguments": {"max_value": 0}}
    strict = {"max_leaking_skills": 0.0, "expectations": [own], "plugins": ["a_module_that_is_gone:expectations"]}
    config = build_config({"campaign": "demo", "gates": strict})
    again = as_committed(config, manifest.model_copy(update={"execution": execution(config)}))
    assert (training_hash(again), again.gates.expectations) == (training_hash(config), ())
    rows = valid_rows()
    quotes = "The mug may well be inside of the drawer, so open that one first of all."
    rows["skills"] = [{**row, "text": row["text"] and quotes} for row in rows["skills"]]
    tables = {name: from_rows(name, rows[name]) for name in rows}
    with pytest.raises(ConfigError, match="a_module_that_is_gone"):
        check("skills", tables["skills"], tables, settings=config.gates, max_failure_rate=0.0)
    result = check("skills", tables["skills"], tables, settings=again.gates, max_failure_rate=0.0, degrade=True)
    assert len(result.degraded) == 1
    assert [seen for _, column, seen in result.held if column == "quotes"] == ["2 of 2 rows"]


def test_it_is_evaluated_as_it_was_though_the_campaign_was_extended_since(manifest):
    evaluation = {"tasks": 4, "every": 0, "final_tasks": 6, "temperatures": [0.0, 1.0], "more_splits": ["valid_seen"]}
    config = build_config({"campaign": "demo", "iterations": 9, "evaluation": evaluation})
    rows = 6 * 2 * 2  # tasks, temperatures, splits
    record = manifest.tables["scores"].model_copy(update={"rows": rows})
    last = manifest.model_copy(update={"iteration": 3, "tables": {"evaluations": record}, "execution": {}})
    assert as_committed(config, last).iterations == 3
    assert as_committed(config, last.model_copy(update={"tables": {}})).iterations == 9
