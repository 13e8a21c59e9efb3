"""Messages about a campaign to where `notify` says. Apprise sends them, as it does those of Prefect's own blocks.

An address is a secret (of a chat, a mailbox): it is in no error, log or manifest. A message that does not arrive is
said, and costs nothing else.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from flows.reports.formatting import quantity
from infra.manifest import Manifest
from infra.store import CampaignStore, create_object, key_of, read_object
from opid_core.config import CampaignConfig, NotifyConfig
from opid_core.errors import ConfigError, InfrastructureError, LeaseHeld, LeaseLost
from tasks.progress import announce

if TYPE_CHECKING:
    from apprise import Apprise

Event = Literal["failed", "degraded", "finished"]

_TYPES = {"failed": "failure", "degraded": "warning", "finished": "success"}
NOTES = "_notified"
"""Folder of the notes (`000003-degraded`, empty) of what was told of a commit."""
_MAX_CHARS = 1000
"""Of a reason: chats refuse long messages."""


def check(config: CampaignConfig) -> None:
    """Raise ConfigError where `notify.url_env` names a variable that is not set or holds no address."""
    if config.notify.url_env is not None:
        _sender(config.notify)


@contextmanager
def on_failure(config: CampaignConfig) -> Iterator[None]:
    """Around a campaign: an error that ends it is told, and raised on. Ctrl-C, a cancelled run and a campaign that
    another driver works on are none."""
    try:
        yield
    except (LeaseHeld, LeaseLost):
        raise
    except Exception as error:
        command = ["opid", "status", config.campaign, "--root", config.root]
        if endpoint_url := config.storage.endpoint_url:
            command += ["--endpoint-url", endpoint_url]
        reason = f"{type(error).__name__}: {error}"[:_MAX_CHARS]
        _tell(config, "failed", f"{reason}\n\nThe same command continues it. Look: {shlex.join(command)}")
        raise


def committed(config: CampaignConfig, store: CampaignStore, manifest: Manifest) -> None:
    """Tell that the newest commit is degraded, and that it is the last one and what success it has, unless the store
    says that this was told: whoever goes on after a killed process tells what that did not. Of a commit that another
    has followed nothing is told any more."""
    if manifest.degraded:
        reasons = f"iteration {manifest.iteration}: {'; '.join(manifest.degraded)}"[:_MAX_CHARS]
        _tell_once(config, store, manifest, "degraded", reasons)
    if manifest.iteration == config.iterations:
        success = [
            f"{name} {value:.3g}"
            for name, value in sorted(manifest.metrics.items())
            if name.endswith("/success_micro") and value is not None
        ]
        text = "\n".join([quantity(manifest.iteration, "iteration"), *success])
        _tell_once(config, store, manifest, "finished", text)


def _tell_once(config: CampaignConfig, store: CampaignStore, manifest: Manifest, event: Event, text: str) -> None:
    """`_tell`, and leave a note in the store if it arrived; nothing where there is one. Twice where the process is
    killed in between."""
    if not _is_wanted(config, event):
        return
    note = f"{NOTES}/{key_of(manifest.iteration)}-{event}"
    try:
        if read_object(store, note) is None and _tell(config, event, text):
            create_object(store, note, b"")
    except InfrastructureError as error:
        announce(None, "notify", "fault", f"whether it was told that {config.campaign} {event} is not known: {error}")


def _tell(config: CampaignConfig, event: Event, text: str) -> bool:
    """Send a message, if it is asked for; whether it arrived."""
    if not _is_wanted(config, event):
        return False
    try:
        sender = _sender(config.notify)
        arrived = sender.notify(title=f"OPID: {config.campaign} {event}", body=text, notify_type=_TYPES[event])
        problem = None if arrived else "not delivered"
    except Exception as error:  # of whatever service: its text may hold the address
        problem = type(error).__name__
    if problem:
        announce(None, "notify", "fault", f"the message that {config.campaign} {event} was lost: {problem}")
    return problem is None


def _is_wanted(config: CampaignConfig, event: Event) -> bool:
    return config.notify.url_env is not None and event in config.notify.on


def _sender(notify: NotifyConfig) -> Apprise:
    from apprise import Apprise

    logging.getLogger("apprise").disabled = True  # it writes addresses
    name = notify.url_env or ""
    address, sender = os.environ.get(name, "").strip(), Apprise()
    if not address:
        raise ConfigError(f"notify.url_env: the environment variable {name} is not set (it would hold the address)")
    if not sender.add(address):
        raise ConfigError(
            f"notify.url_env: {name} holds no address that Apprise knows, such as slack://..., mailtos://... or "
            "jsons://HOST/PATH"
        )
    return sender
