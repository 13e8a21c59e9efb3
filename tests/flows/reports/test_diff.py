from __future__ import annotations

from typing import Any

import pytest

from flows.reports.diff import CommitTables, CountPair, MetricPair, SkillTexts, difference, read_difference
from infra.store import open_campaign
from opid_core.errors import ConfigError
from opid_core.evaluation import Paired
from opid_core.hashing import ABSENT
from opid_core.schema import from_rows
from tests.factories import CONFIG, Rows, commit_rows, named_rows, valid_rows

METRICS = [{"iteration": 0, "name": "seconds/start_s", "value": 1.0}]


@pytest.fixture
def root(tmp_path) -> str:
    """`demo`: a start with an evaluation of its policy, and iteration 1 without; `other`: a start alone."""
    rows = named_rows()
    del rows["evaluations"]
    rows["metrics"] = [{"iteration": 1, "name": "rollout/return", "value": 5.0}]
    evaluations = [{**row, "policy_version": 0} for row in valid_rows()["evaluations"]]
    for name, seed in (("demo", 0), ("other", 1)):
        store = open_campaign(tmp_path / "runs", name, {**CONFIG, "campaign": name, "seed": seed})
        start = commit_rows(store, tmp_path, None, {"metrics": METRICS, "evaluations": evaluations})
        if name == "demo":
            commit_rows(store, tmp_path, start, rows)
    open_campaign(tmp_path / "runs", "empty", {**CONFIG, "campaign": "empty"})
    return str(tmp_path / "runs")


def test_two_campaigns(root):
    found = read_difference(root, None, "other", "demo")
    assert (found.first, found.second) == ("other@0", "demo@1")
    assert found.config == {"campaign": ("other", "demo"), "seed": (1, 0)}
    assert [(row.name, row.first, row.second) for row in found.routes] == [
        ("step", 0, 1),
        ("episode", 0, 1),
        ("none", 0, 1),
    ]
    # Iteration 1 has no evaluation of its own: the newest before it is compared, and says which policy it met.
    assert [(pair.temperature, pair.first_version, pair.second_version) for pair in found.evaluations] == [
        (0.5, 0, 0),
        (1.0, 0, 0),
    ]


def test_what_is_printed(root, opid):
    text = opid("audit", "demo@0", "demo@1", "--root", root)
    assert text.startswith("demo@0 and demo@1\nConfig: the same.\n")
    rows = {tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in text.splitlines() if line[:1] == "│"}
    assert ("success", "0 (0.0%)", "1 (50.0%)") in rows
    assert ("episode", "0 (0.0%)", "1 (33.3%)") in rows
    assert "only demo@1: step, success: Take the mug first.\n" in text
    assert "only demo@1: failed, success: no reply\n" in text
    assert "│ 95% interval          │ 34.2% to 100.0% │ 34.2% to 100.0% │" in text  # Wilson's interval of 2 of 2
    assert (
        "2 won by both alike, 0 by demo@0 alone or more often, 0 by demo@1, 0 by neither; exact sign test p = 1."
        in text
    )
    assert ("rollout/return", "", "5", "") in rows
    assert "seconds/start_s" not in text
    other = opid("audit", "other", "demo", "--root", root).split()
    assert other[other.index("seed") :][:5] == ["seed", "│", "1", "│", "0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo@2", r"has no iteration '2'; committed: 0 \(the start\) to 1"),
        ("demo@newest", "has no iteration 'newest'; committed: 0"),
        ("other@1", r"has no iteration '1'; committed: 0 \(the start\) to 0$"),
        ("demo@", "'demo@': expected CAMPAIGN or CAMPAIGN@ITERATION"),
        ("@1", "'@1': expected CAMPAIGN or CAMPAIGN@ITERATION"),
        ("nobody", "no campaign 'nobody' in .*; campaigns there: demo, empty, other"),
        ("empty", "nothing is committed yet"),
    ],
)
def test_what_is_not_there(root, name, message):
    with pytest.raises(ConfigError, match=message):
        read_difference(root, None, "demo", name)


GAMES: dict[str, Any] = {
    "seed": 0,
    "method": {"lambda_step": 0.001},
    "environment": {"name": "alfworld", "options": {"size": "small"}, "success_reward": 10.0},
    "evaluation": {"split": "valid_unseen"},
}


def side(rows: Rows, name: str = "demo@1", **config: Any) -> CommitTables:
    return CommitTables(name, {**GAMES, **config}, {table: from_rows(table, rows[table]) for table in rows})


def played(outcomes: dict[str, str], version: int = 3, temperature: float = 1.0) -> list[dict[str, Any]]:
    """Rows of `evaluations`: task -> outcome."""
    row = valid_rows()["evaluations"][0]
    return [
        {**row, "policy_version": version, "temperature": temperature, "task_id": task, "outcome": outcome}
        for task, outcome in outcomes.items()
    ]


def test_an_iteration_does_not_differ_from_itself():
    found = difference(side(valid_rows()), side(valid_rows()))
    assert found.config == {}
    assert all(row.first == row.second for row in (*found.outcomes, *found.routes))
    assert all(row.difference in (0.0, None) for row in found.metrics)
    assert all(row.only_first == row.only_second == 0 for row in found.skills)
    assert [pair.paired for pair in found.evaluations] == [Paired(2, 0, 0, 0, 1.0)] * 2


def test_metrics_side_by_side():
    one, other = valid_rows(), valid_rows()
    one["metrics"] = [{"iteration": 2, "name": n, "value": v} for n, v in [("b", 5.0), ("a", 1.0), ("gone", 2.0)]]
    other["metrics"] = [{"iteration": 2, "name": n, "value": v} for n, v in [("a", 0.5), ("b", None), ("new", 3.0)]]
    assert difference(side(one), side(other)).metrics == (
        MetricPair("a", 1.0, 0.5, -0.5),
        MetricPair("b", 5.0, None, None),
        MetricPair("gone", 2.0, None, None),
        MetricPair("new", None, 3.0, None),
    )


def test_outcomes_and_routes_are_counted():
    other = valid_rows()
    other["trajectories"][1]["outcome"] = "success"
    other["routes"][0]["route"] = "episode"
    found = difference(side(valid_rows()), side(other))
    assert found.outcomes == (
        CountPair("success", 1, 2, 0.5, 1.0),
        CountPair("failure", 1, 0, 0.5, 0.0),
        CountPair("truncated", 0, 0, 0.0, 0.0),
        CountPair("broken", 0, 0, 0.0, 0.0),
    )
    assert found.routes == (
        CountPair("step", 1, 0, 1 / 3, 0.0),
        CountPair("episode", 1, 2, 1 / 3, 2 / 3),
        CountPair("none", 1, 1, 1 / 3, 1 / 3),
    )


def test_skill_texts_by_kind_and_outcome():
    """Texts count once, however often they occur; of failed analyses the reasons are compared."""
    one, other = valid_rows(), valid_rows()
    template = one["skills"][0]
    one["skills"] = [{**template, "text": text} for text in ("x", "x", "d", "c", "b", "a")]
    other["skills"] = [
        {**template, "text": "x"},
        {**template, "text": "a", "outcome": "failure"},
        {**template, "kind": "failed", "text": "", "error": "no reply"},
    ]
    assert difference(side(one), side(other)).skills == (
        SkillTexts("episode", "failure", 0, 0, 1, (), ("a",)),
        SkillTexts("episode", "success", 1, 4, 0, ("a", "b", "c"), ()),
        SkillTexts("failed", "success", 0, 0, 1, (), ("no reply",)),
    )


def test_config_keys_that_differ():
    other = {"seed": 1, "method": {"lambda_step": 0.001, "routing": "random"}, "evaluation": {}}
    found = difference(side(valid_rows()), CommitTables("demo@1", other, {}))
    assert found.config == {
        "environment.name": ("alfworld", ABSENT),
        "environment.options.size": ("small", ABSENT),
        "environment.success_reward": (10.0, ABSENT),
        "evaluation": (ABSENT, {}),
        "evaluation.split": ("valid_unseen", ABSENT),
        "method.routing": (ABSENT, "random"),
        "seed": (0, 1),
    }


def test_the_same_panel_is_compared_task_by_task():
    """`c` and `d` are won by the second alone, `e` broke for one: it is left out."""
    one, other = valid_rows(), valid_rows()
    one["evaluations"] = played(
        dict(zip("abcde", ["success", "failure", "failure", "truncated", "broken"], strict=True))
    )
    other["evaluations"] = played(dict.fromkeys("edca", "success") | {"b": "failure"}, version=5)
    (pair,) = difference(side(one), side(other, seed=1)).evaluations
    assert (pair.temperature, pair.first_version, pair.second_version) == (1.0, 3, 5)
    assert (pair.first.episodes, pair.first.micro) == (4, 0.25)
    assert (pair.second.episodes, pair.second.micro) == (5, 0.8)
    assert pair.first.low == pytest.approx(0.0456, abs=1e-4)  # Wilson's interval of 1 of 4
    assert pair.first.high == pytest.approx(0.6994, abs=1e-4)
    assert pair.paired == Paired(both=1, first_more=0, second_more=2, neither=1, p_value=0.5)


def test_a_repeated_task_counts_once_by_its_share():
    one, other = valid_rows(), valid_rows()
    one["evaluations"] = played({"a": "success"}) + played({"a": "failure"})
    other["evaluations"] = played({"a": "failure"}) + played({"a": "failure"})
    (pair,) = difference(side(one), side(other)).evaluations
    assert pair.paired == Paired(both=0, first_more=1, second_more=0, neither=0, p_value=1.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"environment": {**GAMES["environment"], "options": {"size": "large"}}},
        {"environment": {**GAMES["environment"], "name": "webshop"}},
        {"evaluation": {"split": "valid_seen"}},
    ],
)
def test_equal_ids_of_other_games_are_not_paired(changed):
    found = difference(side(valid_rows()), side(valid_rows(), **changed))
    assert [pair.paired for pair in found.evaluations] == [None, None]
    rewarded = {**GAMES["environment"], "success_reward": 1.0}  # the games are the same
    assert all(
        pair.paired for pair in difference(side(valid_rows()), side(valid_rows(), environment=rewarded)).evaluations
    )


def test_other_tasks_and_other_temperatures():
    one, other = valid_rows(), valid_rows()
    one["evaluations"] = played({"a": "success"}) + played({"a": "success"}, temperature=0.5)
    other["evaluations"] = played({"b": "success"}) + played({"b": "success"}, temperature=0.25)
    (pair,) = difference(side(one), side(other)).evaluations
    assert (pair.temperature, pair.paired) == (1.0, None)


def test_a_start_has_neither_skills_nor_routes():
    rows = valid_rows()
    start = {table: rows[table] for table in ("metrics", "evaluations")}
    found = difference(side(start, "demo@0"), side(rows))
    assert found.first == "demo@0"
    assert [(row.first, row.second, row.first_share) for row in found.routes] == [(0, 1, 0.0)] * 3
    assert [(row.both, row.only_first, row.only_second) for row in found.skills] == [(0, 0, 1)] * 3
    assert difference(side({"metrics": []}), side(rows)).evaluations == ()
