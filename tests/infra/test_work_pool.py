"""A work pool has one `opid serve` of this machine."""

from __future__ import annotations

import subprocess
import sys
from uuid import uuid4

import pytest

from infra.work_pool import alone
from opid_core.errors import ConfigError

HOLD = """
import sys
from uuid import UUID
from infra.work_pool import alone
with alone("opid", UUID(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_pool_is_served_once_until_whoever_serves_it_is_gone():
    pool_id = uuid4()
    command, pipe = [sys.executable, "-c", HOLD, str(pool_id)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as refused, alone("opid", pool_id):
            pass
        with alone("opid", uuid4()):  # of the same name, on another server
            pass
        other.kill()
    assert str(refused.value) == (
        f"work pool 'opid': another `opid serve` (process {other.pid}) serves it on this machine: stop it, or choose "
        "another --pool"
    )
    for _ in range(2):
        with alone("opid", pool_id):
            pass
