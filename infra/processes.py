"""Child processes that never outlive their parent, and a way to end them with all that they started.

A child is the leader of a process group of its own, its output goes to a file, and the kernel kills it when its parent
dies, however that happens (PR_SET_PDEATHSIG). Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1

PYTHON = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
"""For `python -m`: the working directory is no place for imports (PYTHONPATH is), whatever lies there: a `random.py`,
or a folder named `tasks`. Text is UTF-8, whatever the locale: logs, and files that libraries open as they like."""

# The kernel's signal comes when the *thread* that started the child ends: this one lives as long as the process.
_starter = ThreadPoolExecutor(1, thread_name_prefix="starts-children")


def start(
    arguments: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    *,
    without: Collection[str] = (),
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Run `arguments` in a new process group that dies with this process; stdout and stderr are appended to `log`.

    `env` and `PYTHON` are added to this process's environment, of which the variables `without` are left out; the file
    descriptor `stdin`, a socket for example, becomes the child's standard input.
    """
    # A module that execs the command: code between fork and exec would be unsafe beside threads.
    launcher = [sys.executable, "-m", "infra.processes", str(os.getpid()), *arguments]
    inherited = {name: value for name, value in os.environ.items() if name not in without}
    with open(log, "ab") as output:
        return _starter.submit(
            subprocess.Popen,
            launcher,
            env={**inherited, **PYTHON, **(env or {})},
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ).result()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def collect_garbage_less_often() -> None:
    """For a process that imports much: the objects of modules stay, and the collector goes through them again and again
    while they are made. It looks at every 50,000 new ones then, not at every 700."""
    gc.set_threshold(50_000, 20, 50)


def kill(process: subprocess.Popen[bytes], *, grace_s: float = 0.0) -> None:
    """End `process` and everything below it: SIGTERM first where `grace_s` is given, then SIGKILL."""
    if grace_s and process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in family:  # those that made a session of their own, as torchrun's ranks do
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=10)
    process.wait()


@contextmanager
def killed_when_left(end: Callable[[], None]) -> Iterator[None]:
    """Around what processes are asked to do: a fault or an interrupt in it calls `end`, which kills them."""
    try:
        yield
    except BaseException:
        end()
        raise


def becomes_ready(process: subprocess.Popen[bytes], is_ready: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `is_ready` says so, asked again and again, before `process` ends and `timeout_s` have passed."""
    deadline_s = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline_s:
        if is_ready():
            return True
        time.sleep(0.1)
    return False


def last_lines(log: Path, count: int = 20) -> str:
    """The last `count` lines of a log, or a word that there are none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join(lines[-count:]) or "(nothing was printed)"


def _launch(parent: str, *arguments: str) -> None:
    die_with_parent()
    if os.getppid() != int(parent):  # it died before we asked
        sys.exit("the parent process is gone")
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    _launch(*sys.argv[1:])
