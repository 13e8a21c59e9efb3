"""A policy's folder uploaded to the Hugging Face hub in one commit, in a process of its own as all that asks the hub.

No text of the hub's goes into an error: it may repeat what was sent to it, and that was sent with a token.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from opid_core.errors import ConfigError
from opid_core.hub import BAD_INPUT, FAULT, ask, named_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi

OPTION = "--push-to-hub"
LEFT_BEHIND = (".safetensors", ".safetensors.index.json", "adapter_config.json")
"""Ends of files that an earlier upload may have left and that change what is loaded: deleted in the same commit."""


def check_upload(name: str, *, private: bool) -> None:
    """Ask the hub whether the user may write to the model `name`, ORG/NAME, which need not exist; changes nothing.

    Raises ConfigError for what is no name, a missing token or one without the right, a public repository where it
    shall be private, and where the hub may not be asked; InfrastructureError where it does not answer.
    """
    model = named_model(name)
    if model is None or model.revision:
        raise ConfigError(f"{OPTION}: {name}: expected ORG/NAME, as in my-name/my-policy")
    ask(__name__, OPTION, model.name, "private" if private else "")


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Make the model `name` if there is none, and upload every file of `folder` in one commit; returns its address.

    Weights and adapters of an earlier upload are deleted in that commit; other files stay. Raises as `check_upload`.
    """
    return ask(__name__, OPTION, name.removeprefix("hf://"), "private" if private else "", str(folder), message)


def _main(name: str, private: str, folder: str = "", message: str = "") -> int:
    """Check, and with a folder upload, or print what is wrong; returns the exit code."""
    import httpx2
    from huggingface_hub import HfApi, constants, errors, get_token

    if constants.HF_HUB_OFFLINE:
        print(f"{name}: the hub may not be asked (HF_HUB_OFFLINE)")
        return BAD_INPUT
    if get_token() is None:
        print(f"{name}: no token of the hub: hf auth login, or HF_TOKEN, with one that may write")
        return BAD_INPUT
    api = HfApi()
    try:
        if refusal := _refusal(api, name, bool(private)):
            print(f"{name}: {refusal}")
            return BAD_INPUT
        if folder:
            print(_commit(api, name, bool(private), Path(folder), message))
        return 0
    except errors.HFValidationError:
        print(f"{name}: no name of a model on the hub: letters, digits, '-', '_' and '.', at most 96")
        return BAD_INPUT
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = f"HTTP {status}" if status else type(error).__name__
        whole = "what is there is whole: one commit brings all or nothing"
        if status in (401, 402, 403):
            print(f"{name}: the hub ({constants.ENDPOINT}) refuses the token ({what}); {whole}")
            return BAD_INPUT
        print(f"{name}: the hub ({constants.ENDPOINT}) does not take it: {what}; {whole}")
    return FAULT


def _refusal(api: HfApi, name: str, private: bool) -> str | None:
    """Why the user may not write to `name`; None: nothing speaks against it."""
    from huggingface_hub import errors

    user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return "the token may only read: make one that may write (hub, Settings, Access Tokens)"
    try:
        exists = api.model_info(name)
    except errors.RepositoryNotFoundError:
        owners = [user["name"], *(org["name"] for org in user.get("orgs", []))]
        if name.split("/")[0] not in owners:
            return f"no such model that the token may see, and it makes models only for: {', '.join(owners)}"
        return None
    if private and not exists.private:
        return "--private: the model exists and is public"
    try:
        api.auth_check(name, write=True)
    except errors.HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404):
            raise
        return "the model exists, and the token may not write to it"
    return None


def _commit(api: HfApi, name: str, private: bool, folder: Path, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(name, private=private or None, exist_ok=True)
    new = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    old = [file for file in api.list_repo_files(name) if file.endswith(LEFT_BEHIND) and file not in new]
    add = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in new.items()]
    return api.create_commit(name, [*add, *map(CommitOperationDelete, old)], commit_message=message).commit_url


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
