from __future__ import annotations

import os
import subprocess
import sys

_USES_A_SERVER = """
import sys
from flows import settings
settings.apply(sys.argv[1])
from flows.prefect_api import prefect_api
with prefect_api():
    from prefect import get_client
    with get_client(sync_client=True) as client:
        print(client.api_healthcheck())
"""


def test_two_campaigns_that_begin_together_in_a_new_root_share_its_database(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", _USES_A_SERVER, str(tmp_path / "runs")]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=600)[0] for process in both] == ["None\n", "None\n"]
