"""Working folders on the local disk that a crash does not leave behind for ever."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.local_objects import faults


def make_scratch_folder() -> Path:
    """A new empty folder, readable by this user alone; those of processes of this machine that are gone are removed
    first. Others that share the temporary folder have places of their own there: their process ids say nothing here."""
    machine = hashlib.sha256(_this_machine().encode()).hexdigest()[:8]
    shared = Path(tempfile.gettempdir()) / f"opid-{os.getuid()}-{machine}"  # short: sockets lie in it
    with faults(shared, "written"):
        shared.mkdir(mode=0o700, exist_ok=True)
        for left in shared.iterdir():
            owner = left.name.split("-")[0]
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=shared))


def _this_machine() -> str:
    """Boot and process-id namespace: where they are equal, process ids can be compared. Two containers differ."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """`make_scratch_folder`, removed at the end."""
    folder = make_scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
