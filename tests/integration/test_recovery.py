"""Campaigns that are killed and doubled: what they end with is what nothing disturbed."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from typing import Any

import psutil
import pytest

from infra.store import pruned, verify
from tests.integration.campaigns import LIMIT_S, finish, kill, opened, processes_of, same_content, start, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

KEEP_ONE = "storage.optimizer_states=1"
STAGES = ("rollout", "extract_skills", "route", "rescore", "update", "evaluate")


def test_killed_in_the_middle_of_every_stage(campaign, tmp_path):
    """SIGKILL to all its processes while each stage of the second iteration runs, then the same command again; in the
    end twice at once, of which one works and the other stops. It keeps the newest optimizer state alone."""
    root = tmp_path / "killed"
    folder = root / "tiny"
    records: dict[str, dict[str, Any]] = {}
    before = folder / "_commits" / "000001.json"  # written by the stage before the one that is killed
    for stage in STAGES:
        process = start(root, KEEP_ONE)
        wait_for(process, root, before.exists)
        kill(process)
        psutil.wait_procs(processes_of(root), timeout=20)
        assert processes_of(root) == []
        if before.parent.name == "000":
            records[before.stem] = json.loads(before.read_bytes())["result"]
        before = folder / "_stages" / "000002" / "000" / f"{stage}.json"
        if stage == "route":
            shutil.rmtree(root / ".prefect")  # Prefect's whole database is lost

    drivers = [start(root, KEEP_ONE), start(root, KEEP_ONE)]
    codes = [driver.wait(timeout=LIMIT_S) for driver in drivers]
    resumed = opened(root, (root / "output.txt").read_text(encoding="utf-8"))
    assert sorted(codes) == [0, 2], resumed.printed
    assert "works on it; wait until it ends or stop it" in resumed.printed
    assert "Traceback" not in resumed.printed
    assert same_content(resumed, campaign)
    gone = pruned(resumed.store)
    assert {path.split("/")[1] for path in gone} == {"000001"}  # the start has none, the newest stays
    assert verify(resumed.store) == verify(campaign.store) - len(gone)
    assert resumed.printed.count("Resuming tiny after 1 of 2 iterations.") == len(STAGES)
    # What a stage had recorded before the kill is what was committed: it was not made again.
    last = resumed.chain[-1].model_dump(mode="json")
    assert set(records) == set(STAGES[:-1])
    for stage, result in records.items():
        for table, record in result["tables"].items():
            assert last["tables"][table] == record, stage
    assert last["policy"] == records["update"]["policy"]


def test_ctrl_c_leaves_cancelled_runs_with_their_reason_and_their_logs(tmp_path):
    root = tmp_path / "interrupted"
    process = start(root)
    wait_for(process, root, (root / "tiny" / "_stages" / "000000" / "000" / "initial_policy.json").exists)
    process.send_signal(signal.SIGINT)
    printed = finish(process, root, expected_code=130)
    assert "The same command continues where it was" in printed
    assert "Traceback" not in printed
    assert processes_of(root) == []
    with sqlite3.connect(root / ".prefect" / "home" / "prefect.db") as database:
        query = "SELECT run.name, state.name, state.message FROM flow_run run JOIN flow_run_state state "
        runs = database.execute(query + "ON run.state_id = state.id").fetchall()
        logs = [message for (message,) in database.execute("SELECT message FROM log")]
    reason = "Interrupted (Ctrl-C). The same command continues where it was."
    assert sorted(runs) == [("iteration-0", "Cancelled", reason), ("tiny", "Cancelled", reason)]
    assert "initial_policy of iteration 0 begins" in logs
    assert "0: committed" not in printed
