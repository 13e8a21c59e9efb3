"""A campaign that is ended in every way and doubled: what it ends with is what nothing disturbed."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.reference_campaigns import contents, differences, machine, recorded
from infra.store import pruned, verify
from tests.integration.campaigns import (
    LIMIT_S,
    before_the_second_iteration,
    finish,
    kill,
    opened,
    processes_of,
    same_content,
    start,
    wait_for,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

KEEP_ONE = "storage.optimizer_states=1"


def test_ended_in_every_way_it_goes_on_and_ends_as_what_nothing_disturbed(
    campaign, prefect_database, prefect_server, tmp_path
):
    """Its second iteration is terminated in the rollout, interrupted while it scores again, killed with all its
    processes in the evaluation (in the update: test_chaos.py, a slow test), each time started again by the same
    command; in the end twice at once, of which one works and the other stops. It keeps the newest optimizer state
    alone."""
    root = tmp_path / "ended"
    stages = before_the_second_iteration(campaign, root) / "_stages" / "000002" / "000"
    records: dict[str, dict[str, Any]] = {}

    def run_until(happened: Callable[[], bool], prefect=prefect_database):
        process = start(root, prefect, KEEP_ONE)
        wait_for(process, root, happened)
        return process

    def all_is_over() -> None:
        psutil.wait_procs(processes_of(root), timeout=20)
        assert processes_of(root) == []
        for path in stages.glob("*.json"):
            records.setdefault(path.stem, json.loads(path.read_bytes())["result"])

    def is_hosted(process: psutil.Process) -> bool:
        with suppress(psutil.Error):  # it has just ended
            return "infra.hosting" in process.cmdline()
        return False

    def rolls_out() -> bool:
        time.sleep(0.1)
        return any(map(is_hosted, processes_of(root)))

    process = run_until(rolls_out, prefect_server)
    process.send_signal(signal.SIGTERM)
    assert finish(process, root, expected_code=143).endswith("The same command continues where it was.\n")
    all_is_over()

    process = run_until((stages / "route.json").exists)
    process.send_signal(signal.SIGINT)
    printed = finish(process, root, expected_code=130)
    assert "The same command continues where it was" in printed
    assert "Traceback" not in printed
    all_is_over()
    check_cancelled_runs_with_their_reason_and_their_logs(root / ".prefect" / "home" / "prefect.db")
    shutil.rmtree(root / ".prefect")  # Prefect's whole database is lost

    kill(run_until((stages / "update.json").exists, prefect_server))  # the evaluation follows
    all_is_over()

    drivers = [start(root, prefect_server, KEEP_ONE) for _ in range(2)]
    codes = [driver.wait(timeout=LIMIT_S) for driver in drivers]
    resumed = opened(root, (root / "output.txt").read_text(encoding="utf-8"))
    assert sorted(codes) == [0, 2], resumed.printed
    assert "works on it; wait until it ends or stop it" in resumed.printed
    assert "Traceback" not in resumed.printed
    assert same_content(resumed, campaign)
    if (record := recorded())["machine"] == machine():  # elsewhere floats round differently
        assert differences(contents(resumed.chain), record["campaigns"]["tiny"]) == []
    gone = pruned(resumed.store)
    assert {path.split("/")[1] for path in gone} == {"000001"}  # the start has none, the newest stays
    assert verify(resumed.store) == verify(campaign.store) - len(gone)
    assert resumed.printed.count("Resuming tiny after 1 of 2 iterations, about ") == 3 + 1
    # What a stage had recorded before the end is what was committed: it was not made again.
    last = resumed.chain[-1].model_dump(mode="json")
    assert set(records) == {"rollout", "extract_skills", "route", "rescore", "update"}
    for stage, result in records.items():
        for table, record in result["tables"].items():
            assert last["tables"][table] == record, stage
    assert last["policy"] == records["update"]["policy"]


def check_cancelled_runs_with_their_reason_and_their_logs(path: Path) -> None:
    with sqlite3.connect(path) as database:
        query = "SELECT run.name, state.message FROM flow_run run JOIN flow_run_state state ON run.state_id = state.id "
        cancelled = database.execute(query + "WHERE state.name = 'Cancelled'").fetchall()
        logs = [message for (message,) in database.execute("SELECT message FROM log")]
    reason = "Interrupted (Ctrl-C). The same command continues where it was."
    assert sorted(cancelled) == [("iteration-2", reason), ("tiny", reason)]
    assert "route of iteration 2 begins" in logs
