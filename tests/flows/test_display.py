"""What is shown while something runs: bars on a terminal, lines with the time elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from flows import display
from flows.display import Clock, live_progress
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


def committed(iteration: int) -> progress.Progress:
    return progress.Progress(iteration, "commit", event="committed")


def test_the_time_left_of_a_campaign_is_that_of_the_iterations_seen(now_s):
    clock = Clock(4)
    assert clock.left() == ""
    clock.heard(committed(0))  # how long the start took says nothing about an iteration
    assert clock.left() == ""
    now_s[0] += 60
    clock.heard(committed(1))
    now_s[0] += 40
    clock.heard(committed(2))
    assert clock.left() == "about 0:01:40"  # two iterations of 50 s
    now_s[0] += 30
    assert clock.left() == "about 0:01:10"
    now_s[0] += 300
    assert clock.left() == ""  # it takes longer than was thought


def test_what_was_committed_before_a_resume_is_no_iteration_seen(now_s):
    clock = Clock(4)
    for iteration in (0, 2):
        clock.heard(progress.Progress(iteration, "campaign", event="resumed"))
        now_s[0] += 90
    assert (clock.done, clock.left()) == (2, "")
    now_s[0] -= 40
    clock.heard(committed(3))
    assert clock.left() == "about 0:00:50"


def test_before_the_first_commit_all_iterations_take_at_least_as_long_as_the_stages_seen(now_s):
    clock = Clock(4)
    clock.heard(progress.Progress(0, "evaluate", 0, 300))
    now_s[0] += 10
    clock.heard(progress.Progress(0, "evaluate", 150, 300))
    assert clock.left() == ""
    clock.heard(committed(0))
    seconds = [  # iteration and stage, units done and in all, seconds until the next event
        (None, "start engine", 0, 0, 100),
        (1, "rollout", 0, 64, 10),
        (1, "rollout", 8, 64, 10),  # an eighth is too little to tell from
    ]
    for iteration, stage, done, total, took_s in seconds:
        clock.heard(progress.Progress(iteration, stage, done, total))
        now_s[0] += took_s
        assert clock.left() == ""
    clock.heard(progress.Progress(1, "rollout", 32, 64))  # 40 s in all: four of these, less the 20 s that are over
    assert clock.left() == "at least about 0:02:20"
    now_s[0] += 30
    clock.heard(progress.Progress(1, "rescore"))  # rollout took 50 s
    assert clock.left() == "at least about 0:02:30"
    now_s[0] += 10
    assert clock.left() == "at least about 0:03:00"  # 4 times 60 s, less 60 s
    clock.heard(progress.Progress(2, "rollout"))  # played ahead
    now_s[0] += 10
    clock.heard(progress.Progress(1, "evaluate", 100, 300))  # not each iteration has one
    now_s[0] += 10
    assert clock.left() == "at least about 0:03:00"
    clock.heard(committed(1))
    assert clock.left() == "about 0:09:00"  # 3 times 180 s, the start of the engine among them


def test_an_attempt_that_was_given_up_says_nothing_about_an_iteration(now_s):
    clock = Clock(2)
    clock.heard(progress.Progress(1, "rollout", 0, 64))
    now_s[0] += 100
    clock.heard(progress.Progress(1, "rescore"))
    assert clock.left() == "at least about 0:01:40"
    clock.heard(progress.Progress(1, "attempt", event="given up"))
    assert clock.left() == ""
    clock.heard(progress.Progress(1, "rollout"))
    now_s[0] += 60
    clock.heard(progress.Progress(1, "rescore"))
    assert clock.left() == "at least about 0:01:00"
    now_s[0] += 20
    clock.heard(committed(1))
    assert clock.left() == "about 0:01:20"


@pytest.mark.parametrize("between", [(), ("start engine",)])
def test_a_try_of_a_stage_that_failed_says_nothing_about_an_iteration(now_s, between):
    clock = Clock(3)
    clock.heard(committed(0))
    clock.heard(progress.Progress(1, "rollout"))
    now_s[0] += 50
    clock.heard(progress.Progress(1, "rescore", 0, 8))
    now_s[0] += 3600
    clock.heard(progress.Progress(1, "rescore", 4, 8))
    clock.heard(progress.Progress(1, "track", event="fault"))  # another's
    assert clock.left() == "at least about 5:01:40"  # three times 50 s and twice an hour, less what is over
    clock.heard(progress.Progress(1, "rescore", event="fault"))
    assert (clock.left(), clock.stage_left_s) == ("at least about 0:01:40", None)
    clock.heard(progress.Progress(1, "rescore"))
    for stage in between:
        clock.heard(progress.Progress(None, stage))
        now_s[0] += 30
        clock.heard(progress.Progress(1, "rescore"))
    now_s[0] += 10
    clock.heard(progress.Progress(1, "update"))
    assert clock.left() == "at least about 0:02:00"  # three times 60 s, less 60 s
    clock.heard(committed(1))
    assert clock.left() == ("about 0:03:00" if between else "about 0:02:00")


def test_of_an_iteration_whose_first_stages_were_done_before_no_least_time_is_told(now_s):
    clock = Clock(3)
    for stage, note in (("rollout", "reused"), ("rescore", ""), ("update", "")):
        clock.heard(progress.Progress(1, stage, note=note))
        now_s[0] += 20
        assert clock.left() == ""
    clock.heard(committed(1))
    clock.heard(progress.Progress(2, "rollout"))
    now_s[0] += 20
    clock.heard(progress.Progress(2, "rescore"))
    assert clock.left() == "at least about 0:00:20"


def test_an_iteration_counts_as_seen_unless_a_part_of_it_was_done_before(now_s):
    clock = Clock(6)
    clock.heard(progress.Progress(2, "campaign", event="resumed"))
    clock.heard(progress.Progress(3, "update", note="reused"))  # in an earlier process
    now_s[0] += 5
    clock.heard(committed(3))
    assert clock.left() == ""
    for stage, iteration in (("rollout", 4), ("update", 4), ("rollout", 5), ("update", 4)):
        clock.heard(progress.Progress(iteration, stage))
        now_s[0] += 25
    clock.heard(committed(4))
    assert clock.left() == "about 0:03:20"
    clock.heard(progress.Progress(5, "rollout", note="reused"))  # played ahead, and seen
    now_s[0] += 60
    clock.heard(committed(5))
    assert clock.left() == "about 0:01:20"  # one of 100 s and one of 60 s


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
        "1: rollout 32/64, 9 won, 1234 tokens/s, 0:00:32 left; at least about 0:03:44 left in all",  # 4 x 64 s - 32 s
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


@pytest.mark.parametrize(("took_s", "told"), [(59, "0:37:22"), (10 * 86400, "9120 h")])  # 38 times as long
@pytest.mark.parametrize("seen", [False, True])
def test_on_a_terminal_of_80_columns_the_time_left_pushes_nothing_out(now_s, took_s, told, seen):
    output = io.StringIO()
    terminal = Terminal(file=output, width=80, force_terminal=True, color_system=None)
    with live_progress(terminal, CONFIG.model_copy(update={"iterations": 40})):
        progress.report(1, "campaign", event="resumed")
        progress.report(2, "rescore")
        now_s[0] += took_s
        if seen:
            progress.report(2, "commit", event="committed")
        before = len(output.getvalue())
        progress.report(2 + seen, "rollout", 12, 64, "9 won, 1234 tokens/s")
    shown = output.getvalue()[before:]
    row = re.search(rf"{1 + seen} of 40 iterations +(> )?{told} left", shown)
    assert row is not None
    assert (row[1] is None) == seen
    assert "12/64, 9 won, 1234 tokens/s" in shown


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
