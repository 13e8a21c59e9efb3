"""Which machine this process runs on, as far as process ids go."""

from __future__ import annotations

import os
from pathlib import Path


def this_machine() -> str:
    """Boot and process-id namespace: where they are equal, process ids can be compared. Two containers differ."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
