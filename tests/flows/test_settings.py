"""What the command makes up for, in processes of their own: it is for what libraries see while they are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flows import settings
from opid_core.errors import ConfigError

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


@pytest.mark.parametrize(("set_before", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_leave_their_core_to_others(tmp_path, set_before, policy):
    """As the runtime itself tells, which reads it once, when torch is imported."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env = {**inherited, **set_before, "OMP_DISPLAY_ENV": "TRUE"}
    code = f"from flows import settings; settings.apply({str(tmp_path)!r}); import torch"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1/api", "http://[not-an-address]:4200/api", "http://127.0.0.1:port/api", "http://host:70000/api"),
        *("127.0.0.1:4200/api", "localhost:4200/api", "/api", "ftp://host/api", "http://", "http:///api"),
        *("http://127.0.0.1:4200/ api", " http://127.0.0.1:4200/api", "http://my host/api", "http://host/api\n", " "),
    ],
)
def test_what_is_no_address_of_a_prefect_server_is_refused_before_prefect_is_imported(monkeypatch, tmp_path, url):
    monkeypatch.setattr(os, "environ", {**os.environ, "PREFECT_API_URL": url})
    with pytest.raises(ConfigError, match=r"^PREFECT_API_URL=.*http://HOST:PORT/api"):
        settings.apply(tmp_path)


@pytest.mark.parametrize(
    "url", ["", "http://127.0.0.1:4200/api", "http://[::1]:4200/api", "https://api.prefect.cloud/api/accounts/1"]
)
def test_an_address_of_a_prefect_server_is_taken(monkeypatch, tmp_path, url):
    monkeypatch.setattr(os, "environ", {**os.environ, "PREFECT_API_URL": url})
    settings.apply(tmp_path)


def test_a_refused_address_shows_no_password(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {**os.environ, "PREFECT_API_URL": "http://me:secret@host:port/api"})
    with pytest.raises(ConfigError) as caught:
        settings.apply(tmp_path)
    assert "secret" not in str(caught.value)
