from __future__ import annotations

from typing import Any

import pytest

from flows.reports.difference import Compared, ConfigChange, Counted, Side, SkillTexts, difference
from opid_core.evaluation import Paired
from opid_core.schema import from_rows
from tests.tasks.gates.valid_tables import Rows, valid

CONFIG: dict[str, Any] = {
    "seed": 0,
    "method": {"lambda_step": 0.001},
    "environment": {"name": "alfworld", "options": {"size": "small"}, "success_reward": 10.0},
    "evaluation": {"split": "valid_unseen"},
}


def side(rows: Rows, name: str = "demo@0", **config: Any) -> Side:
    return Side(name, {**CONFIG, **config}, {table: from_rows(table, rows[table]) for table in rows})


def played(outcomes: dict[str, str], version: int = 3, temperature: float = 1.0) -> list[dict[str, Any]]:
    """Rows of `evaluations`: task -> outcome."""
    row = valid()["evaluations"][0]
    return [
        {**row, "policy_version": version, "temperature": temperature, "task_id": task, "outcome": outcome}
        for task, outcome in outcomes.items()
    ]


def test_an_iteration_does_not_differ_from_itself():
    found = difference(side(valid()), side(valid()))
    assert found.config == ()
    assert all(row.first == row.second for row in (*found.outcomes, *found.routes))
    assert all(row.difference in (0.0, None) for row in found.metrics)
    assert all(row.only_first == row.only_second == 0 for row in found.skills)
    assert [pair.paired for pair in found.evaluations] == [Paired(2, 0, 0, 0, 1.0)] * 2


def test_metrics_side_by_side():
    one, other = valid(), valid()
    one["metrics"] = [{"iteration": 2, "name": n, "value": v} for n, v in [("b", 5.0), ("a", 1.0), ("gone", 2.0)]]
    other["metrics"] = [{"iteration": 2, "name": n, "value": v} for n, v in [("a", 0.5), ("b", None), ("new", 3.0)]]
    assert difference(side(one), side(other)).metrics == (
        Compared("a", 1.0, 0.5, -0.5),
        Compared("b", 5.0, None, None),
        Compared("gone", 2.0, None, None),
        Compared("new", None, 3.0, None),
    )


def test_outcomes_and_routes_are_counted():
    other = valid()
    other["trajectories"][1]["outcome"] = "success"
    other["routes"][0]["route"] = "episode"
    found = difference(side(valid()), side(other))
    assert found.outcomes == (
        Counted("success", 1, 2, 0.5, 1.0),
        Counted("failure", 1, 0, 0.5, 0.0),
        Counted("truncated", 0, 0, 0.0, 0.0),
        Counted("broken", 0, 0, 0.0, 0.0),
    )
    assert found.routes == (
        Counted("step", 1, 0, 1 / 3, 0.0),
        Counted("episode", 1, 2, 1 / 3, 2 / 3),
        Counted("none", 1, 1, 1 / 3, 1 / 3),
    )


def test_skill_texts_by_kind_and_outcome():
    """Texts count once, however often they occur; of failed analyses the reasons are compared."""
    one, other = valid(), valid()
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
    found = difference(side(valid()), Side("demo@0", other, {}))
    assert found.config == (
        ConfigChange("environment", CONFIG["environment"], None),
        ConfigChange("evaluation.split", "valid_unseen", None),
        ConfigChange("method.routing", None, "random"),
        ConfigChange("seed", 0, 1),
    )


def test_the_same_panel_is_compared_task_by_task():
    """`c` and `d` are won by the second alone, `e` broke for one: it is left out."""
    one, other = valid(), valid()
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
    one, other = valid(), valid()
    one["evaluations"] = played({"a": "success"}) + played({"a": "failure"})
    other["evaluations"] = played({"a": "failure"}) + played({"a": "failure"})
    (pair,) = difference(side(one), side(other)).evaluations
    assert pair.paired == Paired(both=0, first_more=1, second_more=0, neither=0, p_value=1.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"environment": {**CONFIG["environment"], "options": {"size": "large"}}},
        {"environment": {**CONFIG["environment"], "name": "webshop"}},
        {"evaluation": {"split": "valid_seen"}},
    ],
)
def test_equal_ids_of_other_games_are_not_paired(changed):
    found = difference(side(valid()), side(valid(), **changed))
    assert [pair.paired for pair in found.evaluations] == [None, None]
    rewarded = {**CONFIG["environment"], "success_reward": 1.0}  # the games are the same
    assert all(pair.paired for pair in difference(side(valid()), side(valid(), environment=rewarded)).evaluations)


def test_other_tasks_and_other_temperatures():
    one, other = valid(), valid()
    one["evaluations"] = played({"a": "success"}) + played({"a": "success"}, temperature=0.5)
    other["evaluations"] = played({"b": "success"}) + played({"b": "success"}, temperature=0.25)
    (pair,) = difference(side(one), side(other)).evaluations
    assert (pair.temperature, pair.paired) == (1.0, None)


def test_a_start_has_neither_skills_nor_routes():
    rows = valid()
    start = {table: rows[table] for table in ("metrics", "evaluations")}
    found = difference(side(start, "demo@start"), side(rows))
    assert found.first == "demo@start"
    assert [(row.first, row.second, row.first_share) for row in found.routes] == [(0, 1, 0.0)] * 3
    assert [(row.both, row.only_first, row.only_second) for row in found.skills] == [(0, 0, 1)] * 3
    assert difference(side({"metrics": []}), side(rows)).evaluations == ()
