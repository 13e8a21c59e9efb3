"""What the audit pages say of each metric."""

from __future__ import annotations

import pytest
from markupsafe import escape

from flows.reports.audit.metrics import UNKNOWN, Definition, definition_of
from flows.reports.audit.pages import CAMPAIGN_PAGE, page_of, write_pages
from infra.store import read_table
from opid_core.local_paths import shipped_file
from tests.audited import Shape, make_campaign


@pytest.mark.parametrize(
    ("metric", "what"),
    [
        ("rollout/success_micro", "share of training episodes won"),
        ("rollout/success/pick_and_place", "share of a type's episodes won"),
        ("signal/step_own/delta_action", "mean absolute delta on tokens of the action"),
        ("evaluation/t0.4/success_micro", "share of held-out episodes won"),
        ("evaluation/valid_seen_t1/score", "mean score of the held-out episodes, where the environment gives one"),
        ("seconds/rollout_s", "playing"),
        ("update/kl_k3", "KL of the sampling to the trained policy, by the k3 estimator"),
        ("routes/added", "share of steps scored under a second skill too (routing: additive)"),
        ("my_method/own", ""),
        ("rollout/success/a/b", ""),
    ],
)
def test_a_metric_is_found_by_its_name(metric, what):
    assert definition_of(metric).what == what


def test_a_definition_is_plain_text():
    assert definition_of("rollout/success_micro") == Definition(
        what="share of training episodes won",
        range="0 to 1",
        bad="near 0 or 1: groups tie, and outcomes teach nothing (but penalties)",
    )
    assert definition_of("update/kl_k3").note == (
        "KL of the sampling to the trained policy, by the k3 estimator (0 and up). A bad value: above 0.1: steps are "
        "too large"
    )
    assert definition_of("update/tokens").note == "response tokens trained on, in every epoch (0 and up)"
    assert UNKNOWN.note == ""


def test_each_definition_can_be_read_by_itself():
    """A page sorts the metrics: what one says of the one above it would be said of another."""
    page = shipped_file("docs/metrics.md")
    assert page is not None
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) > 90
    for _, what, *_ in rows:
        assert not what.startswith(("the same", "its ", "their ", "upper end ", "that ")) or " of the " in what, what


def test_each_metric_of_an_iteration_stands_beside_what_it_is(tmp_path):
    store, chain = make_campaign(tmp_path, 2, Shape())
    write_pages(store, chain, [2], tmp_path / "pages")
    metrics = {row["name"] for row in read_table(store, chain[2].tables["metrics"]).to_pylist()}
    html = (tmp_path / "pages" / page_of(2)).read_text(encoding="utf-8")
    table = html[html.index('id="metrics"') :]
    for metric in metrics:
        told = definition_of(metric)
        assert told.what, metric
        assert told.range, metric
        row = next(line for line in table.splitlines() if f"<td>{metric}</td>" in line)
        for part in (told.what, told.range, told.bad):
            assert f'<td class="meaning">{escape(part)}</td>' in row
    campaign = (tmp_path / "pages" / CAMPAIGN_PAGE).read_text(encoding="utf-8")
    for metric in ("routes/step", "skills/coverage", "update/kl_k3"):
        assert f'<th title="{escape(definition_of(metric).note)}">' in campaign
