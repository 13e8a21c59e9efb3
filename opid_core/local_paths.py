"""Files and folders of this machine as people write them."""

from __future__ import annotations

import importlib.metadata
import os
import re
from functools import cache
from pathlib import Path

from opid_core.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ADDRESS = re.compile(r"file:///|s3://[^/:]+(/|$)")


def check_root(text: str, field: str) -> None:
    """Raise ConfigError, which begins with `field`, unless `text` names a root of a store: a folder, or an address.

    Of an address no more than the scheme is shown: it may hold a key.
    """
    scheme = _SCHEME.match(text)
    if scheme and "@" in text.split("://")[-1].split("/")[0]:
        raise ConfigError(f"{field}: no credentials in the address; they come from the standard AWS chain")
    if not text or (scheme and not _ADDRESS.match(text)):
        subject = f"what begins with {scheme[0]} " if scheme else ""
        folder = f"; a folder of that name is ./{scheme[0]}..." if scheme and "://" not in text else ""
        raise ConfigError(f"{field}: {subject}must be a folder, file:///FOLDER or s3://BUCKET/PREFIX{folder}")


def root_path(text: str, field: str) -> str:
    """The root of a store that `text` names: an address as it is, a folder as `local_path` has it. Raises ConfigError
    as both."""
    check_root(text, field)
    return text if _SCHEME.match(text) else str(local_path(text, field))


def local_path(text: str | Path, field: str) -> Path:
    """The path that `text` names: `expanded_path`, and what was installed with OPID (`shipped`)."""
    return shipped(expanded_path(text, field))


def expanded_path(text: str | Path, field: str) -> Path:
    """The path that `text` names, `~` and environment variables expanded. Raises ConfigError, which begins with the
    config's `field`, for a variable that is not set and a home folder that is not known."""
    path = os.path.expandvars(os.path.expanduser(text))
    if "$" in path:
        raise ConfigError(f"{field}: {text}: the environment variable is not set")
    if path.split("/")[0].startswith("~"):
        raise ConfigError(f"{field}: {text}: no such user, or no home folder (HOME is not set)")
    return Path(path)


def cache_folder() -> Path:
    """Where everything is kept that may be made or fetched again: `$OPID_CACHE`, by default `~/.cache/opid`."""
    return Path(os.environ.get("OPID_CACHE") or "~/.cache/opid").expanduser()


def shipped(path: Path, folder: Path = Path()) -> Path:
    """`folder / path`, or where `path` begins with `configs/` and does not exist there, what was installed with OPID
    under that name (`configs/quickstart.yaml`, `configs/policies/alfworld_tiny`), if there is such a thing."""
    here = folder / path
    if path.parts[:1] != ("configs",) or here.exists():
        return here
    configs = shipped_configs()
    installed = None if configs is None else configs.joinpath(*path.parts[1:])
    return installed if installed is not None and installed.exists() else here


def shipped_configs() -> Path | None:
    """The folder `configs` of the checkout, or of the installed distribution; None where there is neither."""
    quickstart = shipped_file("configs/quickstart.yaml")
    return quickstart and quickstart.parent


@cache
def shipped_file(name: str) -> Path | None:
    """The file `name` (`docs/metrics.md`) of the checkout, or of the installed distribution; None where there is
    neither."""
    checkout = Path(__file__).parents[1] / name
    if checkout.is_file():
        return checkout
    try:
        files = importlib.metadata.files("opid") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    matches = [file for file in files if file.as_posix().endswith(f"/opid/{name}")]
    return Path(str(matches[0].locate())).resolve() if matches else None
