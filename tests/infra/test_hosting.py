"""Objects in processes of their own: calls, errors, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import psutil
import pytest

from infra.hosting import HostedGroup, first_done
from opid_core.errors import DataError, InfrastructureError


@contextmanager
def counter(ranks: int = 1):
    group = HostedGroup("counter", "tests.hosted:Counter", 5, ranks=ranks)
    try:
        yield group
    finally:
        group.kill()


def is_running(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_object_keeps_its_state_between_calls_and_reports_its_progress():
    seen = []
    with counter() as group:
        assert group.call("add", 2, on_progress=lambda done, total: seen.append((done, total))) == 7
        assert group.call("add", amount=1) == 8
        assert group.call("process_id") == group.process.pid != os.getpid()
    assert seen == [(1, 2), (2, 2)]


def test_what_was_begun_is_finished_later_or_dropped_by_the_next_call():
    with counter() as group:
        group.begin("add", 2)
        assert group.finish() == 7
        group.begin("add", 1)
        assert group.call("add", 0) == 8
        group.begin("refuse")
        with pytest.raises(DataError, match="field x"):
            group.finish()
        assert group.process.poll() is not None


def test_of_several_groups_the_first_that_is_done_or_dead_is_found():
    with counter() as slow, counter() as quick:
        for group in (slow, quick):
            group.create()  # side by side
        slow.begin("hang")
        quick.begin("add", 2)
        assert first_done([slow, quick]) is quick
        assert quick.finish() == 7
        quick.begin("die")
        assert first_done([slow, quick]) is quick
        with pytest.raises(InfrastructureError, match="the counter died"):
            quick.finish()


def test_an_error_of_a_factory_comes_after_it_was_told_to_begin():
    group = HostedGroup("thing", "tests.hosted:failing", "no such file")
    group.create()
    with pytest.raises(DataError, match="no such file"):
        group.begin("anything")


def test_an_error_of_ours_is_raised_as_it_was_and_the_group_is_gone():
    with counter() as group:
        with pytest.raises(DataError, match=r"^field x: must not be 3$"):
            group.call("refuse")
        assert group.process.poll() is not None


def test_a_bug_is_no_infrastructure_fault_and_shows_its_trace():
    with (
        counter() as group,
        pytest.raises(RuntimeError, match=r"(?s)bug in the counter.*tests/hosted.py.*ZeroDivision"),
    ):
        group.call("divide")


def test_a_fault_of_the_hardware_is_an_infrastructure_fault():
    with counter() as group, pytest.raises(InfrastructureError, match="AcceleratorError: uncorrectable ECC error"):
        group.call("accelerator_fault")


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("plain", r"OSError: \[Errno 27\] File too large"),
        ("torch", r"RuntimeError: .*\(is the disk of TMPDIR full\?\)$"),
        ("safetensors", r"SafetensorError: .* File too large .*\(is the disk of TMPDIR full\?\)$"),
    ],
)
def test_a_full_disk_is_an_infrastructure_fault(way, message, tmp_path):
    with counter() as group, pytest.raises(InfrastructureError, match=message):
        group.call("fill_disk", way, str(tmp_path / "file"))


def test_a_death_is_an_infrastructure_fault_with_the_last_lines():
    with (
        counter() as group,
        pytest.raises(InfrastructureError, match=r"(?s)the counter died \(killed by SIGKILL\).*the last words"),
    ):
        group.call("die")


def test_a_process_that_does_not_start_is_an_infrastructure_fault_with_the_reason():
    group = HostedGroup("counter", "tests.hosted:Counter", 5, env={"PYTHONHOME": "/nowhere"})
    with pytest.raises(InfrastructureError, match=r"(?s)the counter did not start \(exit code 1\).*'/nowhere'"):
        group.call("add", 1)
    group = HostedGroup("counter", "tests.hosted:Counter", 5, start_timeout_s=0)
    with pytest.raises(InfrastructureError, match="the counter did not start within 0 s"):
        group.call("add", 1)
    assert group.process.poll() is not None


def test_a_long_temporary_folder_is_as_good_as_a_short_one(monkeypatch, tmp_path):
    """A socket with a name in it would be refused: such names have at most 107 characters."""
    (folder := tmp_path / ("temporary" * 20)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with counter() as group:
        assert group.call("add", 2) == 7
        assert [path.suffix for path in folder.rglob("*") if not path.is_dir()] == [".log", ".log"]
    assert [*folder.iterdir()] == []


def test_the_error_of_a_factory_comes_with_the_first_call():
    group = HostedGroup("thing", "tests.hosted:failing", "no such file")
    with pytest.raises(DataError, match="no such file"):
        group.call("anything")
    assert group.process.poll() is not None


def test_an_interrupted_call_kills_the_process_and_all_that_it_started():
    with counter() as group:
        grandchild = group.call("spawn")
        assert is_running(grandchild)
        previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("too long")))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(TimeoutError, match="too long"):
                group.call("hang")
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert group.process.poll() is not None
        assert not is_running(grandchild)


@pytest.mark.integration
def test_ranks_work_together_and_the_dead_one_is_named():
    with counter(ranks=2) as group:
        assert group.call("rank") == ("0", "2")
        assert group.call("add", 1) == 6
        with pytest.raises(InfrastructureError, match=r"(?s)the counter on rank 1 of 2 died.*the last words"):
            group.call("die", 1)
        assert group.process.poll() is not None


@pytest.mark.integration
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_process_outlives_a_parent_that_is_killed(ranks):
    """The parent is a process of its own that prints the ids of its children and waits."""
    script = f"""
import psutil, sys
from infra.hosting import HostedGroup
group = HostedGroup("counter", "tests.hosted:Counter", 5, ranks={ranks})
group.call("add", 1)
print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(child)) for child in parent.stdout.readline().split()]
        assert len(children) == (1 if ranks == 1 else 1 + ranks)
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
