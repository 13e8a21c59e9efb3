"""`opid status` of campaigns with warnings and degraded iterations."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from prefect.exceptions import TerminationSignal
from rich.console import Console

from flows.cli.common import console
from flows.cli.status import overview
from flows.reports.formatting import show_table
from flows.reports.standing import LONGEST_S, standing_of, standings
from infra import lease, stages
from infra.manifest import BrokenExpectation, GateResult, Manifest, new_manifest
from infra.store import CampaignStore, commit, location, manifests, open_campaign, put_object
from opid_core.errors import ConfigError, DataError
from tests.factories import CONFIG, make_manifest, refuse


def test_warnings_are_counted_and_degraded_iterations_marked_with_their_reasons(tmp_path, opid):
    root = str(tmp_path / "runs")
    store = open_campaign(root, "demo", CONFIG)
    start = make_manifest(store, tmp_path, None)
    commit(store, start)
    plain = make_manifest(store, tmp_path, start)
    broken = [BrokenExpectation(expectation="e", column=c, severity="warn") for c in "bc"]
    broken.append(BrokenExpectation(expectation="e", column="d"))
    gate = GateResult(
        table="skills", passed=True, held=(("e", "a", 1),), broken=tuple(broken), degraded=("14 of 20 [failed]",)
    )
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


def a_campaign(root, folder, name: str, commits: int) -> CampaignStore:
    """A campaign of 3 iterations with so many commits, the start's included."""
    store = open_campaign(root, name, {**CONFIG, "campaign": name, "iterations": 3})
    newest = None
    for _ in range(commits):
        newest = make_manifest(store, folder / name, newest)
        commit(store, newest)
    return store


def test_all_campaigns_of_a_root_and_of_its_studies_are_listed(tmp_path, opid):
    root = tmp_path / "runs"
    a_campaign(root, tmp_path, "new", 0)
    a_campaign(root, tmp_path, "over", 4)
    a_campaign(root / "study", tmp_path, "method", 2)
    rows = [line.split()[:6] for line in opid("status", "--root", root).splitlines()[1:]]
    assert rows == [
        ["new", "0", "of", "3", "not", "begun"],
        ["over", "3", "of", "3", "finished"],
        ["study/method", "1", "of", "3", "stopped", "rollout"],
    ]
    told = json.loads(opid("status", "--root", root, "--json"))
    assert [(one["campaign"], one["state"], one["stage"]) for one in told] == [
        ("new", "not begun", "initial_policy"),
        ("over", "finished", None),
        ("study/method", "stopped", "rollout"),
    ]


def test_a_long_name_is_never_broken(tmp_path, opid, monkeypatch):
    name = "a-method-with-a-long-name-and-a-seed-too-seed12"
    a_campaign(tmp_path / "runs" / "a-study-with-a-long-name", tmp_path, name, 2)
    for width in (80, 40):
        monkeypatch.setattr(console, "width", width)
        (row,) = opid("status", "--root", tmp_path / "runs").splitlines()[1:]
        assert row.split()[:6] == [f"a-study-with-a-long-name/{name}", "1", "of", "3", "stopped", "rollout"]


def test_on_a_terminal_other_cells_are_broken_before_a_name(tmp_path):
    a_campaign(tmp_path / "a-study", tmp_path, "a-long-name-of-a-method", 2)
    found, _ = standings(str(tmp_path), None)
    terminal = Console(width=40, record=True, force_terminal=True, file=io.StringIO())
    show_table(terminal, overview(found))
    assert "a-study/a-long-name-of-a-method " in terminal.export_text()


def test_campaigns_that_cannot_be_read_are_left_out_and_named(tmp_path, opid):
    root = tmp_path / "runs"
    a_campaign(root, tmp_path, "mine", 2)
    for name in ("old", "study/old"):
        a_campaign((root / name).parent, tmp_path, "old", 1)
        (manifest,) = (root / name / "_commits").iterdir()
        manifest.write_text('{"format": 1, "iteration": 0}', encoding="utf-8")
    found, left_out = standings(str(root), None)
    assert [one.campaign for one in found] == ["mine"]
    assert list(left_out) == ["old", "study/old"]
    assert all("a manifest of format 1;" in reason for reason in left_out.values())
    assert [one["campaign"] for one in json.loads(opid("status", "--root", root, "--json"))] == ["mine"]
    with pytest.raises(DataError, match="a manifest of format 1;"):
        opid("status", "old", "--root", root)
    with pytest.raises(DataError, match=r"none of the campaigns in .* can be read:\n  old: .* format 1;"):
        opid("status", "--root", root / "study")


def test_what_may_not_be_read_beside_a_campaign_does_not_hide_it(tmp_path, monkeypatch):
    for root, name in ((tmp_path, "mine"), (tmp_path, "theirs"), (tmp_path / "lost+found", "old")):
        a_campaign(root, tmp_path / "policies", name, 1)
    shared = a_campaign(tmp_path, tmp_path / "policies", "shared", 1)
    refuse(monkeypatch, "theirs")
    refuse(monkeypatch, "lost+found")
    refuse(monkeypatch, "shared/_commits")
    found, left_out = standings(str(tmp_path), None)
    assert [one.campaign for one in found] == ["mine"]
    assert left_out == {"shared": f"{location(shared, '_commits')}: cannot be read: Permission denied"}


def test_an_empty_root_is_named_whole(tmp_path, opid, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert opid("status") == f"There is no campaign in {tmp_path}/runs.\n"
    (tmp_path / "file").write_text("")
    for root in ("absent", "file"):
        with pytest.raises(ConfigError, match=f"--root: {tmp_path}/{root} is no folder"):
            opid("status", "--root", root)


def test_who_works_on_a_campaign_at_which_stage_and_what_stopped_it(tmp_path, opid):
    root = tmp_path / "runs"
    store = a_campaign(root, tmp_path, "mine", 2)

    def told() -> dict:
        return json.loads(opid("status", "mine", "--root", root, "--json"))

    stages.give_up(store, 2, 0, "EngineDied: the engine is gone")
    stages.record(store, 2, 1, "rollout", {}, {})
    stages.record(store, 2, 1, "extract_skills", {}, {})
    with lease.held(store, 30):
        running = told()
        assert "At iteration 2, route" in opid("status", "mine", "--root", root)
    assert (running["state"], running["stage"]) == ("running", "route")
    assert running["driver"].startswith(f"process {os.getpid()} on ")
    assert [failure.split(": ", 1)[1] for failure in running["failures"]] == ["EngineDied: the engine is gone"]
    assert [one["iteration"] for one in running["commits"]] == [0, 1]
    assert told()["state"] == "stopped"
    assert "Stopped at iteration 2, route\n(after a failure, see below)." in opid("status", "mine", "--root", root)


@pytest.mark.parametrize(
    ("error", "failures", "how"),
    [
        (KeyboardInterrupt(), [], "by Ctrl-C"),
        (KeyboardInterrupt(), ["EngineDied: gone"], "by Ctrl-C, after a failure, see below"),
        (DataError("[config]: no number\nmore"), [], "by DataError: [config]: no number"),
        (DataError("no number"), ["EngineDied: gone"], "by DataError: no number"),
        (DataError("no number\nmore"), ["DataError: no number\nmore"], "after a failure, see below"),
        (TerminationSignal(signal.SIGTERM), [], "by SIGTERM, as of kill, or of a run that was cancelled"),
        (None, [], "with no failure recorded"),
    ],
)
def test_a_stopped_campaign_says_how_its_driver_ended(tmp_path, opid, error, failures, how):
    store = a_campaign(tmp_path, tmp_path, "mine", 2)
    for attempt, reason in enumerate(failures):
        stages.give_up(store, 2, attempt, reason)
    with suppress(KeyboardInterrupt, DataError, TerminationSignal), lease.held(store, 30):
        if error is not None:
            raise error
    assert f"Stopped at iteration 2, rollout\n({how}).\n" in opid("status", "mine", "--root", tmp_path)
    told = json.loads(opid("status", "mine", "--root", tmp_path, "--json"))
    kept = None if error is None else f"{type(error).__name__}: {error}".split("\n")[0].removesuffix(": ")
    assert told["ended"] == ("interrupted" if isinstance(error, KeyboardInterrupt) else kept)


def test_a_damaged_lease_is_told_and_hides_nothing(tmp_path, opid):
    store = a_campaign(tmp_path, tmp_path, "mine", 2)
    put_object(store, "_lease/000001.json", b"")
    standing = standing_of(store, manifests(store))
    assert (standing.state, standing.iterations_done) == ("running", 1)  # its time to live is not over
    assert (standing.driver or "").startswith("an unknown process, its lease is damaged, last heartbeat ")


@pytest.mark.parametrize(("ttl_s", "state"), [(600, "running"), (120, "silent")])
def test_a_driver_is_silent_after_its_own_time_to_live(tmp_path, ttl_s, state):
    store = a_campaign(tmp_path, tmp_path, "mine", 2)
    lease.acquire(store, ttl_s)
    before_s = time.time() - 300
    os.utime(location(store, "_lease/000001.json"), (before_s, before_s))
    assert standing_of(store, manifests(store)).state == state


def test_the_newest_driver_says_how_many_iterations_are_planned(tmp_path, opid):
    store = a_campaign(tmp_path, tmp_path, "mine", 5)  # created with 3, continued with more

    def told() -> tuple[str, str | None, int]:
        standing = standing_of(store, manifests(store))
        return standing.state, standing.stage, standing.iterations_planned

    with lease.held(store, 30):  # an earlier version's, which does not tell
        assert told() == ("running", None, 3)
        assert "None" not in opid("status", "mine", "--root", tmp_path)
    with lease.held(store, 30, iterations=200):
        assert told() == ("running", "rollout", 200)
    assert told() == ("stopped", "rollout", 200)  # by Ctrl-C
    assert "4 iterations committed of 200 planned, stopped" in opid("status", "mine", "--root", tmp_path)
    lease.acquire(store, 30, iterations=200)  # killed
    before_s = time.time() - 300
    os.utime(location(store, "_lease/000003.json"), (before_s, before_s))
    assert told() == ("silent", "rollout", 200)


def test_a_driver_at_work_after_the_last_commit_is_at_no_iteration(tmp_path, opid):
    store = a_campaign(tmp_path, tmp_path, "mine", 4)
    with lease.held(store, 30, iterations=3):
        printed = opid("status", "mine", "--root", tmp_path)
    assert "All that was planned is committed.\nDriver: process " in printed
    assert "None" not in printed


def test_the_time_left_is_that_of_the_newest_iterations(tmp_path):
    store = a_campaign(tmp_path / "runs", tmp_path, "mine", 2)
    chain = manifests(store)
    assert standing_of(store, chain).seconds_left is None
    timed = [m.model_copy(update={"metrics": {"seconds/iteration_s": 50.0}}) for m in chain]
    assert standing_of(store, timed).seconds_left == 100.0
    endless = [m.model_copy(update={"metrics": {"seconds/iteration_s": 1e300}}) for m in chain]
    assert standing_of(store, endless).seconds_left == LONGEST_S
    assert timedelta(seconds=LONGEST_S).days > 365 * 3000


def test_before_the_first_iteration_is_committed_its_finished_stages_tell_the_least_time_left(tmp_path, opid):
    store = a_campaign(tmp_path, tmp_path, "mine", 0)
    with lease.held(store, 30):
        assert "At iteration 0, initial_policy, time left not known yet.\n" in opid(
            "status", "mine", "--root", tmp_path
        )
    store = a_campaign(tmp_path, tmp_path, "other", 1)
    stages.give_up(store, 1, 0, "EngineDied: gone")

    def told() -> tuple[float | None, float | None]:
        standing = standing_of(store, manifests(store))
        return standing.seconds_left, standing.seconds_left_at_least

    assert told() == (None, None)
    for stage, attempt, took_s in (("rollout", 0, 900), ("rollout", 1, 100), ("rescore", 1, 50), ("evaluate", 1, 70)):
        metrics = {f"seconds/stage/{stage}_s": took_s, "seconds/other_s": 1000.0}
        if stage == "rollout":  # of the engine's start: an iteration has none
            metrics |= {f"seconds/stage/{stage}_s": took_s + 80, "seconds/push_s": 80.0}
        stages.record(store, 1, attempt, stage, {"parent": "p"}, {"metrics": metrics})
    assert told() == (None, 300.0)  # two more iterations of at least 150 s
    with lease.held(store, 30):
        printed = opid("status", "other", "--root", tmp_path)
        row = next(line for line in opid("status", "--root", tmp_path).splitlines() if line.startswith("other"))
    assert "At iteration 1, extract_skills, at least about 0:05:00 left, by its stages so far.\n" in printed
    assert row.split()[-2:] == [">", "0:05:00"]
    assert json.loads(opid("status", "other", "--root", tmp_path, "--json"))["seconds_left_at_least"] == 300.0
    commit(store, make_manifest(store, tmp_path / "other", manifests(store)[0]))
    assert told() == (None, None)


@pytest.mark.parametrize("took_s", ["soon", 10**400], ids=["text", "too large"])
def test_a_record_that_holds_no_result_of_a_stage_is_named(tmp_path, took_s):
    store = a_campaign(tmp_path, tmp_path, "mine", 1)
    stages.record(store, 1, 0, "rollout", {}, {"metrics": {"seconds/stage/rollout_s": took_s}})
    with pytest.raises(DataError):
        standing_of(store, manifests(store))
