from __future__ import annotations

import io
import json

from rich.console import Console

from envs.search_qa.data import Question
from envs.search_qa.tasks import tasks_of
from flows import plan
from flows.reports import chains
from flows.reports.campaign import evaluation_record, show_evaluations, summary, write_report
from flows.reports.chains import mean_metrics
from infra.store import open_campaign, read_table
from opid_core.config import build_config
from opid_core.schema import from_rows
from tests.factories import CONFIG, commit_rows


def played() -> list[dict]:
    """Rows of `evaluations`: questions of three data sets, 3 of 4 right, 0 of 1, and one that broke."""
    asked = [("nq", "success")] * 3 + [("nq", "failure"), ("[hotpotqa]", "failure"), ("popqa", "broken")]
    tasks = tasks_of([Question(str(n), "Who?", ("Tavi",), source) for n, (source, _) in enumerate(asked)])
    counts = {"steps": 2, "valid_actions": 2, "admissible_actions": 1, "tokens": 9, "seed": 9}
    return [
        {
            "policy_version": 0,
            "split": "test",
            "temperature": 0.4,
            "repetition": 0,
            "task_id": task.task_id,
            "task_type": task.task_type,
        }
        | {"outcome": outcome, "return": 0.0, **counts}
        for task, (_, outcome) in zip(tasks, asked, strict=True)
    ]


def test_an_evaluation_as_data_has_success_and_every_episode_with_its_seed():
    config = build_config({"campaign": "c", "seed": 7, "evaluation": {"tasks": 6}})
    record = json.loads(json.dumps(evaluation_record(config, "folder", from_rows("evaluations", played()))))
    assert (record["policy"], record["seed"], record["evaluation"]["tasks"]) == ("folder", 7, 6)
    success = record["success"]["0.4"]
    assert (success["micro"], success["macro"], success["episodes"]) == (0.6, 0.375, 5)
    assert success["per_type"] == {"[hotpotqa]": 0.0, "nq": 0.75}
    assert [episode["outcome"] for episode in record["episodes"]].count("broken") == 1
    assert {episode["seed"] for episode in record["episodes"]} == {9}


def test_an_evaluation_as_data_says_what_was_played():
    def record(**sections) -> dict:
        config = build_config({"campaign": "c", "preset": "paper", **sections})
        return evaluation_record(config, "folder", from_rows("evaluations", played()))

    limits = {"max_prompt_tokens": 512, "max_response_tokens": 32}
    found = record(rollout={"group_size": 2, **limits}, engine={"dtype": "bfloat16"})
    assert (found["preset"], found["rollout"], found["engine"]) == ("paper", limits, {"dtype": "bfloat16"})
    assert found["skill_bank"] is None
    # Skills of the training stand in the evaluated prompts where the method keeps them; the evaluation's own win.
    method = {"name": "skill_grpo", "skill_bank": "trained.json"}
    assert record(method=method)["skill_bank"] is None
    kept = {**method, "keep_skill_at_test": True}
    assert record(method=kept)["skill_bank"] == "trained.json"
    assert record(method=kept, evaluation={"skill_bank": "own.json"})["skill_bank"] == "own.json"


def test_exact_match_is_shown_by_data_set_with_counts_and_averaged_both_ways():
    output = io.StringIO()
    show_evaluations(from_rows("evaluations", played()), Console(file=output, width=100))
    rows = [
        tuple(c.strip() for c in line.split("│")[1:-1]) for line in output.getvalue().splitlines() if line[0] == "│"
    ]
    assert rows == [
        ("[hotpotqa]", "1", "0.0%"),
        ("nq", "4", "75.0%"),
        ("micro, 95% interval", "5", "60.0% (23.1% to 88.2%)"),
        ("macro", "5", "37.5%"),
    ]


def test_the_report_of_a_campaign_says_it_by_data_set_too(tmp_path):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    commit_rows(store, tmp_path, None, {"evaluations": played()}, tokenizer=False)
    text = (write_report(store) / "summary.md").read_text()
    assert "| 0 updates | 0.4 | 5 | 60.0% | 23.1% to 88.2% | 37.5% | 50.0% |" in text
    assert "\n![success](success.png)\n" in text
    assert (
        """
| task type (after 0 updates, temperature 0.4) | episodes | success |
| --- | --- | --- |
| [hotpotqa] | 1 | 0.0% |
| nq | 4 | 75.0% |
"""
        in text
    )


def test_tasks_that_are_trained_on_are_not_called_held_out(tmp_path):
    config = build_config({"campaign": "demo", "evaluation": {"split": "train"}})
    output = io.StringIO()
    plan.warn(config, Console(file=output, width=200))
    assert "Warning: evaluation.split: 'train' is trained on too" in output.getvalue()
    for given, panel in ((config.model_dump(mode="json"), "panel of training tasks"), (CONFIG, "held-out panel")):
        store = open_campaign(tmp_path / panel, "demo", given)
        commit_rows(store, tmp_path / panel, None, {"evaluations": played()}, tokenizer=False)
        assert f"Success on the {panel} (95%" in (write_report(store) / "summary.md").read_text()


def test_the_report_of_a_campaign_names_the_preset_and_the_advantages_shares(tmp_path):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    chain = [commit_rows(store, tmp_path, None, {"evaluations": played()}, tokenizer=False)]
    assert "Preset: unknown. " in (write_report(store) / "summary.md").read_text()  # a manifest that does not say
    for iteration, (outcome, skill) in enumerate(((1.0, 0.0), (0.5, 0.5))):
        shares = {"advantage_share/outcome": outcome, "advantage_share/skill": skill, "rollout/return": 3.0}
        metrics = [{"iteration": iteration, "name": name, "value": value} for name, value in shares.items()]
        chain.append(commit_rows(store, tmp_path, chain[-1], {"metrics": metrics}, tokenizer=False))
    assert mean_metrics(store, chain)["rollout/return"] == 3.0
    text = summary(store, [*chain[:-1], chain[-1].model_copy(update={"preset": "released"})], [])
    assert (
        "Preset: released. Share of the advantage over valid tokens, the mean over iterations: outcome 75.00%, skill "
        "25.00%.\n" in text
    )


def test_before_and_after_are_compared_task_by_task(tmp_path):
    """Two lost questions are won, none the other way: 2 * 1 / 2**2. The broken one says nothing."""
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    start = commit_rows(store, tmp_path, None, {"evaluations": played()}, tokenizer=False)
    after = [row | {"policy_version": 1} for row in played()]
    won = [row | ({} if row["outcome"] == "broken" else {"outcome": "success"}) for row in after]
    commit_rows(store, tmp_path, start, {"evaluations": won, "metrics": []}, tokenizer=False)
    text = (write_report(store) / "summary.md").read_text()
    assert (
        "\n- **60.0% -> 100.0%** of the held-out panel won at temperature 0.4 (+40.0 points after 1 update). Of the "
        "same tasks 2 were won more often after, 0 before (exact sign test: p = 0.5).\n" in text
    )


def test_a_score_is_shown_with_its_interval_where_there_is_one(tmp_path):
    """Tasks worth 0.4, 0.5, 0.5 and 0.6: as worked out in the tests of `mean_score`."""
    rows = [row | {"score": score} for row, score in zip(played()[:4], (0.4, 0.5, 0.5, 0.6), strict=True)]
    output = io.StringIO()
    show_evaluations(from_rows("evaluations", rows), Console(file=output, width=100))
    assert "50.0 (37.0 to 63.0)" in output.getvalue()
    config = build_config({"campaign": "c"})
    record = json.loads(json.dumps(evaluation_record(config, "folder", from_rows("evaluations", rows))))
    assert round(record["success"]["0.4"]["score"]["mean"], 6) == 0.5
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    commit_rows(store, tmp_path, None, {"evaluations": rows}, tokenizer=False)
    text = (write_report(store) / "summary.md").read_text()
    assert "| macro | score (95%) | admissible actions |" in text
    assert "| 75.0% | 50.0 (37.0 to 63.0) | 50.0% |" in text


def test_a_report_reads_each_evaluation_once(tmp_path, monkeypatch):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    start = commit_rows(store, tmp_path, None, {"evaluations": played()}, tokenizer=False)
    commit_rows(store, tmp_path, start, {"evaluations": played(), "metrics": []}, tokenizer=False)
    read: list[str] = []

    def reading(store, record, columns=None):
        read.append(record.path)
        return read_table(store, record, columns)

    monkeypatch.setattr(chains, "read_table", reading)
    write_report(store)
    assert [path.split("/")[:2] for path in read] == [
        ["evaluations", "iteration=000000"],
        ["evaluations", "iteration=000001"],
        ["metrics", "iteration=000001"],
    ]


def test_further_splits_have_tables_of_their_own(tmp_path):
    more = [row | {"split": "[other]", "outcome": "failure"} for row in played()]
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    commit_rows(store, tmp_path, None, {"evaluations": played() + more}, tokenizer=False)
    main, further = (write_report(store) / "summary.md").read_text().split("Success on the split [other]:")
    assert "| 0 updates | 0.4 | 5 | 60.0% | 23.1% to 88.2% | 37.5% | 50.0% |" in main
    assert "| 0 updates | 0.4 | 6 | 0.0% | 0.0% to 39.0% | 0.0% | 50.0% |" in further
    output = io.StringIO()
    show_evaluations(from_rows("evaluations", played() + more), Console(file=output, width=100))
    assert "test, temperature 0.4" in output.getvalue()
    assert "[other], temperature 0.4" in output.getvalue()
    record = evaluation_record(build_config({"campaign": "c"}), "folder", from_rows("evaluations", played() + more))
    assert record["success"]["0.4"]["micro"] == 0.6
    assert record["success_of_more_splits"]["[other]"]["0.4"]["micro"] == 0.0
