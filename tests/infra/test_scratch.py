from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from infra import scratch
from infra.scratch import make_scratch_folder, scratch_folder


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_a_dead_process_left_is_removed_and_what_lives_stays():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with scratch_folder() as mine:
        assert mine.name.startswith(f"{os.getpid()}-")
        left = mine.with_name(f"{ended.pid}-left")
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
    assert make_scratch_folder().parent != theirs.parent
    assert theirs.is_dir()
