"""`opid audit --overview` on committed evaluations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flows.reports.audit.overview import CampaignRow, charts, result_rows, write_overview
from flows.reports.audit.pages import content_hash, page_script, write_pages
from flows.reports.chains import evaluations, read_chain
from flows.reports.standing import standing_of
from infra.store import open_campaign, read_config
from opid_core.errors import ConfigError, DataError
from tests.audited import CONFIG
from tests.factories import START_ROWS, commit_rows, named_rows, row


def make(
    root: Path,
    name: str,
    *outcomes: str,
    temperature: float = 1.0,
    first_task: int = 0,
    other_tasks: bool = False,
    **config: Any,
) -> None:
    """A campaign with an evaluation after each number of updates: `sf` is a first task won and a second lost."""
    store = open_campaign(root, name, {**CONFIG, "campaign": name, **config})
    previous = None
    for version, of_tasks in enumerate(outcomes):
        first = first_task + 10 * version * other_tasks
        played = [
            row(
                "evaluations",
                policy_version=version,
                temperature=temperature,
                task_id=f"valid/{first + task}",
                outcome={"s": "success", "f": "failure"}[outcome],
            )
            for task, outcome in enumerate(of_tasks)
        ]
        rows = {**(named_rows() if version else START_ROWS), "evaluations": played}
        metrics = {
            "rollout/success_micro": 0.5,
            "rollout/success_low": 0.1,
            "rollout/success_high": 0.9,
            "rollout/episodes": 2.0,
            "analyses/count": 2.0,
            "analyses/cost": 0.5,
            "advantage_share/skill": 0.1 * version,
            "seconds/iteration_s": 60.0,
        }
        previous = commit_rows(store, root.parent, previous, rows, metrics=metrics if version else {})


def row_of(root: Path, name: str) -> CampaignRow:
    store, chain = read_chain(str(root), name)
    return CampaignRow(standing_of(store, chain), read_config(store), None, [], evaluations(store, chain), None)


def test_newest_policies_are_compared_where_they_played_the_same_tasks(tmp_path):
    root = tmp_path / "runs"
    make(root, "plain", "ffff", "sfff")
    make(root, "skills", "fsff", "ffff", "sssf")
    make(root, "other", "ffff", "ssss", first_task=1)
    make(root, "colder", "ffff", "ssss", temperature=0.4)
    make(root, "elsewhere", "ffff", "ssss", environment={"name": "alfworld", "max_steps": 5})
    make(root, "begun", "ffff")
    make(root, "trained_else", "ffff", "ssss", environment={"name": "alfworld", "train_split": "train_easy"})
    names = ["plain", "skills", "other", "colder", "elsewhere", "begun", "trained_else"]
    results = {result.campaign: result for result in result_rows([row_of(root, name) for name in names])}
    assert list(results) == names
    assert [name for name, result in results.items() if result.against] == ["skills", "begun", "trained_else"]
    means = {name: result.against.estimate.mean for name, result in results.items() if result.against}
    assert means == {"skills": 0.5, "begun": -0.25, "trained_else": 0.75}
    change = results["skills"].change
    assert change is not None
    # from fsff to sssf: won the first and third, kept the second, neither won the fourth
    assert (change.second_more, change.first_more, change.both, change.neither) == (2, 0, 1, 1)
    assert (results["skills"].last.policy_version, results["begun"].change) == (2, None)
    found = results["trained_else"].against
    assert found is not None
    assert found.p_value == pytest.approx(0.25, abs=0.02)  # three tasks of one sign: two of eight, drawn at random
    assert found.adjusted_p == 3 * found.p_value  # the smallest of three


def test_the_page_shows_each_campaign_and_what_it_took(tmp_path, opid):
    root = tmp_path / "runs"
    make(root, "plain", "ffff", "sfff", "ssff")
    make(root, "skills", "ffff")
    open_campaign(root, "new", {**CONFIG, "campaign": "new"})
    printed = opid("audit", "--overview", "--root", root)
    assert printed == f"{root}/overview.html\nOpen {root}/overview.html in a browser.\n"
    page = (root / "overview.html").read_text(encoding="utf-8")
    shown = {cells[0]: cells[1:] for cells in cells_of(page) if len(cells) == 12}
    assert shown["plain"][1:10] == [
        "2 of 3",
        "alfworld",
        "opid",
        "hindsight",
        "0",
        "15.0%",
        "1.0000",
        "0:02:00",
        "2026-01-01 00:00:00",
    ]
    assert shown["skills"][1] == "0 of 3"
    assert shown["new"][:2] == ["not begun", "0 of 3"]
    assert [cells[0] for cells in cells_of(page) if len(cells) == 9] == ["plain", "skills"]
    opid("audit", "skills", "plain", "skills", "--overview", "--root", root, "--out", tmp_path / "pages")
    page = (tmp_path / "pages" / "overview.html").read_text(encoding="utf-8")
    assert [cells[0] for cells in cells_of(page) if len(cells) == 12] == ["skills", "plain"]
    assert "<h2>Against skills</h2>" in page


def test_the_cell_of_evaluations_on_other_tasks_is_sorted_as_unknown(tmp_path):
    make(tmp_path, "plain", "ffff", "sfff")
    make(tmp_path, "moved", "ffff", "sfff", other_tasks=True)
    page = write_overview(str(tmp_path), None, [], None).read_text(encoding="utf-8")
    assert re.findall(r"<td([^>]*)>other tasks</td>", page) == [' data-sort=""']


def test_campaigns_that_cannot_be_read_are_left_out_and_named(tmp_path, opid):
    root = tmp_path / "runs"
    for name in ("old", "plain"):
        make(root, name, "ffff", "sfff")
    for manifest in (root / "old" / "_commits").iterdir():
        manifest.write_text('{"format": 1, "iteration": 0}', encoding="utf-8")
    printed = opid("audit", "--overview", "--root", root)
    assert re.match(r"Left out: old: .*a manifest of format 1;", printed)
    page = (root / "overview.html").read_text(encoding="utf-8")
    assert [cells[0] for cells in cells_of(page) if len(cells) == 12] == ["plain"]
    (reason,) = re.findall("<li>(.*?)</li>", page)
    assert reason.startswith("old: ")
    assert "a manifest of format 1;" in reason
    with pytest.raises(DataError, match="none of the campaigns"):
        opid("audit", "old", "--overview", "--root", root)


def cells_of(page: str) -> list[list[str]]:
    """The texts of the cells of each row of a table's body."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", of_row, re.DOTALL) for of_row in rows]
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in of_row] for of_row in cells if of_row]


def test_curves_of_evaluations_are_whole_and_of_training_dashed(tmp_path):
    root = tmp_path / "runs"
    make(root, "plain", "ffff", "sfff")
    make(root, "colder", "ffff", "ssss", temperature=0.4)
    ((cold, one), (warm, other)) = charts([row_of(root, "plain"), row_of(root, "colder")])
    assert (cold, warm) == ("temperature 0.4", "temperature 1")
    assert [(line.name, line.dashed) for line in one.series] == [("colder", False)]
    points = other.series[0].points
    assert [(point.x, point.value) for point in points] == [(0, 0.0), (1, 0.25)]
    assert [point.note.split(":")[0] for point in points] == ["plain, after 0 updates", "plain, after 1 update"]
    assert one.series[0].colour != other.series[0].colour
    page = write_overview(str(root), None, ["plain"], None).read_text(encoding="utf-8")
    assert page.count("stroke-dasharray") == 1  # the training rollouts


def test_the_page_runs_nothing_fetches_nothing_and_texts_are_texts(tmp_path):
    root = tmp_path / "runs"
    hostile = "<img src=x onerror=alert(1)>\"'"
    for name in ("<b>bold & loud", "a b#c"):
        make(root, name, "ffff", "sfff", policy=hostile, analyzer={"backend": hostile})
    store, chain = read_chain(str(root), "a b#c")
    write_pages(store, chain, [], root / "a b#c" / "audit")
    page = write_overview(str(root), None, [], None).read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    style = page.split("<style>")[1].split("</style>")[0]
    assert policy.startswith("default-src &#39;none&#39;; ")
    assert f"script-src {content_hash(page_script())};".replace("'", "&#39;") in policy
    assert f"style-src {content_hash(style)};".replace("'", "&#39;") in policy
    assert re.findall(r'(?:href|src)="([^"]*)"', page) == ["a%20b%23c/audit/index.html"]
    assert "<img" not in page
    assert "<b>" not in page
    assert page.count("&lt;b&gt;bold &amp; loud") > 2


def test_what_is_no_overview_is_refused(tmp_path, opid, monkeypatch):
    root = tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no campaign in {root}; there is no campaign there"):
        opid("audit", "--overview")
    make(root, "plain", "ffff")
    with pytest.raises(ConfigError, match="no campaign 'other'"):
        opid("audit", "plain", "other", "--overview", "--root", root)
    for arguments in (["plain@0"], ["--format", "csv"], ["--iteration", "all"]):
        with pytest.raises(ConfigError, match="--overview takes"):
            opid("audit", "--overview", *arguments, "--root", root)
    with pytest.raises(ConfigError, match="name a campaign"):
        opid("audit", "--root", root)
