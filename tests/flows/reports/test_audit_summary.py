"""What the campaign's page says beside the audit's data (`test_audit.py`)."""

from __future__ import annotations

import re

from flows.reports.audit.pages import CAMPAIGN_PAGE, write_pages
from infra.store import manifests, open_campaign
from tests.audited import CONFIG
from tests.factories import commit_rows, row


def test_success_by_data_set_is_shown_before_and_after(tmp_path):
    """Wilson's intervals by hand; a broken episode does not count, and a set that has no other shows nothing."""
    store, previous = open_campaign(tmp_path, "sets", {**CONFIG, "campaign": "sets"}), None
    for version, outcomes in enumerate(
        ({"<b>": ["success"], "nq": ["success", "failure"]}, {"<b>": ["broken"], "nq": ["failure", "failure"]})
    ):
        rows = [
            row("evaluations", policy_version=version, task_id=f"{name}/{n}", task_type=name, outcome=outcome)
            for name, of_set in outcomes.items()
            for n, outcome in enumerate(of_set)
        ]
        previous = commit_rows(store, tmp_path, previous, {"evaluations": rows, "metrics": []})
    write_pages(store, manifests(store), [], tmp_path / "pages")
    page = (tmp_path / "pages" / CAMPAIGN_PAGE).read_text(encoding="utf-8")
    body = page.split("after 1 update (95%)</th></tr></thead>")[1].split("</tbody>")[0]
    assert [re.findall("<td>(.*?)</td>", line) for line in body.split("<tr>")[1:]] == [
        ["&lt;b&gt;", "1", "100.0% (20.7% to 100.0%)", "0", ""],
        ["nq", "2", "50.0% (9.5% to 90.5%)", "2", "0.0% (0.0% to 65.8%)"],
    ]
