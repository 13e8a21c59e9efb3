"""`opid status` of campaigns with warnings and degraded iterations."""

from __future__ import annotations

from infra.manifest import ExpectationResult, GateResult, Manifest, new_manifest
from infra.store import commit, open_campaign
from tests.factories import CONFIG, make_manifest


def test_warnings_are_counted_and_degraded_iterations_marked_with_their_reasons(tmp_path, opid):
    root = str(tmp_path / "runs")
    store = open_campaign(root, "demo", CONFIG)
    start = make_manifest(store, tmp_path, None)
    commit(store, start)
    plain = make_manifest(store, tmp_path, start)
    results = [ExpectationResult(expectation="e", column=c, passed=c == "a", severity="warn") for c in "abc"]
    results.append(ExpectationResult(expectation="e", column="d", passed=False))
    gate = GateResult(table="skills", passed=True, expectations=tuple(results), degraded=("14 of 20 [failed]",))
    kept = plain.model_dump(
        exclude={"format", "prev", "content", "checksum", "policy_version", "gates", "tables", "policy"}
    )
    kept["metrics"] |= {"signal/step/order": 0.83, "signal/step/placebo_order": 0.5, "signal/episode/order": 0.61}
    kept |= {"tables": plain.tables, "policy": plain.policy, "degraded": ["skills: 14 of 20 [failed]"]}
    marked: Manifest = new_manifest(**kept, gates=[gate], previous=start)
    commit(store, marked)
    lines = opid("status", "demo", "--root", root).splitlines()
    (row,) = [line for line in lines if "1 of 1 passed, 2 warnings" in line]
    assert "1 degraded" in row
    assert "episode 0.61, step 0.83 (placebo 0.50)" in row
    assert any("1 of 1 passed " in line and "│ 0 " in line for line in lines)
    assert "Iteration 1 is degraded: skills: 14 of 20 [failed]" in lines
