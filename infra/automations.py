"""The two Prefect automations that bring a dead flow run back: lost heartbeat -> Crashed; Crashed -> AwaitingRetry.

tests/integration/test_serve.py kills and freezes flow runs to show that both are needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

TAG = "opid"
HEARTBEAT_S = 30  # the shortest that Prefect allows
RETRY_AFTER_S = 10.0  # the shortest again; the server looks every 5 s
LOST_AFTER_S = 75.0  # two heartbeats may be late or lost, plus the server's own delay
ATTEMPTS = 10
APART_S = 5.0  # events that come closer together than a busy server reads them may be taken in either order

SUSPENDED = "opid.flow-run.suspended"
"""The event of a run that was suspended, after its last heartbeat."""

_OURS = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
_ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "AwaitingRetry", "Scheduled", "Paused")


def automations(attempts: int = ATTEMPTS) -> list[dict[str, Any]]:
    """Both automations, for runs that carry the tag `opid`: runs of other teams on the same server stay as they are.

    A run whose process was silent for `LOST_AFTER_S` becomes Crashed. A Crashed run is scheduled again
    under its own id until it has been started `attempts` times; Prefect counts the starts, so the limit also holds
    over restarts of the server. A run that failed by an error of its own is Failed, and never started again.
    """
    return [
        {
            "name": "opid: lost heartbeat",
            "description": f"Mark a run Crashed after {LOST_AFTER_S:g} s without a heartbeat, unless it is suspended.",
            "trigger": {
                "type": "event",
                "posture": "Proactive",
                "match": {"prefect.resource.id": "prefect.flow-run.*"},
                "match_related": _OURS,
                "for_each": ["prefect.resource.id"],
                # Running comes from the server: it also begins the wait for a run that dies before its first heartbeat.
                "after": ["prefect.flow-run.Running", "prefect.flow-run.heartbeat"],
                "expect": [
                    "prefect.flow-run.heartbeat",
                    SUSPENDED,
                    "prefect.flow-run.Suspended",
                    *(f"prefect.flow-run.{state}" for state in _ENDS),
                ],
                "within": LOST_AFTER_S,
            },
            "actions": [
                {
                    "type": "change-flow-run-state",
                    "state": "CRASHED",
                    "message": f"No heartbeat for {LOST_AFTER_S:g} s: the process or its machine is gone.",
                }
            ],
        },
        {
            "name": "opid: retry a crashed run",
            "description": f"Schedule a Crashed run again after {RETRY_AFTER_S:g} s, up to {attempts} starts in all.",
            "trigger": {
                "type": "event",
                # Not at once: worker and runner both report a crash, and the second report would undo the new state.
                "posture": "Proactive",
                "match": {
                    "prefect.resource.id": "prefect.flow-run.*",
                    "prefect.run-count": [str(count) for count in range(1, attempts)],
                },
                "match_related": _OURS,
                "for_each": ["prefect.resource.id"],
                "after": ["prefect.flow-run.Crashed"],
                "expect": [
                    f"prefect.flow-run.{state}" for state in ("AwaitingRetry", "Scheduled", "Pending", "Running")
                ],
                "within": RETRY_AFTER_S,
            },
            "actions": [
                {
                    "type": "change-flow-run-state",
                    "state": "SCHEDULED",
                    "name": "AwaitingRetry",
                    "message": "The crashed run is started again.",
                }
            ],
        },
    ]


@contextmanager
def suspension_event() -> Iterator[None]:
    """Around the body of a flow: where it ends because its run was suspended, an event says so. A suspended run goes on
    to the end of its stage, with heartbeats, and the one after which no more follow must not be taken for its loss."""
    from prefect.events import emit_event
    from prefect.exceptions import Pause
    from prefect.runtime import flow_run

    try:
        yield
    except Pause:
        resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}
        time.sleep(APART_S)  # a heartbeat taken after this event would wait for another one
        emit_event(SUSPENDED, resource=resource, related=[_OURS])
        raise


def ensure(client: SyncPrefectClient, declared: list[dict[str, Any]]) -> None:
    """Create the automations that do not exist and update those that differ. One that the user paused stays paused."""
    from prefect.events.schemas.automations import AutomationCore

    for fields in declared:
        wanted = AutomationCore.model_validate(fields)
        existing = client.read_automations_by_name(wanted.name)
        if not existing:
            client.create_automation(wanted)
        elif existing[0].description != wanted.description:
            wanted.enabled = existing[0].enabled
            client.update_automation(existing[0].id, wanted)


def main() -> None:
    """Install both on the server that PREFECT_API_URL names: `python -m infra.automations`."""
    from prefect.client.orchestration import get_client

    declared = automations()
    with get_client(sync_client=True) as client:
        ensure(client, declared)
    print(*(f"{fields['name']}: {fields['description']}" for fields in declared), sep="\n")


if __name__ == "__main__":
    main()
