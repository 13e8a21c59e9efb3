"""Policies by their name on the Hugging Face hub: which texts are names, and the folder of the one that is meant.

The hub is asked in a process of its own: this one, its engine and its learner read local folders and stay offline.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from opid_core.errors import ConfigError, InfrastructureError
from opid_core.local_paths import local_path

USERS_OFFLINE = "OPID_USERS_HF_HUB_OFFLINE"
"""Environment variable: what the user's HF_HUB_OFFLINE was before OPID set its own."""

BASE_MODEL = "base_model.json"
"""File of a policy's folder that says from which model of the hub, and which revision, the policy comes."""

TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
WEIGHTS = ("*.safetensors",)
LEFT_OUT = ("*/*", "consolidated*")
"""Folders (other formats) and the second copy of the weights that some models have."""

_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_SCHEME = "hf://"
BAD_INPUT, FAULT = 2, 3
"""Exit codes of the processes that ask the hub."""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub. `revision`: a branch, a tag or a commit; "": its main branch."""

    name: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{_SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


def hub_model(policy: str | Path) -> HubModel | None:
    """The model that `policy` names, `hf://ORG/NAME` or `ORG/NAME`, both with `@REVISION` or without it; None for a
    folder, the plain `ORG/NAME` of one that is there included. Raises ConfigError for `hf://` with anything else.
    """
    text = str(policy)
    model = named_model(text)
    if text.startswith(_SCHEME) and model is None:
        raise ConfigError(f"policy: {text}: expected hf://ORG/NAME or hf://ORG/NAME@REVISION")
    return model if text.startswith(_SCHEME) or not Path(text).exists() else None


def named_model(text: str) -> HubModel | None:
    """The model that `text` would name, whatever folders there are; None where it is no name of one."""
    match = _NAME.fullmatch(text.removeprefix(_SCHEME))
    return match and HubModel(match["name"], match["revision"] or "")


def policy_folder(policy: str | Path, *, weights: bool = True) -> Path:
    """The folder of the policy that `policy` names; one of the hub is downloaded into the hub's cache, if it is not
    there. Without `weights` it may hold config and tokenizer alone.

    Raises ConfigError for a model that the hub does not have or show, and where the hub may not be asked;
    InfrastructureError where it does not answer.
    """
    model = hub_model(policy)
    if model is None:
        return local_path(policy, "policy")
    return _download(pinned(model), weights)


def pinned(model: HubModel) -> HubModel:
    """`model` at the commit that its revision is now: looked up once, so one process never sees two."""
    return HubModel(model.name, _commit(model))


@lru_cache
def _commit(model: HubModel) -> str:
    return _download(model, False).name


@lru_cache
def _download(model: HubModel, weights: bool) -> Path:
    """The folder of `model` in the hub's cache, `.../snapshots/<commit>`."""
    return Path(ask(__name__, "policy", model.name, model.revision, "weights" if weights else ""))


def ask(module: str, field: str, *arguments: str) -> str:
    """What `python -m module ARGUMENTS` prints: it asks the hub, with the user's own settings.

    Raises ConfigError or InfrastructureError, as its exit code says, with `field` and what it prints.
    """
    environment = dict(os.environ)
    if USERS_OFFLINE in environment:
        environment["HF_HUB_OFFLINE"] = environment[USERS_OFFLINE]
    if sys.stderr.isatty():
        environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    command = [sys.executable, "-P", "-m", module, *arguments]
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    reply = child.stdout.strip()
    if child.returncode == BAD_INPUT:
        raise ConfigError(f"{field}: {reply}")
    if child.returncode:
        reply = reply or f"{arguments[0]}: the process that asks the hub ended with exit code {child.returncode}"
        raise InfrastructureError(f"{field}: {reply}")
    return reply


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _main(name: str, revision: str, weights: str) -> int:
    """Download a model and print its folder, or print what is wrong; returns the exit code."""
    import httpx2
    from huggingface_hub import constants, errors, snapshot_download

    model = HubModel(name, revision)
    patterns = [*TEXTS, *(WEIGHTS if weights else ())]
    try:
        print(snapshot_download(name, revision=revision or None, allow_patterns=patterns, ignore_patterns=[*LEFT_OUT]))
        return 0
    except errors.GatedRepoError:
        print(f"{model}: its owner asks you to accept a licence on the hub, then: hf auth login (or set HF_TOKEN)")
    except errors.RevisionNotFoundError:
        print(f"{model}: the hub has the model, but no such revision")
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        print(
            f"{name}: no such folder here, and no such model on the hub, or one that you may not see "
            "(hf auth login, or HF_TOKEN)"
        )
    except (OSError, httpx2.HTTPError) as error:
        at = f" --revision {revision}" if revision else ""
        if constants.HF_HUB_OFFLINE:
            print(
                f"{name}: no such folder here, not in the hub's cache ({constants.HF_HUB_CACHE}), and the hub may not "
                f"be asked (HF_HUB_OFFLINE); where it may: hf download {name}{at}"
            )
            return BAD_INPUT
        reason = f"does not give it: {_line(error)}"
        if isinstance(error, errors.LocalEntryNotFoundError):  # what snapshot_download raises where it cannot connect
            reason = f"cannot be reached; is this machine online? On one that is: hf download {name}{at} --local-dir "
            reason += "FOLDER; then bring FOLDER here and name it as the policy"
        print(f"{name}: no such folder here, not in the hub's cache, and the hub ({constants.ENDPOINT}) {reason}")
        return FAULT
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
