"""The user's own expectations: in the config, and from a plugin, as the documentation shows them."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from opid_core.config import ExpectationConfig, GatesConfig, build_config
from opid_core.errors import ConfigError, GateError
from opid_core.schema import TABLES, from_rows
from tasks.gates import run as gates
from tests.factories import valid_rows

PAGE = (Path(__file__).parents[3] / "docs" / "gates.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The page's only code block in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def settings_of(*expectations: dict, plugins: tuple[str, ...] = ()) -> GatesConfig:
    return build_config({"campaign": "c", "gates": {"expectations": expectations, "plugins": plugins}}).gates


def test_the_documented_example(user_modules):
    (user_modules / "my_gates.py").write_text(block("python"), encoding="utf-8")
    settings = build_config({"campaign": "c", **yaml.safe_load(block("yaml"))}).gates
    gates.check_user_expectations(settings)
    tables = {name: from_rows(name, rows) for name, rows in valid_rows().items()}
    result = gates.check("skills", tables["skills"], tables, settings=settings)
    assert result.warnings == ()
    assert [column for _, column, _ in result.held if column in ("analyzer", "steps_of_plan")] == [
        "analyzer",
        "steps_of_plan",
    ]

    rows = valid_rows()
    rows["skills"][0]["text"] = "Find it, take it, clean it, put it down."
    rows["steps"][2]["response_ids"] = [3] * 2000
    rows["steps"][2]["rollout_log_probs"] = [-0.5] * 2000
    tables = {name: from_rows(name, rows[name]) for name in rows}
    (warning,) = gates.check("skills", tables["skills"], tables, settings=settings).warnings
    assert warning.failing_rows == ({"skill_id": "a/episode", "steps_of_plan": 4},)
    (warning,) = gates.check("steps", tables["steps"], tables, settings=settings).warnings
    assert (warning.expectation, warning.column) == ("expect_column_mean_to_be_between", "n_response_ids")
    assert warning.observed == pytest.approx((2 + 1 + 2000) / 3)

    rows["skills"][0]["analyzer"] = " "
    broken = from_rows("skills", rows["skills"])
    with pytest.raises(GateError, match="table skills: expect_column_values_to_match_regex on column analyzer failed"):
        gates.check("skills", broken, tables, settings=settings)


def test_of_its_own_severity_fail_stops():
    between = {"column": "reward", "min_value": 1}
    own = {"table": "steps", "expectation": "ExpectColumnValuesToBeBetween", "arguments": between}
    tables = {name: from_rows(name, rows) for name, rows in valid_rows().items()}
    with pytest.raises(GateError, match=r"on column reward failed \(3 of 3 rows\)"):
        gates.check("steps", tables["steps"], tables, settings=settings_of(own))
    assert gates.check("routes", tables["routes"], tables, settings=settings_of(own)).passed


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"table": "stepz"}, r"gates\.expectations\.0\.table: Input should be 'steps', 'trajectories'"),
        ({"expectation": "Unique"}, r"gates\.expectations\.0\.expectation: String should match pattern"),
        ({"severity": "info"}, r"gates\.expectations\.0\.severity: Input should be 'fail' or 'warn'"),
        (
            {"expectation": "ExpectColumnValuesToBeUniq"},
            r"gates\.expectations\.0: unknown expectation 'ExpectColumnValuesToBeUniq'; did you mean "
            r"'ExpectColumnValuesToBeUnique'\? known: ExpectColumn\w+, .*ExpectTableRowCountToEqual",
        ),
        (
            {"arguments": {"colum": "reward"}},
            r"gates\.expectations\.0: ExpectColumnValuesToBeUnique: column: field required; colum: extra fields not "
            r"permitted; its arguments are: column, mostly, row_condition, condition_parser$",
        ),
        ({"arguments": {"column": "rewards"}}, r"gates\.expectations\.0: no column 'rewards'; columns: .*reward, "),
    ],
)
def test_what_is_wrong_in_the_config_is_named_before_any_work(own, message):
    given = {"table": "steps", "expectation": "ExpectColumnValuesToBeUnique", "arguments": {"column": "step"}, **own}
    with pytest.raises(ConfigError, match=message):
        gates.check_user_expectations(settings_of(given))


@pytest.mark.parametrize(("columns", "holds"), [(30, True), (31, False)])
def test_the_users_expectations_see_no_column_that_gates_add(columns, holds):
    tables = {name: from_rows(name, rows) for name, rows in valid_rows().items()}
    given = {"table": "steps", "expectation": "ExpectTableColumnCountToEqual", "arguments": {"value": columns}}
    with nullcontext() if holds else pytest.raises(GateError):
        gates.check("steps", tables["steps"], tables, settings=settings_of(given))


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("no_such_module:f", r"gates\.plugins\.0: cannot import module 'no_such_module'"),
        ("own_gates:missing", r"gates\.plugins\.0: module 'own_gates' has no function 'missing'"),
        ("own_gates:text", r"gates\.plugins\.0: own_gates:text must return a list of tasks\.gates\.Expectation"),
        ("own_gates:unknown", r"gates\.plugins\.0: unknown expectation 'ExpectLuck'"),
        ("own_gates:column", r"gates\.plugins\.0: no column 'luck'; columns: campaign, "),
        ("own_gates", r"gates\.plugins: 'own_gates' is not of the form module:function"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_named_before_any_work(user_modules, plugin, message):
    (user_modules / "own_gates.py").write_text(
        "from tasks.gates import Expectation, in_range\n"
        "text = lambda name, table, related: 'all is well'\n"
        "unknown = lambda name, table, related: [Expectation('ExpectLuck', {})]\n"
        "column = lambda name, table, related: [in_range('luck', low=0)]\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=message):
        gates.check_user_expectations(settings_of(plugins=(plugin,)))


def test_the_tables_that_a_config_may_name_are_all():
    assert ExpectationConfig.model_fields["table"].annotation.__args__ == tuple(TABLES)  # type: ignore[union-attr]
