"""Objects in processes of their own, on this machine and on the nodes of a cluster: calls, errors, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from infra import hosting, ray_hosting
from infra.groups import Group
from infra.hosting import HostedGroup
from opid_core.errors import DataError, InfrastructureError

Make = Callable[..., Group]
"""Makes a group: name, factory and its arguments; `ranks`, `env`, `start_timeout_s`."""


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.cluster)])
def implementation(request) -> str:
    return request.param


@pytest.fixture
def make(implementation, request) -> Make:
    if implementation == "local":
        return HostedGroup
    places = request.getfixturevalue("ray_places")

    def in_places(name: str, factory: str, *arguments: Any, ranks: int = 1, env=None, **options: Any) -> Group:
        seats = [*range(ranks)]
        return places.group(name, factory, *arguments, seats=seats, envs=[env or {}] * ranks, **options)

    return in_places


@pytest.fixture
def first_done(implementation) -> Callable[[Sequence[Any]], Group]:
    return hosting.first_done if implementation == "local" else ray_hosting.first_done


@pytest.fixture
def counter(make):
    @contextmanager
    def making(ranks: int = 1):
        group = make("counter", "tests.hosted:Counter", 5, ranks=ranks)
        try:
            yield group
        finally:
            group.kill()

    return making


def test_a_caller_s_own_rank_is_not_inherited(monkeypatch):
    for name in ("LOCAL_RANK", "RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for env, rank in (({}, ("none", "none")), ({"RANK": "0", "WORLD_SIZE": "1"}, ("0", "1"))):
        group = HostedGroup("counter", "tests.hosted:Counter", 5, env=env)
        try:
            assert group.call("rank") == rank
        finally:
            group.kill()


def is_running(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_object_keeps_its_state_between_calls_and_reports_its_progress(counter):
    seen = []
    with counter() as group:
        assert group.call("add", 2, on_progress=lambda done, total: seen.append((done, total))) == 7
        assert group.call("add", amount=1) == 8
        process_id = group.call("process_id")
        assert process_id != os.getpid()
        assert is_running(process_id)
    assert not is_running(process_id)
    assert seen == [(1, 2), (2, 2)]


def test_what_was_begun_is_finished_later_or_dropped_by_the_next_call(counter):
    with counter() as group:
        process_id = group.call("process_id")
        group.begin("add", 2)
        assert group.finish() == 7
        group.begin("add", 1)
        assert group.call("add", 0) == 8
        group.begin("refuse")
        with pytest.raises(DataError, match="field x"):
            group.finish()
        assert not is_running(process_id)


def test_of_several_groups_the_first_that_is_done_or_dead_is_found(counter, first_done):
    with counter() as slow, counter() as quick:
        for group in (slow, quick):
            group.create()  # side by side
        slow.begin("hang")
        quick.begin("add", 2)
        assert first_done([slow, quick]) is quick
        assert quick.finish() == 7
        quick.begin("die")
        assert first_done([slow, quick]) is quick
        with pytest.raises(InfrastructureError, match=r"the counter.* died"):
            quick.finish()


def test_an_error_of_a_factory_comes_after_it_was_told_to_begin(make):
    group = make("thing", "tests.hosted:failing", "no such file")
    group.create()
    with pytest.raises(DataError, match="no such file"):
        group.call("anything")


def test_an_error_of_ours_is_raised_as_it_was_and_the_group_is_gone(counter):
    with counter() as group:
        process_id = group.call("process_id")
        with pytest.raises(DataError, match=r"^field x: must not be 3$"):
            group.call("refuse")
        assert not is_running(process_id)
        for later in (lambda: group.call("process_id"), lambda: group.begin("process_id"), group.finish):
            with pytest.raises(InfrastructureError, match="the counter is gone"):
                later()


def test_a_bug_is_no_infrastructure_fault_and_shows_its_trace(counter):
    with (
        counter() as group,
        pytest.raises(RuntimeError, match=r"(?s)bug in the counter.*tests/hosted.py.*ZeroDivision"),
    ):
        group.call("divide")


def test_a_fault_of_the_hardware_is_an_infrastructure_fault(counter):
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
def test_a_full_disk_is_an_infrastructure_fault(counter, way, message, tmp_path):
    with counter() as group, pytest.raises(InfrastructureError, match=message):
        group.call("fill_disk", way, str(tmp_path / "file"))


def test_a_death_is_an_infrastructure_fault_with_the_last_lines(counter):
    with (
        counter() as group,
        pytest.raises(InfrastructureError, match=r"(?s)the counter.* died \(killed by SIGKILL\).*the last words"),
    ):
        group.call("die")


def test_a_process_that_does_not_start_is_an_infrastructure_fault_with_the_reason(make):
    group = make("counter", "tests.hosted:Counter", 5, env={"PYTHONHOME": "/nowhere"})
    with pytest.raises(InfrastructureError, match=r"(?s)the counter.* did not start \(exit code 1\).*'/nowhere'"):
        group.call("add", 1)


def test_a_process_that_takes_too_long_to_start_is_an_infrastructure_fault(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(600)\n", encoding="utf-8")  # at each start
    group = HostedGroup("counter", "tests.hosted:Counter", 5, start_timeout_s=0, env={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(InfrastructureError, match="the counter did not start within 0 s"):
        group.call("add", 1)
    assert group.process.poll() is not None


def test_a_long_temporary_folder_is_as_good_as_a_short_one(monkeypatch, tmp_path):
    """A socket with a name in it would be refused: such names have at most 107 characters."""
    (folder := tmp_path / ("temporary" * 20)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    group = HostedGroup("counter", "tests.hosted:Counter", 5)
    assert group.call("add", 2) == 7
    assert [path.suffix for path in folder.rglob("*") if not path.is_dir()] == [".log", ".log"]
    group.kill()
    assert [*folder.iterdir()] == []


def test_the_error_of_a_factory_comes_with_the_first_call(make):
    group = make("thing", "tests.hosted:failing", "no such file")
    with pytest.raises(DataError, match="no such file"):
        group.call("anything")


def test_an_interrupted_call_kills_the_process_and_all_that_it_started(counter):
    with counter() as group:
        process_id, grandchild = group.call("process_id"), group.call("spawn")
        assert is_running(grandchild)
        previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("too long")))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(TimeoutError, match="too long"):
                group.call("hang")
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert not is_running(process_id)
        assert not is_running(grandchild)


@pytest.mark.integration
def test_ranks_work_together_and_the_dead_one_is_named(counter):
    with counter(ranks=2) as group:
        process_id = group.call("process_id")
        assert group.call("rank") == ("0", "2")
        assert group.call("add", 1) == 6
        with pytest.raises(InfrastructureError, match=r"(?s)the counter on rank 1 of 2.* died.*the last words"):
            group.call("die", 1)
        assert not is_running(process_id)


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
