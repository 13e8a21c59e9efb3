"""One round: a campaign, the moments at which something of it is killed, and the checks at its end."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.chaos import checks, victims
from benchmarks.chaos.campaign import (
    ITERATIONS,
    NAME,
    RECOVERY,
    REPOSITORY,
    CommandRun,
    RoundFailed,
    ServedRun,
    Setup,
    TendedRun,
)
from benchmarks.chaos.storage import FileStorage, S3Storage, Storage
from infra import processes
from infra.store import CampaignStore, list_objects, manifests
from opid_core.errors import OpidError

STAGES = ("lease", "initial_policy", "rollout", "extract_skills", "route", "rescore", "update", "evaluate", "commit")
"""In their order; `lease` ends the driver's own start."""
LIMIT_S = 900.0
"""A round in which nothing was killed, recorded or started again for so long hangs."""
LOOK_S = 0.25
FROZEN_S = (2.0 * RECOVERY["lease_ttl_s"], 12.0 * RECOVERY["lease_ttl_s"])
"""So long a frozen driver stays so: another has taken its lease by then, and may have ended."""
UPLOAD_S, UPLOAD_ITERATIONS = 10.0, 3
"""Of the campaigns that are killed while optimizer states are uploaded: how much longer that takes them, and how many
iterations they have."""
LATER_S = 4.0
"""A victim that is not alive when its time has come is looked for again within so long."""

Mode = Literal["command", "served", "start-up", "upload"]


@dataclass(frozen=True)
class Shape:
    """What kind of round: where its store is, how many ranks learn, who starts it, when it is killed."""

    store: str
    ranks: int
    mode: Mode

    @property
    def victims(self) -> list[str]:
        """What can be killed in such a round."""
        if self.mode == "start-up":
            common = [victims.DRIVER, victims.TREE, victims.PREFECT]
        else:
            common = [victims.TREE, victims.ENGINE, victims.RANK, victims.PREFECT]
            common += [victims.WORKER, victims.RUN] if self.mode == "served" else [victims.DRIVER]
            common += [victims.FROZEN] if self.mode == "command" else []
            common += [victims.TORCHRUN] if self.ranks > 1 else []
        return common + ([victims.STORAGE] if self.store == "s3" else [])


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: what it made, and how long each step of it took."""

    result: checks.Result
    seconds: dict[str, float]
    """By step (`000000/lease`, `000001/rollout` ...), in their order."""


@dataclass
class Outcome:
    """What happened in a round."""

    shape: Shape
    name: str
    kills: list[tuple[str, str]] = field(default_factory=list)
    """Victim, and the step that was then under way."""
    resumes: int = 0
    seconds: float = 0.0
    readings: int = 0
    away: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    failure: str | None = None


def undisturbed(storage: Storage, folder: Path, name: str, shape: Shape) -> Reference:
    """Run the campaign in peace. Raises RoundFailed where even that fails."""
    setup = _setup(storage, folder, name, shape)
    run, store = CommandRun(setup), setup.store(storage.direct_url)
    began_s = time.monotonic()
    seen: dict[str, float] = {}
    run.start()
    ended = False
    while not ended:
        ended = run.tend(None, excused=False)
        for step in sorted(_steps(store, set()) - set(seen), key=_order):
            seen[step] = time.monotonic() - began_s
        time.sleep(LOOK_S)
    checks.check_no_process_left(setup.mark)
    at_s = list(seen.values())
    seconds = dict(zip(seen, (after - before for before, after in zip([0.0, *at_s], at_s, strict=False)), strict=True))
    return Reference(checks.result_of(store), seconds)


def play(
    storage: Storage,
    folder: Path,
    name: str,
    shape: Shape,
    reference: Reference,
    kills: int,
    generator: random.Random,
    choose: Callable[[list[str]], str],
    say: Callable[[str], None],
    pause_s: float = 1.0,
) -> Outcome:
    """Run a campaign with up to `kills` kills (it may end before), then check everything; meanwhile a reader reads all
    that is committed every `pause_s`. The folder of a round that failed stays."""
    outcome = Outcome(shape, name)
    setup = _setup(storage, folder, name, shape)
    began_s = time.monotonic()
    struck = Counter(storage.struck)
    run: TendedRun = ServedRun(setup) if shape.mode == "served" else CommandRun(setup)
    reader = _start_reader(setup, pause_s)
    try:
        run.start()
        _disturb(
            run,
            storage,
            setup,
            reference,
            _moments(shape, reference, kills, generator),
            generator,
            outcome,
            choose,
            say,
        )
        storage.rest()
        run.stop()
        checks.check_no_process_left(setup.mark)
        (setup.folder / "stop").touch()
        reader.wait(LIMIT_S)
        store = setup.store(storage.direct_url)
        outcome.readings, outcome.away = checks.check_reader(setup.folder, len(manifests(store)))
        checks.check_result(store, reference.result, setup.iterations)
        shutil.rmtree(setup.folder)
    except (RoundFailed, OpidError, subprocess.TimeoutExpired) as error:
        outcome.failure = f"{error}\n(its folder: {setup.folder}, its store: {setup.root})"
    finally:
        processes.kill(reader)
        victims.kill(victims.TREE, setup.mark, generator)
        storage.rest()
    outcome.seconds = time.monotonic() - began_s
    outcome.struck = Counter(storage.struck) - struck
    outcome.resumes = run.resumes
    return outcome


def _disturb(
    run: TendedRun,
    storage: Storage,
    setup: Setup,
    reference: Reference,
    moments: list[tuple[str | None, float]],
    generator: random.Random,
    outcome: Outcome,
    choose: Callable[[list[str]], str],
    say: Callable[[str], None],
) -> None:
    """Kill at each of the `moments`, bring back what has to be, until the campaign has ended."""
    steps, order, store = set[str](), list(reference.seconds), setup.store(storage.direct_url)
    victim: str | None = None
    due_s: float | None = None
    prefect_killed = False
    resumes, moved_s = 0, time.monotonic()
    while not run.tend(None, excused=storage.disturbed or prefect_killed):
        if run.resumes > resumes:
            resumes, prefect_killed, moved_s = run.resumes, False, time.monotonic()
            storage.forget()
            say(f"  {outcome.name}: started again")
        storage.tend(generator)
        if not storage.is_away and (now := _steps(store, steps)) != steps:
            steps, moved_s = now, time.monotonic()
        if moments and due_s is None:
            step, wait_s = moments[0]
            if step is None or order.index(step) == 0 or order[order.index(step) - 1] in steps:
                due_s = time.monotonic() + wait_s
                victim = choose([v for v in outcome.shape.victims if v != victims.STORAGE or not storage.is_away])
        if due_s is not None and victim is not None and time.monotonic() >= due_s:
            if not _kill(victim, run, storage, setup, generator):  # not alive yet
                due_s = time.monotonic() + generator.uniform(0, LATER_S)
                continue
            moments, due_s = moments[1:], None
            under_way = next((step for step in order if step not in steps), "end")
            outcome.kills.append((victim, under_way))
            say(f"  {outcome.name}: killed the {victim} during {under_way}")
            prefect_killed = prefect_killed or victim == victims.PREFECT
            moved_s = time.monotonic()
            if run.tend(victim, excused=True):
                return
        if time.monotonic() - moved_s > LIMIT_S:
            raise RoundFailed(f"nothing has moved for {LIMIT_S:g} s; recorded: {sorted(steps, key=_order)}")
        time.sleep(LOOK_S)


def _kill(victim: str, run: TendedRun, storage: Storage, setup: Setup, generator: random.Random) -> bool:
    if victim == victims.FROZEN:
        assert isinstance(run, CommandRun)
        return run.freeze(generator.uniform(*FROZEN_S))
    if victim != victims.STORAGE:
        return victims.kill(victim, setup.mark, generator)
    assert isinstance(storage, S3Storage)
    if storage.is_away:
        return False
    storage.kill(generator)
    return True


def _moments(
    shape: Shape, reference: Reference, kills: int, generator: random.Random
) -> list[tuple[str | None, float]]:
    """When to kill: steps spread evenly over all there are, each with the seconds to wait once the step before it is
    recorded. In a round of the start-up: seconds after each start; in one of uploads: of the steps only those in which
    an optimizer state is on its way."""
    order = list(reference.seconds)
    if shape.mode == "start-up":
        longest_s = 1.2 * reference.seconds[order[0]]
        return [(None, generator.uniform(0, longest_s)) for _ in range(kills)]
    steps = range(len(order))
    if shape.mode == "upload":  # the rollout of the next iteration, then the update that waits
        steps = [n for n in steps if order[n].endswith(("rollout", "update")) and order[n] != "000001/rollout"]
    chosen = sorted(generator.choices(steps, k=kills))
    return [(order[index], generator.uniform(0, reference.seconds[order[index]])) for index in chosen]


def _steps(store: CampaignStore, known: set[str]) -> set[str]:
    """The steps that are recorded or committed; those `known` where the store does not answer."""
    try:
        records = [info.path for info in list_objects(store, "_stages")]
        commits = [info.path for info in list_objects(store, "_commits")]
        leases = [info.path for info in list_objects(store, "_lease")]
    except OpidError:
        return known
    finished = {f"{path.split('/')[1]}/{Path(path).stem}" for path in records if Path(path).stem in STAGES}
    finished |= {f"{Path(path).stem}/commit" for path in commits}
    return finished | ({"000000/lease"} if leases else set())


def _order(step: str) -> tuple[int, int]:
    iteration, _, stage = step.partition("/")
    return (int(iteration), STAGES.index(stage))


def _setup(storage: Storage, folder: Path, name: str, shape: Shape) -> Setup:
    round_folder = folder / name
    round_folder.mkdir(parents=True, exist_ok=True)
    iterations, upload_s = (UPLOAD_ITERATIONS, UPLOAD_S) if shape.mode == "upload" else (ITERATIONS, None)
    return Setup(round_folder, storage.root(name), storage.endpoint_url, shape.ranks, iterations, upload_s)


def _start_reader(setup: Setup, pause_s: float):
    arguments = [setup.root, NAME, setup.endpoint_url or "", str(setup.folder), str(pause_s)]
    env = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return processes.start(
        [sys.executable, "-m", "benchmarks.chaos.reader", *arguments], setup.folder / "reader.log", env
    )


def open_storage(store: str, folder: Path, seed: int) -> Storage:
    """The storage of the rounds on `store` (file or s3)."""
    return FileStorage(folder) if store == "file" else S3Storage(folder / "s3", seed)
