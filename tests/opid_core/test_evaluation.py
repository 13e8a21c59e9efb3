from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opid_core.evaluation import (
    Estimate,
    Paired,
    by_split,
    by_temperature,
    independent_trials,
    rollout_metrics,
    sign_test,
    success_rate,
    table_success,
    wilson_interval,
)
from opid_core.schema import from_rows
from opid_core.skills.counts import skill_metrics
from tests.factories import make_table, valid_rows

# Success rates -----------------------------------------------------------------------------------------------------


def test_wilson_interval_equals_the_published_example():
    # 30 of 100: (0.3 + 1.92073/100 ± 1.959964 * sqrt(0.0021 + 3.841459/40000)) / 1.03841459
    assert wilson_interval(30, 100) == pytest.approx((0.218949, 0.395849), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_share_and_stays_a_probability(case):
    successes, trials = case
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_micro_counts_episodes_macro_counts_types_and_broken_episodes_do_not_count():
    outcomes = ["success", "success", "success", "truncated", "failure", "broken"]
    rate = success_rate(outcomes, ["a", "a", "a", "a", "b", "b"], ["1", "2", "3", "4", "5", "6"])
    assert (rate.episodes, rate.micro, rate.macro) == (5, 3 / 5, 0.375)
    assert (rate.per_type, rate.episodes_per_type) == ({"a": 0.75, "b": 0.0}, {"a": 4, "b": 1})
    assert (rate.low, rate.high) == wilson_interval(3, 5)  # tasks played once give the plain interval
    assert math.isnan(success_rate([], [], []).micro)


def test_the_share_of_actions_on_offer_is_of_steps_at_which_some_were():
    rows = valid_rows()
    of_a, _, of_b = rows["steps"]
    of_a |= {"action": "look", "admissible_actions": ["look"]}
    of_b |= {"admissible_actions": []}
    trajectories = from_rows("trajectories", rows["trajectories"])
    metrics = rollout_metrics(from_rows("steps", [of_a, of_b]), trajectories)
    assert metrics["rollout/admissible_actions"] == 1.0
    assert math.isnan(rollout_metrics(from_rows("steps", [of_b]), trajectories)["rollout/admissible_actions"])


def test_the_interval_of_repeated_tasks_counts_what_they_are_worth():
    # Two tasks won always, two never: 16 episodes tell what 4 tell. Variance of the share: 4 * (4 / 2)^2 / 16^2 = 1/16.
    certain = [[True] * 4, [True] * 4, [False] * 4, [False] * 4]
    assert independent_trials(certain) == 4
    # Every task won in half of its repetitions: as good as 16 single episodes, and never better.
    assert independent_trials([[True, False] * 2] * 4) == 16
    # Task shares 1, 1/2, 1/2, 0 of 2: variance (1 + 1) / 64, so 1/4 over 1/32.
    assert independent_trials([[True] * 2, [True, False], [False, True], [False] * 2]) == 8
    assert independent_trials([[True] * 4] * 3) == 3
    assert independent_trials([[True] * 7 + [False]]) == independent_trials([[True] * 8]) == 1
    rate = success_rate(["success"] * 8 + ["failure"] * 8, ["a"] * 16, [str(n // 4) for n in range(16)])
    assert (rate.episodes, rate.micro, (rate.low, rate.high)) == (16, 0.5, wilson_interval(2, 4))


def test_the_mean_score_has_an_interval_over_tasks():
    def score(*played: tuple[str, float | None, str]):
        rows = [
            {"task_id": task, "score": score, "outcome": outcome, "temperature": 1.0} for task, score, outcome in played
        ]
        return table_success(make_table("evaluations", rows)).score

    # Deviations -0.1, 0, 0, 0.1: std sqrt(0.02 / 3), error 0.0408248 of the mean; t of 3 degrees 3.182446.
    four = score(("a", 0.4, "failure"), ("b", 0.5, "failure"), ("c", 0.5, "truncated"), ("d", 0.6, "failure"))
    assert four is not None
    assert (four.mean, four.low, four.high) == pytest.approx((0.5, 0.370077, 0.629923), abs=1e-6)
    # Episodes of one task go together; the world's fault counts for nobody; the interval stays within 0 and 1.
    again = [("a", 0.5, "failure"), ("a", 1.0, "success"), ("b", 0.0, "failure"), ("b", 0.0, "broken")]
    assert score(*again) == Estimate(0.5, 0.0, 1.0)
    assert score(("a", 0.25, "failure")) == Estimate(0.25, 0.0, 1.0)
    assert score(("a", None, "failure"), ("b", 0.5, "broken")) is None


def test_each_split_is_evaluated_apart_and_the_first_one_counts():
    played = [("seen", "success"), ("seen", "failure"), ("unseen", "success"), ("unseen", "success")]
    rows = [{"task_id": str(n), "split": split, "outcome": outcome} for n, (split, outcome) in enumerate(played)]
    table = make_table("evaluations", rows)
    assert {split: part.num_rows for split, part in by_split(table).items()} == {"seen": 2, "unseen": 2}
    assert [table_success(part).micro for part in by_temperature(table).values()] == [0.5]
    assert [table_success(part).micro for part in by_temperature(by_split(table)["unseen"]).values()] == [1.0]


def test_skills_are_counted_and_measured():
    rows = valid_rows()
    rows["skills"][1]["reason"] = '{"kind": "other"}'  # the skill of one of three steps
    tables = {name: from_rows(name, made) for name, made in rows.items()}
    metrics = skill_metrics(tables["trajectories"], tables["skills"], tables["routes"])
    assert (metrics["skills/coverage"], metrics["skills/failed"], metrics["skills/step_skills"]) == (0.5, 0.5, 0.5)
    assert metrics["skills/chars"] == (75 + 16) / 2
    assert (metrics["routes/step_own"], metrics["routes/step_other"]) == (0.0, 1 / 3)
    none = skill_metrics(tables["trajectories"], tables["skills"].slice(2), tables["routes"])
    assert math.isnan(none["skills/chars"])


# Two policies on the same tasks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Five tasks that differ, one of them won by the first: 2 * (1 + 5) / 32.
        ([1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 0, 0], Paired(1, 1, 4, 2, 0.375)),
        ([1, 0], [1, 0], Paired(1, 0, 0, 1, 1.0)),
        ([], [], Paired(0, 0, 0, 0, 1.0)),
        ([1, 0], [0, 1], Paired(0, 1, 1, 0, 1.0)),  # 2 * (1 + 2) / 4 is above 1
        # Shares of repetitions count a task once. Three differ, the first won one more often: 2 * (1 + 3) / 8.
        ([0.75, 0.5, 0.0, 0.25, 0.0], [0.5, 0.75, 1.0, 0.25, 0.0], Paired(1, 1, 2, 1, 1.0)),
        ([1] * 10, [0] * 10, Paired(0, 10, 0, 0, 2 / 2**10)),
        ([1] * 2000, [0] * 2000, Paired(0, 2000, 0, 0, 0.0)),  # 2 ** -1999 is below the smallest float
    ],
)
def test_the_sign_test(first, second, expected):
    assert sign_test(first, second) == expected
    mirrored = sign_test(second, first)
    assert (mirrored.first_more, mirrored.second_more) == (expected.second_more, expected.first_more)
    assert mirrored.p_value == expected.p_value
