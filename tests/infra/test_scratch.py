from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack

import pytest

from infra import scratch
from infra.local_objects import one_process_at_a_time
from infra.scratch import make_scratch_folder, others_scratch, scratch_folder, scratch_lock


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_a_dead_process_left_is_removed_and_what_lives_stays():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with scratch_folder() as mine:
        left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
        left.mkdir()
        other = make_scratch_folder()
        assert sorted(mine.parent.iterdir()) == sorted([mine, other])
    assert list(other.parent.iterdir()) == [other]


def test_the_scratch_of_another_machine_is_left_alone(monkeypatch):
    """Two containers may give one number to two processes, of which one does not see the other."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(scratch, "_this_machine", lambda: "another machine")
        elsewhere.setattr(os, "getpid", lambda: ended.pid)
        theirs = make_scratch_folder()
        (theirs / "copy" / "model").mkdir(parents=True)
    mine = make_scratch_folder()
    assert theirs.is_dir()
    assert others_scratch("copy/model") is None
    (mine / "copy" / "model").mkdir(parents=True)
    assert others_scratch("copy/model") == mine / "copy" / "model"


def test_a_lock_keeps_only_those_waiting_that_ask_for_the_same_key_and_leaves_nothing(tmp_path):
    code = "import sys; from infra.scratch import scratch_lock\nwith scratch_lock(sys.argv[1]): print('in')"
    env = os.environ | {"TMPDIR": str(tmp_path)}

    def asks(key: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code, key], env=env, stdout=subprocess.PIPE, text=True)

    with scratch_lock("ours"):
        waits = asks("ours")
        assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]
        with asks("another") as goes_on:
            assert goes_on.communicate(timeout=60)[0] == "in\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waits.wait(2)
    with waits:
        assert waits.communicate(timeout=60)[0] == "in\n"
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_removed_and_one_that_is_held_is_not(tmp_path):
    code = (
        "import os, signal; from infra.scratch import scratch_lock\n"
        "with scratch_lock('left'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, timeout=60)
    (left,) = tmp_path.iterdir()
    with scratch_lock("held"):
        (held,) = {*tmp_path.iterdir()} - {left}
        folder = make_scratch_folder()
        assert {*tmp_path.iterdir()} == {held, folder}


def test_a_lock_that_was_removed_while_one_waited_for_it_lets_nobody_in_beside_the_next_one(tmp_path):
    entered, first, second = threading.Event(), ExitStack(), ExitStack()

    def enter() -> None:
        with scratch_lock("ours"):
            entered.set()

    first.enter_context(scratch_lock("ours"))
    (lock,) = tmp_path.iterdir()
    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.5)
    lock.unlink()
    second.enter_context(one_process_at_a_time(lock))
    lock.rename(kept := tmp_path / "kept")  # the first one's end removes what has the lock's name
    first.close()
    kept.rename(lock)
    assert not entered.wait(0.5)
    second.close()
    assert entered.wait(60)
    waiting.join(60)


def test_it_is_ours_alone_and_new_and_what_another_put_there_is_neither_used_nor_followed(monkeypatch, tmp_path):
    with monkeypatch.context() as before, subprocess.Popen([sys.executable, "-c", ""]) as ended:
        before.setattr(os, "getpid", lambda: ended.pid)
        planted, link = make_scratch_folder(), make_scratch_folder()
    link.rmdir()
    (target := tmp_path / "target").mkdir()
    link.symlink_to(target)
    with monkeypatch.context() as other_user:
        other_user.setattr(os, "getuid", lambda: planted.stat().st_uid + 1)
        mine = make_scratch_folder()
    assert (mine.lstat().st_mode, [*mine.iterdir()]) == (0o40700, [])
    assert sorted(tmp_path.iterdir()) == sorted([planted, link, target, mine])
    make_scratch_folder()
    assert not planted.exists()
    assert target.is_dir()
