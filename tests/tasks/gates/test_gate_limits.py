"""The gates whose limits the config sets: failure budget, coverage, leaks, drift."""

from __future__ import annotations

import pytest

from opid_core.config import GatesConfig
from opid_core.errors import FailureBudgetExceeded, GateError
from tests.factories import row, valid_rows
from tests.tasks.gates.gated import HISTORY, LEAK, LIMITS, checked, warnings


def test_failure_rate_counts_trajectories_not_skills_and_names_each_with_its_reason():
    rows = valid_rows()  # one of two analyses failed, one of three rows
    assert checked("skills", rows, {"max_failure_rate": 0.5}).passed
    with pytest.raises(
        FailureBudgetExceeded, match=r'\(1 of 2 rows\)\n  {"trajectory_id": "b", "failure": "no reply"}'
    ):
        checked("skills", rows, {"max_failure_rate": 0.49})


@pytest.mark.parametrize(("allowed", "failed_of_ten"), [(0.3, 3), (0.7, 7), (0.1, 1)])
def test_the_share_itself_is_allowed(allowed, failed_of_ten):
    rows = {"steps": [], "trajectories": [], "skills": []}
    for i in range(10):
        kind, text, error = ("failed", "", "x") if i < failed_of_ten else ("episode", f"skill {i}", None)
        own = {"skill_id": f"{i}", "trajectory_id": f"{i}", "kind": kind, "text": text, "error": error}
        rows["skills"].append({**valid_rows()["skills"][0], **own})
        rows["trajectories"].append({**valid_rows()["trajectories"][0], "trajectory_id": f"{i}"})
    settings = GatesConfig(min_coverage=0.0)
    assert checked("skills", rows, {"max_failure_rate": allowed, "settings": settings}).passed
    with pytest.raises(FailureBudgetExceeded):
        checked("skills", rows, {"max_failure_rate": allowed - 0.01, "settings": settings})


def test_coverage_is_judged_by_task_type_and_outcome_where_there_are_enough():
    settings = GatesConfig(min_coverage=1.0, min_coverage_trajectories=1)
    with pytest.raises(FailureBudgetExceeded) as caught:
        checked("skills", valid_rows(), {"settings": settings})
    assert str(caught.value) == (
        "table skills: expect_column_values_to_be_between on column coverage failed (1 of 2 rows)\n"
        '  {"task_type": "pick", "outcome": "failure", "analyzed": 1, "coverage": 0.0}'
    )
    enough = settings.model_copy(update={"min_coverage_trajectories": 2})
    assert checked("skills", valid_rows(), {"settings": enough}).passed


def test_an_exceeded_budget_degrades_where_that_is_asked_for_and_nothing_else_does():
    limits = {"max_failure_rate": 0.1, "settings": GatesConfig(min_coverage_trajectories=1), "degrade": True}
    result = checked("skills", valid_rows(), limits)
    assert result.passed
    assert result.degraded == (
        "more than 10.0% of the analyses failed (1 of 2 rows)",
        "a task type and outcome has fewer than 50.0% of its episode skills (1 of 2 rows)",
    )
    assert [(e.column, e.severity) for e in result.broken] == [
        ("failure", "fail"),
        ("coverage", "fail"),
    ]
    assert checked("skills", valid_rows(), {**LIMITS["skills"], "degrade": True}).degraded == ()
    rows = valid_rows()
    rows["skills"][0]["attempts"] = -1
    with pytest.raises(GateError) as caught:
        checked("skills", rows, limits)
    assert not isinstance(caught.value, FailureBudgetExceeded)


def test_any_leak_is_a_warning_that_names_it_and_too_many_fail():
    rows = valid_rows()
    rows["skills"][0]["text"] = LEAK
    allowed = {"forbidden": {"t": ["Old Paris"]}, "settings": GatesConfig(max_leaking_skills=0.5)}
    assert [w.failing_rows for w in checked("skills", rows, allowed).warnings] == [
        ({"skill_id": "a/episode", "leaked": "Old Paris"},)
    ]
    assert warnings("skills", rows, {"forbidden": {"another task": ["Old Paris"]}}) == []


def test_drift_names_the_expected_range_and_needs_a_history():
    rows = valid_rows()
    rows["metrics"][2]["value"] = 0.8  # 0.5 +- 4 * 0.0707 = 0.217 to 0.783
    (warning,) = checked("metrics", rows).warnings
    (row,) = warning.failing_rows
    assert row["name"] == "rollout/success_micro"
    assert (row["low"], row["high"]) == pytest.approx((0.5 - 4 * 0.005**0.5, 0.5 + 4 * 0.005**0.5))
    assert warnings("metrics", rows, {"history": HISTORY[:4]}) == []
    assert warnings("metrics", rows, {"history": HISTORY, "settings": GatesConfig(drift_deviations=5.0)}) == []
    rows["metrics"][2]["value"] = 0.72  # beyond one standard deviation, within the floor of 0.2 and a bit
    assert warnings("metrics", rows, {"history": HISTORY, "settings": GatesConfig(drift_deviations=1.0)}) == [
        ("column_values_to_be_in_set", "drifted")
    ]
    off = GatesConfig(drift_deviations=1.0, drift_iterations=0)
    assert warnings("metrics", rows, {"history": HISTORY, "settings": off}) == []
    rows["metrics"][2]["value"] = 0.69
    assert warnings("metrics", rows, {"history": HISTORY, "settings": GatesConfig(drift_deviations=1.0)}) == []


def test_skills_that_cannot_be_told_from_their_placebos_are_a_warning():
    def above(kind: str, now: float, *past: float | None, iterations: int = 3):
        rows, name = valid_rows(), f"signal/{kind}/above_placebo"
        rows["metrics"].append(row("metrics", name=name, value=now))
        limits = {"history": [{name: value} for value in past], "settings": GatesConfig(placebo_iterations=iterations)}
        return checked("metrics", rows, limits).warnings

    # 0.1, 0.2, 0.3: 0.2 - 4.302653 * 0.1 / sqrt(3) is below 0; 0.19, 0.2, 0.21 is not, and 0.0 is too long ago
    (warning,) = above("episode", 0.3, 0.1, 0.2)
    assert warning.column == "act"
    (judged,) = warning.failing_rows
    assert (judged["skills"], judged["act"]) == ("episode", "by being there, not by what they say")
    assert (judged["above_placebo"], judged["low"]) == pytest.approx((0.2, 0.2 - 0.2484138), abs=1e-6)
    assert above("step_own", 0.21, 0.0, 0.19, 0.2) == ()
    assert above("step_own", 0.3, 0.1, None) == ()  # two iterations say nothing yet
    assert above("step_own", -0.21, -0.19, -0.2)
