from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows.reports.diff import read_difference, show_difference
from infra.store import open_campaign
from opid_core.errors import ConfigError
from tests.flows.committed import commit_rows, rows_of_iteration_0
from tests.infra.stored import CONFIG
from tests.tasks.gates.valid_tables import valid

METRICS = [{"iteration": -1, "name": "seconds/start_s", "value": 1.0}]


@pytest.fixture
def root(tmp_path) -> str:
    """`demo`: a start with an evaluation of its policy, and iteration 0 without; `other`: a start alone."""
    rows = rows_of_iteration_0()
    del rows["evaluations"]
    rows["metrics"] = [{"iteration": 0, "name": "rollout/return", "value": 5.0}]
    evaluations = [{**row, "policy_version": 0} for row in valid()["evaluations"]]
    for name, seed in (("demo", 0), ("other", 1)):
        store = open_campaign(tmp_path / "runs", name, {**CONFIG, "campaign": name, "seed": seed})
        start = commit_rows(store, tmp_path, None, {"metrics": METRICS, "evaluations": evaluations})
        if name == "demo":
            commit_rows(store, tmp_path, start, rows)
    open_campaign(tmp_path / "runs", "empty", {**CONFIG, "campaign": "empty"})
    return str(tmp_path / "runs")


def printed(root: str, first: str, second: str) -> str:
    output = io.StringIO()
    show_difference(root, None, first, second, Console(file=output, width=200))
    return output.getvalue()


def test_two_campaigns(root):
    found = read_difference(root, None, "other", "demo")
    assert (found.first, found.second) == ("other@start", "demo@0")
    assert [(change.key, change.first, change.second) for change in found.config] == [
        ("campaign", "other", "demo"),
        ("seed", 1, 0),
    ]
    assert [(row.name, row.first, row.second) for row in found.routes] == [
        ("step", 0, 1),
        ("episode", 0, 1),
        ("none", 0, 1),
    ]
    # Iteration 0 has no evaluation of its own: the newest before it is compared, and says which policy it met.
    assert [(pair.temperature, pair.first_version, pair.second_version) for pair in found.evaluations] == [
        (0.5, 0, 0),
        (1.0, 0, 0),
    ]


def test_what_is_printed(root):
    text = printed(root, "demo@start", "demo@0")
    assert text.startswith("demo@start and demo@0\nConfig: the same.\n")
    assert "│ success   │ 0 (0.0%)   │ 1 (50.0%) │" in text
    assert "│ episode │ 0 (0.0%)   │ 1 (33.3%) │" in text
    assert "only demo@0: step, success: Take the mug first.\n" in text
    assert "only demo@0: failed, success: no reply\n" in text
    assert "│ 95% interval          │ 34.2% to 100.0% │ 34.2% to 100.0% │" in text  # Wilson's interval of 2 of 2
    assert (
        "2 won by both alike, 0 by demo@start alone or more often, 0 by demo@0, 0 by neither; exact sign test p = 1."
        in text
    )
    assert "│ rollout/return │            │ 5      │            │" in text
    assert "seconds/start_s" not in text
    assert "│ seed     │ 1           │ 0      │" in printed(root, "other", "demo")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo@1", "has no iteration '1'; committed: start, 0 to 0"),
        ("demo@last", "has no iteration 'last'; committed: start, 0 to 0"),
        ("other@0", "has no iteration '0'; committed: start$"),
        ("demo@", "'demo@': expected CAMPAIGN or CAMPAIGN@ITERATION"),
        ("@1", "'@1': expected CAMPAIGN or CAMPAIGN@ITERATION"),
        ("nobody", "no campaign 'nobody' in .*; campaigns there: demo, empty, other"),
        ("empty", "nothing is committed yet"),
    ],
)
def test_what_is_not_there(root, name, message):
    with pytest.raises(ConfigError, match=message):
        printed(root, "demo", name)
