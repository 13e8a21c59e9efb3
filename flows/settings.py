"""Process-wide settings that libraries read when they are imported: call `apply` before importing any of them."""

from __future__ import annotations

import atexit
import io
import os
import pwd
import shutil
import sys
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from opid_core import hub, proxies
from opid_core.errors import ConfigError


def apply(root: str | Path) -> None:
    """Quiet, offline, self-contained libraries; whatever the user has set stays.

    Prefect's local state lives under `<root>/.prefect` (`runs/.prefect` for a root on S3): it is a convenience and may
    be deleted at any time. Nothing is written before `make_prefect_home`. Raises ConfigError for a PREFECT_API_URL that
    is no address: Prefect would fail while it is imported.
    """
    _check_api_url(os.environ.get("PREFECT_API_URL", ""))
    local_root = "runs" if str(root).startswith("s3://") else str(root).removeprefix("file://")
    defaults = {
        "PREFECT_HOME": str(Path(local_root).resolve() / ".prefect" / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",  # to the API: see flows.prefect_api
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        hub.USERS_OFFLINE: os.environ.get("HF_HUB_OFFLINE", "0"),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # A thread that has done its part sleeps until the others have: where another process has its core, one that
        # spins keeps them from it, and a tiny model takes ten times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "WANDB_SILENT": "true",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    fit_machine()
    # Prefect makes its home while it is imported, but not the home's parent, and warns: a check must leave no trace.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")


def _check_api_url(url: str) -> None:
    """Raise ConfigError for what is no address of a server; "" is none. Whether one answers there is asked later."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that hold no IPv6 address, a port that is no number or too large
        is_address = False
    if url and (not is_address or not url.isprintable() or " " in url):
        raise ConfigError(
            f"PREFECT_API_URL={proxies.masked(url)!r}: no address of a server: must be http://HOST:PORT/api or "
            "https://..., without spaces; set it so, or unset it: the command then starts a server of its own"
        )


def fit_machine() -> None:
    """Make up for what some machines lack: output that takes any text (where it is not UTF-8, `\\u2026` stands for what
    it lacks), a user with a name and a home folder, this machine asked without a proxy."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # as in a container run with `--user 1234`; libraries ask for both while they are imported
        os.environ.setdefault("USER", str(os.getuid()))
        if "HOME" not in os.environ:
            from infra.scratch import make_scratch_folder

            os.environ["HOME"] = str(make_scratch_folder())
            atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    proxies.spare_this_machine()


def make_prefect_home() -> None:
    """Make the folder that `apply` chose: Prefect's server needs it."""
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
