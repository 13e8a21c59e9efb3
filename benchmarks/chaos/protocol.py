"""`python -m benchmarks.chaos.protocol --kills N --store file|s3|both`: kill and freeze drivers of the commit protocol.

A driver here is the lease, the stage records, tables, a policy's folder and the commit through the store's public
functions, without engine, learner and Prefect, so that a kill costs a second instead of minutes. It is killed with
SIGKILL at random moments, or stopped with SIGSTOP for longer than its lease lives: another driver takes over, and then
the first wakes up beside it. What must hold in the end is what `checks` looks at.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.chaos import checks
from benchmarks.chaos.campaign import RoundFailed
from benchmarks.chaos.storage import S3Storage
from benchmarks.chaos.table import table
from infra import s3_objects, stages
from infra.lease import Lease, held
from infra.manifest import FileRecord, FolderRecord, GateResult, Manifest, new_manifest
from infra.store import (
    CampaignStore,
    commit,
    list_objects,
    manifests,
    new_attempt,
    open_campaign,
    put_folder,
    write_table,
)
from opid_core.errors import InfrastructureError, LeaseHeld, LeaseLost
from opid_core.schema import TABLES, from_rows

NAME, ITERATIONS = "protocol", 5
CONFIG = {"campaign": NAME, "iterations": ITERATIONS}
TTL_S = 0.3
PAUSE_S = 0.03
"""Longest time between the beginning of a step and the end of its driver."""
FREEZES = 0.2
"""Share of the drivers that are stopped instead of killed."""
STEPS = ("lease", "tables", "stage record", "policy", "commit", "next iteration")
LOST, HELD, FAULT = 3, 4, 5
"""Exit codes of a driver: another has its lease, another had it first, the storage did not answer."""
LIMIT_S = 300.0
FORK = multiprocessing.get_context("fork")
"""A driver is there at once: what it imports is there already."""


@dataclass
class Tally:
    """What was done to the drivers of one store."""

    store: str
    campaigns: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    """By the step that was under way; likewise the next."""
    frozen: Counter[str] = field(default_factory=Counter)
    gave_up: int = 0
    """Frozen drivers that woke up, found their successor and stopped."""
    late: int = 0
    """Iterations that a frozen driver committed after it woke up: it had looked at its lease before it was stopped."""
    failures: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.killed.total() + self.frozen.total()


# The driver ---------------------------------------------------------------------------------------------------------


def drive(store: CampaignStore, step: Any, run_id: str) -> None:
    """Bring the campaign to its end; `step` (shared memory) says where this driver is."""
    s3_objects.forget_connections()  # those of the process that this one was forked from are not ours,
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and cannot be closed here, of which asyncio complains
    try:
        with held(store, TTL_S, run_id) as lease:
            chain = manifests(store)
            while len(chain) <= ITERATIONS:
                step.value = STEPS.index("next iteration")
                lease.check()
                chain.append(iterate(store, chain, lease, step))
    except LeaseLost:
        sys.exit(LOST)
    except LeaseHeld:
        sys.exit(HELD)
    except InfrastructureError as error:
        print(error, file=sys.stderr)
        sys.exit(FAULT)


def iterate(store: CampaignStore, chain: Sequence[Manifest], lease: Lease, step: Any) -> Manifest:
    """Make and commit the iteration after `chain`, reusing what another driver has recorded."""
    number, previous = len(chain), chain[-1] if chain else None
    attempt = stages.current_attempt(store, number)
    made_from = {"parent": previous.content if previous else ""}

    def stage(name: str, make: Any) -> dict[str, Any]:
        standing = stages.recorded(store, number, attempt, name, made_from)
        if standing is None:
            result = make(store, number, step)
            step.value = STEPS.index("stage record")
            standing = stages.record(store, number, attempt, name, made_from, result)
        return standing

    tables = {name: FileRecord(**record) for name, record in stage("rollout", make_tables)["tables"].items()}
    policy = FolderRecord(**stage("update", make_policy)["policy"])
    step.value = STEPS.index("commit")
    manifest = new_manifest(
        iteration=number,
        tables=tables,
        policy=policy,
        gates=[GateResult(table=name, passed=True) for name in tables],
        config_hash="",
        code_version="",
        seeds={},
        prefect_run_id=lease.holder.prefect_run_id,
        metrics={},
        created_at=datetime.now(UTC).isoformat(),
        previous=previous,
    )
    lease.check()
    return commit(store, manifest)[0]


def tables_of(number: int) -> dict[str, pa.Table]:
    """Tables whose rows the iteration's number determines."""
    metrics = [{"iteration": number, "name": f"metric/{n:02d}", "value": number + n / 100} for n in range(50)]
    plain = {**dict.fromkeys(TABLES["routes"].names), "trajectory_id": str(number), "route": "none", "reason": "-"}
    return {"metrics": from_rows("metrics", metrics), "routes": from_rows("routes", [plain | {"step": 0}])}


def make_tables(store: CampaignStore, number: int, step: Any) -> dict[str, Any]:
    """Write `tables_of` the iteration."""
    step.value = STEPS.index("tables")
    written = {name: write_table(store, name, number, new_attempt(), rows) for name, rows in tables_of(number).items()}
    return {"tables": {name: record.model_dump(mode="json") for name, record in written.items()}}


def make_policy(store: CampaignStore, number: int, step: Any) -> dict[str, Any]:
    """A policy whose weights the iteration's number determines."""
    step.value = STEPS.index("policy")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "optimizer").mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"weights %d" % number * 1000)
        (Path(folder) / "optimizer" / "state.pt").write_bytes(b"state %d" % number * 1000)
        stored = put_folder(store, folder, f"policies/{number:06d}/{new_attempt()}")
    return {"policy": stored.model_dump(mode="json")}


# The one who kills --------------------------------------------------------------------------------------------------


class Driver:
    """A driver in a process of its own."""

    def __init__(self, store: CampaignStore) -> None:
        self.step = FORK.Value("i", 0, lock=False)
        self.run_id = new_attempt()
        self.process = FORK.Process(target=drive, args=(store, self.step, self.run_id))
        self.process.start()

    @property
    def where(self) -> str:
        return STEPS[self.step.value]

    def wait_for(self, step: str, pause_s: float) -> None:
        """Until this driver comes to `step` or ends, and a pause more."""
        deadline_s = time.monotonic() + LIMIT_S
        while self.process.is_alive() and self.where != step and time.monotonic() < deadline_s:
            time.sleep(0.001)
        self.process.join(pause_s)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; whether the driver was alive."""
        if self.process.exitcode is not None or self.process.pid is None:
            return False
        os.kill(self.process.pid, number)
        return True

    def end(self, allowed: Sequence[int]) -> int:
        """Wait for its end; its exit code. Raises RoundFailed for one that is not `allowed`."""
        self.process.join(LIMIT_S)
        code = self.process.exitcode
        if code is None or code not in allowed:
            self.process.kill()
            raise RoundFailed(f"a driver in step {self.where} ended with exit code {code}, allowed: {allowed}")
        return code


def play(store: CampaignStore, expected: checks.Result, generator: random.Random, tally: Tally) -> None:
    """One campaign, its drivers killed or frozen until it is done, and checked."""
    driver = Driver(store)
    while True:
        driver.wait_for(generator.choice(STEPS), generator.uniform(0.0, PAUSE_S))
        if generator.random() < FREEZES:
            following = freeze(store, driver, generator, tally)
        else:
            where = driver.where
            if following := driver.send(signal.SIGKILL):
                tally.killed[where] += 1
                driver.end([-signal.SIGKILL, 0])
        if not following:
            driver.end([0])
            break
        driver = following if isinstance(following, Driver) else Driver(store)
    tally.campaigns += 1
    checks.check_result(store, expected, ITERATIONS)


def freeze(store: CampaignStore, driver: Driver, generator: random.Random, tally: Tally) -> Driver | None:
    """Stop `driver`, let another take over and wake the first up; the other, or None where the first had ended."""
    where = driver.where
    if not driver.send(signal.SIGSTOP):
        return None
    tally.frozen[where] += 1
    other = Driver(store)
    other.wait_for(generator.choice(STEPS[1:]), generator.uniform(0.0, PAUSE_S))
    before = {info.path for info in list_objects(store, "_commits")}
    driver.send(signal.SIGCONT)
    tally.gave_up += driver.end([0, LOST, HELD, FAULT]) == LOST
    tally.late += sum(
        manifest.prefect_run_id == driver.run_id and f"_commits/{manifest.iteration:06d}.json" not in before
        for manifest in manifests(store)
    )
    if other.process.exitcode == HELD:  # it began before the first had its lease, or saw its last heartbeat
        return Driver(store)
    return other


def run(
    name: str, root: str, endpoint_url: str | None, kills: int, generator: random.Random, until_s: float = math.inf
) -> Tally:
    """Campaigns on one store until `kills` drivers were killed or frozen, or the clock says `until_s` (monotonic)."""
    tally = Tally(name)

    def campaign(label: str) -> CampaignStore:
        return open_campaign(f"{root}/{label}", NAME, CONFIG, endpoint_url)

    tables_of(0)  # what that imports is there for all drivers
    undisturbed = campaign("undisturbed")
    Driver(undisturbed).end([0])
    expected = checks.result_of(undisturbed)
    while tally.kills < kills and time.monotonic() < until_s:
        label = f"campaign-{tally.campaigns + len(tally.failures):04d}"
        try:
            play(campaign(label), expected, generator, tally)
        except Exception as error:  # whatever it was, it is a round that did not hold
            tally.failures.append(f"{root}/{label}: {type(error).__name__}: {error}")
    return tally


def to_markdown(command: str, tallies: Sequence[Tally], seconds: float) -> str:
    """What was done, and what did not hold."""
    kills, failed = sum(tally.kills for tally in tallies), [text for tally in tallies for text in tally.failures]
    campaigns = sum(tally.campaigns for tally in tallies)
    head = ["store", "campaigns", "SIGKILL", "SIGSTOP beyond the lease", "gave up", "committed late", "failed"]
    rows = [
        (t.store, t.campaigns, t.killed.total(), t.frozen.total(), t.gave_up, t.late, len(t.failures)) for t in tallies
    ]
    steps = [
        (step, *(sum(getattr(tally, kind)[step] for tally in tallies) for kind in ("killed", "frozen")))
        for step in STEPS
    ]
    parts = [
        f"`{command}`: {kills} drivers killed or frozen in {campaigns} campaigns, {len(failed)} failed, in "
        f"{seconds / 60:.0f} minutes.",
        table(head, rows),
        table(["under way", "SIGKILL", "SIGSTOP"], steps),
        *failed,
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """0 when every campaign held, 1 when one did not: its store is then kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.protocol", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="on each store, at least (default 100)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no campaign after so long")
    parser.add_argument("--store", choices=("file", "s3", "both"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result there, as Markdown")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="opid-protocol-"))
    os.environ["OPID_CACHE"] = str(folder / "cache")
    generator, tallies, began_s = random.Random(arguments.seed), [], time.monotonic()
    limits = (arguments.kills, generator, began_s + 60 * arguments.minutes)
    if arguments.store != "s3":
        tallies.append(run("file", str(folder / "file"), None, *limits))
    if arguments.store != "file":
        storage = S3Storage(folder / "s3", arguments.seed)
        try:
            tallies.append(run("s3", storage.root("p"), storage.direct_url, *limits))
        finally:
            storage.close()
    text = to_markdown(
        " ".join(["python -m benchmarks.chaos.protocol", *sys.argv[1:]]), tallies, time.monotonic() - began_s
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    if any(tally.failures for tally in tallies):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
