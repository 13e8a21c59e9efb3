"""What is shown while something runs: bars on a terminal, lines with the time elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from flows import display
from flows.display import CampaignClock, live_progress
from flows.reports.formatting import Terminal
from opid_core.config import build_config
from tasks import progress

CONFIG = build_config({"campaign": "demo", "iterations": 4})


@pytest.fixture
def now_s(monkeypatch) -> list[float]:
    """The clock of the display, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_of_a_campaign_is_that_of_the_iterations_seen(now_s):
    clock = CampaignClock(4)
    assert clock.left_s() is None
    clock.committed(0)  # how long the start took says nothing about an iteration
    assert clock.left_s() is None
    now_s[0] += 60
    clock.committed(1)
    now_s[0] += 40
    clock.committed(2)
    assert clock.left_s() == 100.0  # two iterations of 50 s
    now_s[0] += 30
    assert clock.left_s() == 70.0
    now_s[0] += 300
    assert clock.left_s() == 0.0


def test_what_was_committed_before_a_resume_is_no_iteration_seen(now_s):
    clock = CampaignClock(4)
    clock.resumed(0)
    now_s[0] += 90
    clock.resumed(2)
    assert (clock.done, clock.left_s()) == (2, None)
    now_s[0] += 50
    clock.committed(3)
    assert clock.left_s() == 50.0


def test_the_time_left_of_a_stage_is_told_from_a_quarter_on(now_s):
    output = io.StringIO()
    with live_progress(Terminal(file=output, width=80)):
        for done in (0, 149, 150, 300):
            progress.report(None, "evaluate", done, 600, f"{done} won")
            now_s[0] += 40
    assert [line.split("Z ")[1] for line in output.getvalue().splitlines()] == [
        "start",
        "evaluate 0/600, 0 won",
        "evaluate 149/600, 149 won",
        "evaluate 150/600, 150 won, 0:04:00 left",  # 80 s for a quarter
        "evaluate 300/600, 300 won, 0:02:00 left",
    ]


def test_a_terminal_tells_the_same_time_left_of_a_stage(now_s):
    output = io.StringIO()
    terminal = Terminal(file=output, width=80, force_terminal=True, color_system=None)
    with live_progress(terminal):
        progress.report(None, "evaluate", 0, 600)
        now_s[0] += 40
        progress.report(None, "evaluate", 149, 600)
        now_s[0] += 40
        before = len(output.getvalue())
        progress.report(None, "evaluate", 150, 600)
    assert "left" not in output.getvalue()[:before]
    assert "0:04:00 left" in output.getvalue()[before:]


def test_without_a_terminal_each_stage_has_lines_with_the_time(now_s):
    output = io.StringIO()
    with live_progress(Terminal(file=output, width=40), CONFIG, "start Prefect"):
        progress.report(None, "start engine")
        progress.report(1, "rollout", 0, 64)
        now_s[0] += 10
        progress.report(1, "rollout", 16, 64, "4 won, 1200 tokens/s")  # too soon for another line
        now_s[0] += 22
        progress.report(1, "rollout", 32, 64, "9 won, 1234 tokens/s")
        progress.report(1, "commit", event="committed", note="iteration 1 of 4 committed")
        now_s[0] += 60
        progress.report(2, "commit", event="committed", note="iteration 2 of 4 committed")
    lines = output.getvalue().splitlines()
    times = [re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ demo ", line) for line in lines]
    assert all(times)
    assert [line[time.end() :] for line, time in zip(lines, times, strict=True) if time] == [
        "start Prefect",
        "start engine",
        "1: rollout 0/64",
        "1: rollout 32/64, 9 won, 1234 tokens/s, 0:00:32 left",
        "iteration 1 of 4 committed",
        "iteration 2 of 4 committed; about 0:02:00 left",
    ]


def test_the_wait_for_a_lease_and_what_was_done_before_do_not_count_as_iterations(now_s):
    output = io.StringIO()
    with live_progress(Terminal(file=output, width=80), CONFIG):
        progress.report(None, "campaign", event="resumed", note="waiting for a heartbeat")
        now_s[0] += 30
        progress.report(2, "campaign", event="resumed", note="resuming")
        now_s[0] += 60
        progress.report(3, "commit", event="committed", note="iteration 3 of 4 committed")
    assert output.getvalue().splitlines()[-1].endswith("iteration 3 of 4 committed; about 0:01:00 left")


def test_on_a_terminal_of_80_columns_a_stage_has_one_line_and_ends_with_its_commit():
    output = io.StringIO()
    terminal = Terminal(file=output, width=80, force_terminal=True, color_system=None)
    with live_progress(terminal, CONFIG, "start Prefect"):
        progress.report(3, "rollout", 12, 64, "9 won, 1234 tokens/s")
        progress.report(3, "commit", event="committed", note="iteration 3 of 4 committed")
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", output.getvalue())
    lines = [line.rstrip() for line in printed.splitlines()]
    assert max(map(len, lines)) <= 80
    assert any("start Prefect" in line for line in lines)
    assert any("3: rollout" in line and "12/64, 9 won, 1234 tokens/s" in line for line in lines)
    assert "iteration 3 of 4 committed" in lines
    after = lines[lines.index("iteration 3 of 4 committed") :]
    assert any("3 of 4 iterations" in line for line in after)
    assert [line for line in after if line][-1].startswith("3: after commit")
