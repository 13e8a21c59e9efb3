"""Which campaign, and which commit of it, a command means."""

from __future__ import annotations

from collections.abc import Sequence

from infra.manifest import Manifest
from infra.store import CampaignStore, location
from opid_core.errors import ConfigError


def place_of(store: CampaignStore, chain: Sequence[Manifest], iteration: str | None) -> int:
    """The place in `chain` of `iteration` (`start` or a number; None: the newest).

    Raises ConfigError that names the iterations that are committed.
    """
    if not chain:
        raise ConfigError(f"{location(store)}: nothing is committed yet")
    if iteration is None:
        return len(chain) - 1
    names = [str(manifest.iteration) for manifest in chain]
    if iteration not in names:
        until = f", 0 to {names[-1]}" if len(names) > 1 else ""
        raise ConfigError(f"iteration: {location(store)} has no iteration {iteration!r}; committed: start{until}")
    return names.index(iteration)


def parse_side(text: str) -> tuple[str, str | None]:
    """Campaign and iteration (None: the newest) of `CAMPAIGN` or `CAMPAIGN@ITERATION`. Raises ConfigError."""
    campaign, separator, iteration = text.partition("@")
    if not campaign or (separator and not iteration):
        raise ConfigError(f"{text!r}: expected CAMPAIGN or CAMPAIGN@ITERATION, as in quickstart@3 or quickstart@start")
    return campaign, iteration or None
