"""Every expectation of every suite has a table that breaks it and nothing else."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opid_core.config import GatesConfig
from opid_core.errors import DataError, GateError
from opid_core.schema import TABLES, from_rows
from tasks import gates as suites
from tasks.gates import run as gates
from tasks.gates.columns import plain
from tests.factories import Rows, valid_rows
from tests.tasks.gates.gated import HISTORY, LEAK, LIMITS, QUOTE, checked, tables, warnings


def failures(name: str, rows: Rows, limits: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """(expectation, column) of each broken expectation, from the error's text."""
    with pytest.raises(GateError) as caught:
        checked(name, rows, limits)
    lines = [line for line in str(caught.value).splitlines() if not line.startswith("  ")]
    found = [re.fullmatch(rf"table {name}: (\w+)(?: on column (.*?))? failed \(.*\)", line) for line in lines]
    return [(match[1].removeprefix("expect_"), match[2] or "") for match in found if match]


@pytest.mark.parametrize("name", TABLES)
def test_valid_tables_pass_and_the_result_is_plain_data(name):
    built = tables(valid_rows())
    result = gates.check(name, built[name], built, **LIMITS[name])
    assert result.table == name
    assert result.passed
    assert result.broken == ()
    assert len(result.held) == sum(
        len(frame.suite) for frame in suites.frames(name, built[name], built, suites.Limits(**LIMITS[name]))
    )
    assert json.loads(result.model_dump_json())["passed"] is True


@pytest.mark.parametrize("name", ["skills", "metrics", "trajectories", "steps", "routes", "scores"])
def test_tables_without_rows_pass(name):
    empty = {other: from_rows(other, []) for other in TABLES}
    assert gates.check(name, empty[name], empty, max_failure_rate=0.0, forbidden={}, history=HISTORY).passed


IN_SET, BETWEEN = "column_values_to_be_in_set", "column_values_to_be_between"
PAIR, REGEX = "column_pair_values_to_be_equal", "column_values_to_match_regex"
COMPOUND, AT_LEAST = "compound_columns_to_be_unique", "column_pair_values_a_to_be_greater_than_b"


def put(row: int, **values: Any) -> Callable[[list[dict]], Any]:
    return lambda rows: rows[row].update(values)


def repeat(row: int, **values: Any) -> Callable[[list[dict]], Any]:
    return lambda rows: rows.append({**rows[row], **values})


def drop(row: int) -> Callable[[list[dict]], Any]:
    return lambda rows: rows.pop(row)


BROKEN: list[tuple[str, Callable[[list[dict]], Any], str, str]] = [
    ("steps", repeat(0), COMPOUND, "trajectory_id, step"),
    ("steps", put(0, task_text=None), IN_SET, "missing_column"),
    ("steps", drop(1), IN_SET, "row_present"),
    ("steps", repeat(2, step=1), IN_SET, "row_expected"),
    ("steps", put(0, reward=math.inf), IN_SET, "not_finite_reward"),
    ("steps", put(0, prompt_text=" \n"), IN_SET, "prompt_is_blank"),
    ("steps", put(0, prompt_ids=[]), BETWEEN, "n_prompt_ids"),
    ("steps", put(0, prompt_ids=[1, 2, 3]), BETWEEN, "n_prompt_ids"),
    ("steps", put(0, response_ids=[], rollout_log_probs=[]), BETWEEN, "n_response_ids"),
    ("steps", put(0, response_ids=[3] * 4, rollout_log_probs=[-0.5] * 4), BETWEEN, "n_response_ids"),
    ("steps", put(0, history_dropped=-1), BETWEEN, "history_dropped"),
    ("steps", put(0, rollout_log_probs=[-0.5]), PAIR, "n_rollout_log_probs, n_response_ids"),
    ("steps", put(0, rollout_log_probs=[-0.5, -math.inf]), IN_SET, "n_not_finite_rollout_log_probs"),
    ("steps", put(0, rollout_log_probs=[-0.5, math.nan]), IN_SET, "n_not_finite_rollout_log_probs"),
    ("steps", put(0, rollout_log_probs=[-0.5, None]), IN_SET, "n_not_finite_rollout_log_probs"),
    ("steps", put(0, rollout_log_probs=[-0.5, 0.001]), BETWEEN, "max_rollout_log_probs"),
    ("steps", put(0, policy_version=1), IN_SET, "policy_version"),
    ("steps", put(0, iteration=1), IN_SET, "iteration"),
    ("trajectories", put(0, outcome="lost"), IN_SET, "outcome"),
    ("trajectories", put(0, task_id=None), IN_SET, "missing_column"),
    ("trajectories", put(0, **{"return": math.nan}), IN_SET, "not_finite_return"),
    ("trajectories", put(0, score=-0.5), BETWEEN, "score"),
    ("trajectories", put(0, tokens=-1), BETWEEN, "tokens"),
    ("trajectories", put(0, seconds=-0.1), BETWEEN, "seconds"),
    ("trajectories", put(0, steps=3), PAIR, "steps, n_step_rows"),
    ("trajectories", put(0, outcome="broken"), IN_SET, "broken_without_error"),
    ("trajectories", put(0, iteration=1), IN_SET, "iteration"),
    ("trajectories", drop(1), IN_SET, "group_members"),
    ("skills", put(1, skill_id="a/episode"), "column_values_to_be_unique", "skill_id"),
    ("skills", put(1, analyzer=None), IN_SET, "missing_column"),
    ("skills", put(0, kind="hint"), IN_SET, "kind"),
    ("skills", put(0, outcome="won"), IN_SET, "outcome"),
    ("skills", repeat(1, skill_id="again"), COMPOUND, "trajectory_id, subject"),
    ("skills", repeat(0, skill_id="c/episode", trajectory_id="c"), IN_SET, "trajectory_known"),
    ("skills", put(1, step=2), IN_SET, "step_known"),
    ("skills", put(0, step=0), IN_SET, "step_fits_kind"),
    ("skills", put(0, text=" "), IN_SET, "text_fits_kind"),
    ("skills", put(2, text="skill of a failure"), IN_SET, "text_fits_kind"),
    ("skills", put(2, error=None), IN_SET, "error_fits_kind"),
    ("skills", put(0, attempts=-1), BETWEEN, "attempts"),
    ("skills", put(0, tokens=-1), BETWEEN, "tokens"),
    ("skills", put(0, prompt_tokens=-1), BETWEEN, "prompt_tokens"),
    ("skills", put(0, completion_tokens=-1), BETWEEN, "completion_tokens"),
    ("skills", put(0, cost=-0.5), BETWEEN, "cost"),
    ("skills", put(0, cost=math.inf), IN_SET, "not_finite_cost"),
    ("skills", put(0, text="go " * 400), BETWEEN, "text_chars"),
    ("routes", repeat(0), COMPOUND, "trajectory_id, step"),
    ("routes", drop(2), IN_SET, "row_present"),
    ("routes", repeat(2, step=1), IN_SET, "row_expected"),
    ("routes", put(2, reason=None), IN_SET, "missing_column"),
    ("routes", put(2, reason=""), REGEX, "reason"),
    ("routes", put(0, skill_id="a/episode"), IN_SET, "skill_fits_route"),
    ("routes", put(0, skill_id="a/1"), IN_SET, "skill_fits_route"),
    ("routes", put(0, skill_id=None), IN_SET, "skill_fits_route"),
    ("routes", put(2, skill_id="a/episode"), IN_SET, "skill_fits_route"),
    ("routes", put(2, route="episode", skill_id="a/episode"), IN_SET, "skill_fits_route"),
    ("routes", put(0, added_skill_id="a/0"), IN_SET, "added_skill_fits"),
    ("routes", put(0, added_skill_id="b/failed"), IN_SET, "added_skill_fits"),
    ("routes", put(1, added_skill_id="a/episode"), IN_SET, "added_skill_fits"),
    ("scores", repeat(0), COMPOUND, "trajectory_id, step"),
    ("scores", drop(0), IN_SET, "row_present"),
    ("scores", put(0, trained=None), IN_SET, "missing_column"),
    ("scores", put(0, old_log_probs=[-0.5]), PAIR, "n_old_log_probs, n_response_ids"),
    ("scores", put(0, skill_log_probs=[-0.5] * 3), PAIR, "n_skill_log_probs, n_response_ids"),
    ("routes", put(2, placebo="Do now: look"), IN_SET, "placebo_fits"),
    ("routes", put(0, placebo=" "), IN_SET, "placebo_fits"),
    ("scores", put(0, placebo_log_probs=None), IN_SET, "placebo_scored_as_routed"),
    ("scores", put(1, placebo_log_probs=[-0.5]), IN_SET, "placebo_scored_as_routed"),
    ("scores", put(0, placebo_log_probs=[-0.5] * 3), PAIR, "n_placebo_log_probs, n_response_ids"),
    ("scores", put(0, placebo_log_probs=[math.nan, -0.5]), IN_SET, "n_not_finite_placebo_log_probs"),
    ("scores", put(0, placebo_log_probs=[0.5, -0.5]), BETWEEN, "max_placebo_log_probs"),
    ("scores", put(0, added_log_probs=[-0.5] * 3), PAIR, "n_added_log_probs, n_response_ids"),
    ("scores", put(0, added_log_probs=[math.nan, -0.5]), IN_SET, "n_not_finite_added_log_probs"),
    ("scores", put(0, added_log_probs=[0.5, -0.5]), BETWEEN, "max_added_log_probs"),
    ("scores", put(0, added_log_probs=None), IN_SET, "added_scored_as_routed"),
    ("scores", put(1, added_log_probs=[-0.5]), IN_SET, "added_scored_as_routed"),
    ("scores", put(0, step_advantage=math.nan), IN_SET, "not_finite_step_advantage"),
    ("scores", put(0, reference_log_probs=[]), PAIR, "n_reference_log_probs, n_response_ids"),
    ("scores", put(0, old_log_probs=[-math.inf, -0.5]), IN_SET, "n_not_finite_old_log_probs"),
    ("scores", put(0, skill_log_probs=[math.nan, -0.5]), IN_SET, "n_not_finite_skill_log_probs"),
    ("scores", put(0, reference_log_probs=[math.nan, -0.5]), IN_SET, "n_not_finite_reference_log_probs"),
    ("scores", put(0, old_log_probs=[0.5, -0.5]), BETWEEN, "max_old_log_probs"),
    ("scores", put(0, skill_log_probs=[0.5, -0.5]), BETWEEN, "max_skill_log_probs"),
    ("scores", put(0, reference_log_probs=[0.5, -0.5]), BETWEEN, "max_reference_log_probs"),
    ("scores", put(0, skill_advantages=[0.5]), PAIR, "n_skill_advantages, n_response_ids"),
    ("scores", put(0, skill_advantages=[0.5, math.inf]), IN_SET, "n_not_finite_skill_advantages"),
    ("scores", put(0, outcome_advantage=math.nan), IN_SET, "not_finite_outcome_advantage"),
    ("scores", put(0, skill_log_probs=None, skill_advantages=[0.0, 0.0]), IN_SET, "scored_as_routed"),
    ("scores", put(2, skill_log_probs=[-0.5] * 3), IN_SET, "scored_as_routed"),
    ("scores", put(2, skill_log_probs=[-0.5] * 3, trained=False), IN_SET, "scored_as_routed"),
    ("scores", put(2, skill_advantages=[0.0, 0.25, 0.0]), IN_SET, "signal_without_skill"),
    ("scores", put(0, reference_log_probs=None), "column_unique_value_count_to_be_between", "has_reference"),
    ("scores", put(0, history_dropped=-1), BETWEEN, "history_dropped"),
    ("metrics", repeat(0), COMPOUND, "iteration, name"),
    ("metrics", put(1, name=None), IN_SET, "missing_column"),
    ("metrics", put(1, name=""), REGEX, "name"),
    ("metrics", put(0, value=math.nan), IN_SET, "not_finite_value"),
    ("metrics", put(0, iteration=3), IN_SET, "iteration"),
    ("metrics", drop(0), "column_distinct_values_to_contain_set", "name"),
    ("evaluations", put(0, task_id="u"), COMPOUND, "policy_version, split, temperature, repetition, task_id"),
    ("evaluations", put(0, task_type=None), IN_SET, "missing_column"),
    ("evaluations", put(0, outcome="won"), IN_SET, "outcome"),
    ("evaluations", put(0, **{"return": math.inf}), IN_SET, "not_finite_return"),
    ("evaluations", put(0, score=1.5), BETWEEN, "score"),
    ("evaluations", put(0, tokens=-1), BETWEEN, "tokens"),
    ("evaluations", put(0, valid_actions=-1), BETWEEN, "valid_actions"),
    ("evaluations", put(0, admissible_actions=-1), BETWEEN, "admissible_actions"),
    ("evaluations", put(0, valid_actions=5), AT_LEAST, "steps, valid_actions"),
    ("evaluations", put(0, admissible_actions=5), AT_LEAST, "steps, admissible_actions"),
    ("evaluations", drop(0), IN_SET, "episodes_of_panel"),
]


@pytest.mark.parametrize(
    ("name", "break_table", "expectation", "column"), BROKEN, ids=[f"{b[0]}-{b[3]}-{i}" for i, b in enumerate(BROKEN)]
)
def test_a_broken_table_fails_exactly_its_expectation(name, break_table, expectation, column):
    rows = valid_rows()
    break_table(rows[name])
    assert failures(name, rows) == [(expectation, column)]


NEARLY = "Find the mug first, look at every shelf in turn, then go to a desk with it. Now!"
WARNED: list[tuple[str, Callable[[list[dict]], Any], str, str]] = [
    ("skills", put(1, text=valid_rows()["skills"][0]["text"]), IN_SET, "duplicate_of"),
    ("skills", put(1, text=NEARLY), IN_SET, "near_duplicate_of"),
    ("skills", put(0, text="Task: put a MUG on a desk."), BETWEEN, "copied_words"),
    ("skills", put(0, text=QUOTE), BETWEEN, "written_words"),
    ("skills", put(0, text=LEAK), IN_SET, "leaked"),
    ("scores", put(0, skill_log_probs=[-20.75, -0.5]), BETWEEN, "max_skill_delta"),
    ("scores", put(0, old_log_probs=[-9.0, -9.0], skill_log_probs=[-0.5, -0.5]), BETWEEN, "evidence"),
    ("metrics", put(2, value=0.8), IN_SET, "drifted"),
    ("metrics", put(2, value=0.2), IN_SET, "drifted"),
    ("metrics", put(3, value=-0.2), IN_SET, "act"),
]


@pytest.mark.parametrize(("name", "break_table", "expectation", "column"), WARNED, ids=[w[3] for w in WARNED])
def test_what_is_doubtful_is_recorded_exactly_once_and_commits(name, break_table, expectation, column):
    rows = valid_rows()
    break_table(rows[name])
    assert warnings(name, rows) == [(expectation, column)]


SPECIAL: list[tuple[str, Callable[[Rows], Any], dict[str, Any], list[tuple[str, str]]]] = [
    (
        "trajectories",
        lambda rows: rows["trajectories"].append({**rows["trajectories"][1]}),
        {},
        [("column_values_to_be_unique", "trajectory_id")],
    ),
    (
        "trajectories",
        lambda rows: rows["trajectories"][0].update(steps=-1),
        LIMITS["trajectories"],
        [(BETWEEN, "steps"), (PAIR, "steps, n_step_rows")],
    ),
    (
        "steps",
        lambda rows: rows["steps"][0].update(step=-1),
        LIMITS["steps"],
        [(BETWEEN, "step"), (IN_SET, "row_present"), (IN_SET, "row_expected")],
    ),
    ("evaluations", lambda rows: rows["evaluations"][0].update(temperature=-0.5), {}, [(BETWEEN, "temperature")]),
    ("evaluations", lambda rows: rows["evaluations"][0].update(repetition=-1), {}, [(BETWEEN, "repetition")]),
    (
        "evaluations",
        lambda rows: rows["evaluations"].clear(),
        LIMITS["evaluations"],
        [("table_row_count_to_be_between", "")],
    ),
    # a row of `scores` beyond the steps has no response to compare with, and no route
    (
        "scores",
        lambda rows: rows["scores"].append({**rows["scores"][2], "step": 1}),
        {},
        [(IN_SET, "row_expected")],
    ),
    (
        "routes",
        lambda rows: rows["routes"][0].update(route="both"),
        {},
        [(IN_SET, "route"), (IN_SET, "skill_fits_route"), (IN_SET, "added_skill_fits")],
    ),
    # without a version asked for, versions may not be negative
    ("steps", lambda rows: rows["steps"][0].update(policy_version=-1), {}, [(BETWEEN, "policy_version")]),
    ("evaluations", lambda rows: rows["evaluations"][0].update(policy_version=-1), {}, [(BETWEEN, "policy_version")]),
    (
        "evaluations",
        lambda rows: rows["evaluations"][0].update(policy_version=4),
        {"policy_version": 3},
        [(IN_SET, "policy_version")],
    ),
    # steps of broken episodes must not be trained on
    (
        "scores",
        lambda rows: rows["trajectories"][0].update(outcome="broken", error="the world broke"),
        {},
        [(IN_SET, "broken_but_trained")],
    ),
    # the failure budget: one of two analyses failed
    ("skills", lambda rows: None, {"max_failure_rate": 0.49}, [(IN_SET, "failure")]),
    (
        "skills",
        lambda rows: None,
        {"settings": GatesConfig(min_coverage=0.01, min_coverage_trajectories=1)},
        [(BETWEEN, "coverage")],
    ),
    ("skills", lambda rows: rows["skills"].pop(2), {"analyzed": ["a", "b"]}, [(IN_SET, "analysis_present")]),
    (
        "skills",
        lambda rows: rows["skills"][0].update(text=LEAK),
        {"forbidden": {"t": ["Old Paris"]}},
        [(IN_SET, "leaked")],
    ),
    ("skills", lambda rows: rows["skills"][0].update(text=QUOTE), {}, [(IN_SET, "quotes")]),
]


@pytest.mark.parametrize(("name", "break_rows", "limits", "expected"), SPECIAL)
def test_faults_under_other_limits_or_that_touch_more_than_one_expectation(name, break_rows, limits, expected):
    rows = valid_rows()
    break_rows(rows)
    assert failures(name, rows, limits) == expected


def test_every_expectation_of_every_suite_has_a_test_that_breaks_it():
    built = tables(valid_rows())
    known = set()
    for name, expected_limits in LIMITS.items():
        others: list[dict[str, Any]] = [limits for other, _, limits, _ in SPECIAL if other == name]
        for limits in (expected_limits, *others):
            for frame in suites.frames(name, built[name], built, suites.Limits(**limits)):
                known |= {(name, _name(e.kind), _columns(e.arguments), e.severity) for e in frame.suite}
    broken = {(name, kind, column, "fail") for name, _, kind, column in BROKEN}
    broken |= {(name, kind, column, "warn") for name, _, kind, column in WARNED}
    broken |= {(name, kind, column, "fail") for name, _, _, expected in SPECIAL for kind, column in expected}
    assert known == broken


def _name(kind: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower().removeprefix("expect_")


def _columns(arguments: dict[str, Any]) -> str:
    pair = [arguments[side] for side in ("column_A", "column_B") if side in arguments]
    return arguments.get("column") or ", ".join(arguments.get("column_list", pair))


def test_steps_of_broken_episodes_may_be_there_untrained():
    rows = valid_rows()
    rows["trajectories"][0] |= {"outcome": "broken", "error": "the world broke"}
    for row in rows["scores"][:2]:
        row["trained"] = False
    assert checked("scores", rows).passed


def test_the_error_names_table_expectation_column_and_the_first_ten_rows():
    rows = valid_rows()
    rows["metrics"] = [{"iteration": 2, "name": f"m{i:02d}", "value": math.inf} for i in range(12)]
    built = tables(rows)
    with pytest.raises(GateError) as caught:
        gates.check("metrics", built["metrics"], built)
    first, *shown = str(caught.value).splitlines()
    assert first == "table metrics: expect_column_values_to_be_in_set on column not_finite_value failed (12 of 12 rows)"
    assert [json.loads(line) for line in shown] == [
        {"iteration": 2, "name": f"m{i:02d}", "not_finite_value": True} for i in range(10)
    ]


def test_missing_columns_tables_and_relations_are_named():
    built = tables(valid_rows())
    with pytest.raises(GateError, match="table routes: wrong columns: reason: expected string, got no such column"):
        gates.check("routes", built["routes"].drop_columns(["reason"]), built)
    with pytest.raises(DataError, match="gate of table scores: needs the related tables routes"):
        gates.check("scores", built["scores"], {n: t for n, t in built.items() if n != "routes"})
    with pytest.raises(DataError, match="unknown table 'episodes'; known tables: steps, trajectories"):
        gates.check("episodes", built["steps"], {})


@given(
    st.lists(
        st.none() | st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=4),
        max_size=8,
    ),
    st.integers(0, 3),
)
def test_plain_columns_of_lists_agree_with_python(lists, offset):
    schema = pa.schema([pa.field("skill_log_probs", pa.list_(pa.float32()))])
    frame = plain(pa.table({"skill_log_probs": lists}, schema=schema).slice(offset))
    for row, values in zip(frame.to_dict("records"), lists[offset:], strict=True):
        if values is None:
            assert math.isnan(row["n_skill_log_probs"])
        else:
            assert row["n_skill_log_probs"] == len(values)
        assert row["n_not_finite_skill_log_probs"] == sum(not math.isfinite(v) for v in values or ())
        assert row["n_nonzero_skill_log_probs"] == sum(v != 0 for v in values or ())
        if values and not any(math.isnan(v) for v in values):
            assert row["max_skill_log_probs"] == max(values)
        else:
            assert math.isnan(row["max_skill_log_probs"])


def test_importing_the_gates_loads_neither_prefect_nor_great_expectations():
    code = "import sys, tasks.gates.run; sys.exit(any(m in sys.modules for m in ('prefect', 'great_expectations')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
