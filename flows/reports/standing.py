"""Where a campaign stands: how far it is, who works on it, what stopped it, how long it still takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from infra import lease, stages
from infra.manifest import Manifest
from infra.objects import Address, address_of
from infra.store import CampaignStore, find_campaign, list_campaigns, list_studies, location, manifests, read_config
from opid_core.errors import ConfigError, DataError
from tasks.results import read_result

NEWEST = 10
"""Iterations whose durations the time left is taken from."""
LONGEST_S = 1e11
"""Of seconds that are told, 3,000 years: what is stored may be any number, and a `timedelta` has an end."""
State = Literal["not begun", "running", "silent", "stopped", "finished"]


@dataclass(frozen=True)
class Standing:
    """A campaign as its store tells."""

    campaign: str
    location: str
    preset: str | None
    state: State
    """`running`: a driver renews its lease. `silent`: a driver has the lease and does not renew it, as after a `kill
    -9`. `stopped`: unfinished, and no driver works on it, as after Ctrl-C. `not begun`: none has ever worked on it, as
    while `opid train` starts."""
    iterations_done: int
    iterations_planned: int
    """By the newest driver; where it does not tell, what the campaign was created with."""
    stage: str | None
    """That comes next, or is worked on; None where all is committed."""
    driver: str | None
    """Who has the lease."""
    ended: str | None
    """How the newest driver ended: `interrupted`, or the type and the first line of the error; None where it has not,
    ended by itself, or does not tell."""
    seconds_left: float | None
    """Until the last commit, if the iterations to come take as long as the newest; None before the first."""
    seconds_left_at_least: float | None
    """Before the first iteration is committed: until the last commit, if all iterations take as long as the stages of
    the first that have finished; None before one has, and after that commit."""
    success: dict[str, float]
    """The newest evaluation: temperature (`t1`), or split and temperature, -> share of tasks won."""
    failures: tuple[str, ...]
    """Why attempts at the iteration that comes next were given up, with their times (UTC)."""
    newest_policy: str | None
    committed_at: str | None
    """ISO 8601, UTC, as all times are."""


def standing_of(store: CampaignStore, chain: list[Manifest]) -> Standing:
    """The standing of the campaign with these manifests. Raises DataError for a damaged config or record of a stage."""
    config = read_config(store)
    planned, done = config.get("iterations"), max(0, len(chain) - 1)
    if not isinstance(planned, int):
        raise DataError(f"{location(store, 'config.json')}: iterations: expected a whole number, got {planned!r}")
    held = lease.status(store)
    if held and held[0].iterations is not None:
        planned = held[0].iterations
    is_finished = bool(chain) and done >= planned
    holder, silent_s = held if held and not held[0].released else (None, 0.0)
    state: State = "finished" if is_finished else "stopped" if chain or held else "not begun"
    if holder:
        state = "running" if silent_s <= holder.ttl_s else "finished" if is_finished else "silent"
    driver = holder and holder.name + (f" since {holder.started_at}" if holder.host else ", its lease is damaged")
    following, given_up = len(chain), stages.failures(store, len(chain))
    evaluated = next(filter(None, map(_success, reversed(chain))), {})
    return Standing(
        campaign=store.campaign,
        location=location(store),
        preset=chain[0].preset if chain else None,
        state=state,
        iterations_done=done,
        iterations_planned=planned,
        stage=None if is_finished else _stage(stages.finished(store, following, len(given_up)), following),
        driver=driver and f"{driver}, last heartbeat {silent_s:.0f} s ago",
        ended=held[0].ended if held else None,
        seconds_left=seconds_left(chain, planned, is_running=state == "running"),
        seconds_left_at_least=_at_least_s(store, planned, len(given_up)) if len(chain) == 1 else None,
        success=evaluated,
        failures=tuple(f"attempt {n} at {one['at']}: {one['reason']}" for n, one in enumerate(given_up, start=1)),
        newest_policy=location(store, chain[-1].policy.uri) if chain else None,
        committed_at=chain[-1].created_at if chain else None,
    )


def standings(root: str, endpoint_url: str | None) -> tuple[list[Standing], dict[str, str]]:
    """The standings of all campaigns under `root`, by name, then of those of its studies (local ones); and why others
    cannot be read, as those of another version, by name. Raises DataError where none can be read."""
    listed = [("", root, name) for name in list_campaigns(root, endpoint_url)]
    if "://" not in root:
        listed += [(f"{p.name}/", str(p), name) for p, names in list_studies(Path(root)).items() for name in names]
    found, left_out = [], {}
    for prefix, folder, name in listed:
        try:
            store = find_campaign(folder, name, endpoint_url)
            found.append(replace(standing_of(store, manifests(store)), campaign=f"{prefix}{name}"))
        except (ConfigError, DataError) as error:  # of the former: what lies in it is not ours to read
            left_out[f"{prefix}{name}"] = str(error)
    if left_out and not found:
        raise none_readable(address_of(root, endpoint_url), left_out)
    return found, left_out


def none_readable(root: Address, left_out: Mapping[str, str]) -> DataError:
    """The error for a root of whose campaigns none can be read; `left_out`: why, by name."""
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in left_out.items())
    return DataError(f"root: none of the campaigns in {root} can be read:{reasons}")


def _success(manifest: Manifest) -> dict[str, float]:
    ending = "/success_micro"
    return {
        name.split("/")[1]: value
        for name, value in sorted(manifest.metrics.items())
        if name.startswith("evaluation/") and name.endswith(ending) and value is not None
    }


def _stage(finished: set[str], iteration: int) -> str:
    order = ("initial_policy",) if iteration == 0 else ("rollout", "extract_skills", "route", "rescore", "update")
    waiting = [stage for stage in order if stage not in finished]
    return waiting[0] if waiting else "commit" if "evaluate" in finished else "evaluate or commit"


def _at_least_s(store: CampaignStore, planned: int, attempt: int) -> float | None:
    """Of the iterations after the first, as far as the stages of that one have finished. An evaluation does not count:
    not each iteration has one; nor does what comes before the first episode, as the start of an engine."""
    took_s = 0.0
    for stage in stages.finished(store, 1, attempt) - {"evaluate"}:
        result = read_result(stages.recorded(store, 1, attempt, stage, {}) or {})
        stage_s, push_s = (result.metrics.get(name) or 0.0 for name in (f"seconds/stage/{stage}_s", "seconds/push_s"))
        took_s += max(0.0, stage_s - push_s)
    whole_s = took_s * min(max(0, planned - 1), LONGEST_S)
    return min(whole_s, LONGEST_S) if whole_s > 0 else None


def seconds_left(chain: Sequence[Manifest], planned: int, *, is_running: bool) -> float | None:
    """Seconds until iteration `planned` is committed if the next take as long as the newest; None before the first.
    Where it `is_running`, the time since the newest commit counts."""
    took = [s for m in chain[1:][-NEWEST:] if (s := m.metrics.get("seconds/iteration_s")) is not None]
    if not took:
        return None
    whole_s = sum(took) / len(took) * min(max(0, planned + 1 - len(chain)), LONGEST_S)
    since_s = (datetime.now(UTC) - datetime.fromisoformat(chain[-1].created_at)).total_seconds() if is_running else 0.0
    return min(max(0.0, whole_s - since_s), LONGEST_S)
