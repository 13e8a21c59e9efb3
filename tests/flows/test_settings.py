"""What the command makes up for, in processes of their own: it is for what libraries see while they are imported."""

from __future__ import annotations

import os
import subprocess
import sys

_NO_USER = """
import pwd, sys
def unknown(user): raise KeyError(user)
pwd.getpwuid = unknown
from flows import settings
settings.fit_machine()
import getpass, os, prefect
from pathlib import Path
assert getpass.getuser() == str(os.getuid())
assert Path.home().stat().st_mode & 0o777 == 0o700
print("\\u2026", Path.home())
"""


def test_a_user_without_an_entry_or_a_home_and_output_that_is_not_utf8(tmp_path):
    unset = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    inherited = {k: v for k, v in os.environ.items() if k not in unset and not k.startswith("PREFECT_")}
    env = {**inherited, "PYTHONIOENCODING": "ascii", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _NO_USER], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    printed, home = done.stdout.split()
    assert printed == "\\u2026"
    assert home.startswith(str(tmp_path))
    assert not os.path.exists(home)
