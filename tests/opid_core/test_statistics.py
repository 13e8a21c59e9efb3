import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opid_core.schema import from_rows
from opid_core.statistics import independent_trials, skill_metrics, success_rate, wilson_interval
from tests.tasks.gates.valid_tables import valid


def test_wilson_interval_equals_the_published_example():
    # 30 of 100: (0.3 + 1.92073/100 ± 1.959964 * sqrt(0.0021 + 3.841459/40000)) / 1.03841459
    low, high = wilson_interval(30, 100)
    assert low == pytest.approx(0.218949, abs=1e-6)
    assert high == pytest.approx(0.395849, abs=1e-6)


def test_no_trials_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_share_and_stays_a_probability(case):
    successes, trials = case
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_micro_counts_episodes_macro_counts_types_and_broken_episodes_do_not_count():
    rate = success_rate(
        ["success", "success", "success", "truncated", "failure", "broken"],
        ["a", "a", "a", "a", "b", "b"],
        ["1", "2", "3", "4", "5", "6"],
    )
    assert rate.episodes == 5
    assert rate.micro == 3 / 5
    assert rate.per_type == {"a": 0.75, "b": 0.0}
    assert rate.episodes_per_type == {"a": 4, "b": 1}
    assert rate.macro == 0.375


def test_the_interval_of_repeated_tasks_counts_what_they_are_worth():
    # Two tasks won always, two never: 16 episodes tell what 4 tell. Variance of the share: 4 * (4 / 2)^2 / 16^2 = 1/16.
    certain = [[True] * 4, [True] * 4, [False] * 4, [False] * 4]
    assert independent_trials(certain) == 4
    # Every task won in half of its repetitions: as good as 16 single episodes, and never better.
    assert independent_trials([[True, False] * 2] * 4) == 16
    # Task shares 1, 1/2, 1/2, 0 of 2: variance (1 + 1) / 64, so 1/4 over 1/32.
    assert independent_trials([[True] * 2, [True, False], [False, True], [False] * 2]) == 8
    assert independent_trials([[True] * 4] * 3) == 3
    rate = success_rate(["success"] * 8 + ["failure"] * 8, ["a"] * 16, [str(n // 4) for n in range(16)])
    assert (rate.episodes, rate.micro, (rate.low, rate.high)) == (16, 0.5, wilson_interval(2, 4))


@given(st.lists(st.booleans(), max_size=40))
def test_tasks_played_once_give_the_plain_interval(wins):
    outcomes = ["success" if won else "failure" for won in wins]
    rate = success_rate(outcomes, ["a"] * len(wins), [str(n) for n in range(len(wins))])
    assert (rate.low, rate.high) == pytest.approx(wilson_interval(sum(wins), len(wins)))


def test_an_empty_table_has_no_rate():
    assert math.isnan(success_rate([], [], []).micro)


def test_skills_are_counted_and_measured():
    tables = {name: from_rows(name, rows) for name, rows in valid().items()}
    found = skill_metrics(tables["trajectories"], tables["skills"], tables["routes"])
    assert (found["skills/coverage"], found["skills/failed"], found["skills/step_skills"]) == (0.5, 0.5, 0.5)
    assert found["skills/chars"] == (75 + 16) / 2
    none = skill_metrics(tables["trajectories"], tables["skills"].slice(2), tables["routes"])
    assert math.isnan(none["skills/chars"])
