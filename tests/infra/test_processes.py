from __future__ import annotations

import os
import sys

from infra import processes


def test_a_child_leads_a_process_group_of_its_own_prints_into_its_log_and_sees_its_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    script = "import os; print(os.getpgrp() == os.getpid(), os.environ['GREETING'])"
    process = processes.start([sys.executable, "-c", script], tmp_path / "log", {"GREETING": "grüß Gott"})
    assert process.wait(30) == 0
    assert processes.last_lines(tmp_path / "log") == "True grüß Gott"


def test_what_lies_in_the_working_directory_is_imported_only_where_pythonpath_names_it(tmp_path, monkeypatch):
    for name in ("random.py", "infra/__init__.py", "tasks/__init__.py", "mine/method.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("print('mine')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([path for path in sys.path if path] + ["mine"]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text("raise SystemExit('the working directory is no place for programs')")
    log = tmp_path / "log"
    for arguments in (["-m", "program"], ["-c", "import random, infra, tasks, method"]):
        process = processes.start([sys.executable, *arguments], log)
        process.wait(30)
    assert processes.last_lines(log).splitlines() == [f"{sys.executable}: No module named program", "mine"]


def test_a_command_that_does_not_exist_says_so_in_the_log(tmp_path):
    log = tmp_path / "log"
    process = processes.start(["no-such-command"], log)
    assert process.wait(30) != 0
    assert "No such file or directory" in processes.last_lines(log, 1)


def test_a_gentle_kill_lets_the_child_tidy_up(tmp_path):
    script = """
import signal, sys
def tidy(*_):
    print("tidied up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, tidy)
print("ready", flush=True)
signal.pause()
"""
    log = tmp_path / "log"
    process = processes.start([sys.executable, "-c", script], log)
    while "ready" not in processes.last_lines(log):
        assert process.poll() is None
    processes.kill(process, grace_s=30)
    assert process.returncode == 0
    assert processes.last_lines(log) == "ready\ntidied up"


def test_a_child_that_does_not_end_is_killed(tmp_path):
    log = tmp_path / "log"
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    process = processes.start([sys.executable, "-c", script], log)
    while "ready" not in processes.last_lines(log):
        assert process.poll() is None
    processes.kill(process, grace_s=0.1)
    assert process.returncode == -9


def test_only_the_last_lines_are_shown(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"{n}\n" for n in range(30)), encoding="utf-8")
    assert processes.last_lines(log, 2) == "28\n29"
    assert processes.last_lines(tmp_path / "none") == "(nothing was printed)"
