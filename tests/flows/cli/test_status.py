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
    at = next(number for number, line in enumerate(lines) if "1 of 1 (2)" in line)
    first, second = lines[at : at + 2]
    assert (first.split()[0], second.split()[0]) == ("1", "degraded")
    assert "episode 0.61" in first
    assert "step 0.83 (0.50)" in second
    assert max(map(len, lines[1 : at + 2])) <= 80
    assert "Iteration 1 is degraded: skills: 14 of 20 [failed]" in lines
    assert max(map(len, lines[1 : at + 2])) <= 80
