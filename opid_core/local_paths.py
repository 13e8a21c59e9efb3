"""Files and folders of this machine as people write them."""

from __future__ import annotations

import os
from pathlib import Path

from opid_core.errors import ConfigError


def local_path(text: str | Path, field: str) -> Path:
    """The path that `text` names, `~` and environment variables expanded. Raises ConfigError, which begins with the
    config's `field`, for a variable that is not set and a home folder that is not known."""
    path = os.path.expandvars(os.path.expanduser(text))
    if "$" in path:
        raise ConfigError(f"{field}: {text}: the environment variable is not set")
    if path.split("/")[0].startswith("~"):
        raise ConfigError(f"{field}: {text}: no such user, or no home folder (HOME is not set)")
    return Path(path)
