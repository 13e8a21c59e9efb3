"""An iteration of a campaign: what its stages share in this process, and what they leave in the store.

A stage is a Prefect task with small parameters (campaign, iteration, attempt). The live objects behind these names
belong to the `CampaignRun` that the campaign's flow holds; `stage` brings a task to them. A finished stage is recorded:
an iteration that was interrupted reuses what its records name, and only then reads tables back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import pyarrow as pa
from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.context import AssetContext
from prefect.tasks import MaterializingTask

from infra import stages
from infra.lease import Lease
from infra.manifest import (
    OBSERVED_TABLES,
    FileRecord,
    FolderRecord,
    GateResult,
    Manifest,
    iteration_seed,
    weights_hash,
)
from infra.store import CampaignStore, check_objects, location, new_attempt, read_table, write_table
from opid_core.config import CampaignConfig, RecoveryConfig
from opid_core.config.running import LONGEST_DELAY_S
from opid_core.errors import AttemptUnusable, ConfigError, DataError, InfrastructureError, OutOfMemory
from opid_core.samples import Samples
from opid_core.schema import TABLES
from tasks.gates import run as gates
from tasks.progress import REUSED, StageProgress, artifact_key, logged
from tasks.results import StageResult, made_from, read_result
from tasks.workers import Workers

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")


# What the flow holds ----------------------------------------------------------------------------------------------

_campaign_run: ContextVar[CampaignRun] = ContextVar("campaign_run")


class CampaignRun:
    """A campaign that this process works on. As a context manager it is what tasks of that campaign find, and it ends
    engine and learner."""

    def __init__(
        self, config: CampaignConfig, store: CampaignStore, chain: Sequence[Manifest] = (), lease: Lease | None = None
    ) -> None:
        self.config, self.store, self.lease = config, store, lease
        self.chain = list(chain)
        self.workers = Workers(config, store)
        self.iteration: Iteration | None = None
        self.ahead: Iteration | None = None
        """The iteration after `iteration`, should its rollout be played before that is committed."""
        self._kept: dict[str, pa.Table] = {}
        self.pruned = 0  # so many of the oldest policies were seen to: their optimizer states are gone
        self.since_s = time.monotonic()
        """When the newest commit was made here: a further iteration began then."""

    def __enter__(self) -> Self:
        self._token = _campaign_run.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _campaign_run.reset(self._token)
        self.workers.close()

    def begin(self, number: int, attempt: int, degrade: bool = False) -> Iteration:
        """An attempt at the iteration after `chain`, found by its stages from now on."""
        if self.iteration is not None and self.iteration.number < number:
            self._kept = self.iteration.kept(["skills"])  # no more: its other tables are large
        self.iteration, ahead, self.ahead = Iteration(self, self.chain, number, attempt, degrade), self.ahead, None
        if ahead is not None:
            self.iteration.adopt_stages(ahead)
        return self.iteration

    def begin_ahead(self, expected: Manifest, attempt: int) -> None:
        """An attempt at the iteration after `iteration`, whose commit is `expected` (as far as `content` says); found
        by its stages until the next `begin`, which adopts what they made should it follow the same content."""
        self.ahead = Iteration(self, [*self.chain, expected], expected.iteration + 1, attempt)

    def table(self, record: FileRecord, columns: Sequence[str]) -> pa.Table:
        """The `columns` of a committed table; read from the store only where this process does not have it."""
        kept = {**self._kept, **(self.iteration.kept() if self.iteration else {})}
        return kept[record.path].select(columns) if record.path in kept else read_table(self.store, record, columns)


def campaign_run(campaign: str) -> CampaignRun:
    """The run of `campaign` in this process. Raises ConfigError outside of its flow."""
    run = _campaign_run.get(None)
    if run is None or run.config.campaign != campaign:
        raise ConfigError(
            f"campaign {campaign!r}: not run by this process; its tasks are called by its flow `campaign`"
        )
    return run


class Iteration:
    """One attempt at an iteration: `number` 0 is the start, which makes policy 0; number k makes policy k.

    Tables are kept once written or read here. `metrics` are the numbers of the stage that runs now; what finished
    stages made is in `results`.
    """

    def __init__(
        self, run: CampaignRun, chain: Sequence[Manifest], number: int, attempt: int, degrade: bool = False
    ) -> None:
        self.config, self.store, self.workers, self.chain = run.config, run.store, run.workers, [*chain]
        self.number: int = number
        self.attempt = attempt
        self.degrade = degrade
        """Whether an exceeded failure budget is recorded instead of failing the gate."""
        self.since_s = run.since_s
        self.parent = chain[-1] if chain else None
        """The manifest before; None at the start."""
        begins_with = (self.policy_version, weights_hash(self.policy)) if self.parent else (0, "")
        self.seed = iteration_seed(run.config.seed, *begins_with)
        self.results: dict[str, StageResult] = {}
        self.reused_stages: set[str] = set()
        """Stages that an earlier, interrupted run of this attempt finished, or that were played ahead."""
        self._ahead: dict[str, StageResult] = {}
        self._left: StageResult | None = None
        self._tables: dict[str, pa.Table] = {}
        self._samples: Samples | None = None
        self._draft("")

    # Policies -----------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> FolderRecord:
        """The policy that rolls out and scores: that of the commit before."""
        assert self.parent is not None
        return self.parent.policy

    @property
    def policy_version(self) -> int:
        assert self.parent is not None
        return self.parent.policy_version

    @property
    def reference(self) -> FolderRecord:
        """The policy of the start, which the KL term stays close to."""
        return self.chain[0].policy

    @property
    def next_policy(self) -> FolderRecord:
        """The policy that this iteration made, which its evaluation plays and its commit names."""
        (policy,) = (result.policy for result in self.results.values() if result.policy is not None)
        return policy

    # Tables -------------------------------------------------------------------------------------------------------

    def table(self, name: str) -> pa.Table:
        """A table of this iteration; read from the store only where another run of this attempt wrote it."""
        if name not in self._tables:
            self._tables[name] = read_table(self.store, self._recorded_tables()[name])
        return self._tables[name]

    def kept(self, names: Collection[str] = TABLES) -> dict[str, pa.Table]:
        """Those tables among `names` that this process has, by the paths of their records."""
        records = {**self._recorded_tables(), **self._records}
        return {records[name].path: self._tables[name] for name in names if name in records and name in self._tables}

    def write(
        self, name: str, table: pa.Table, related: Mapping[str, pa.Table] = MappingProxyType({}), **limits: Any
    ) -> None:
        """Check `table` against its gate, then write it. Raises GateError before anything is written.

        The gate compares it with the iteration's tables so far and those of `related`; `limits` are fields of
        `gates.Limits` beyond those of the config.
        """
        so_far = [] if name in OBSERVED_TABLES else [*self._records, *self._recorded_tables()]
        limits = {
            "settings": self.config.gates,
            "max_prompt_tokens": self.config.rollout.max_prompt_tokens,
            "max_response_tokens": self.config.rollout.max_response_tokens,
            **limits,
        }
        compared = {**{n: self.table(n) for n in so_far}, **related}
        self._gates.append(gates.check(name, table, compared, degrade=self.degrade, **limits))
        self._records[name] = write_table(self.store, name, self.number, new_attempt(), table)
        self._tables[name] = table
        self.show_asset(name, self._records[name])

    @property
    def samples(self) -> Samples:
        """The iteration's step samples: of the tables `steps` and `trajectories`, and of `routes` and `scores` as soon
        as there are these."""
        if self._samples is None:
            self._samples, self._beside = Samples.from_tables(self.table("steps"), self.table("trajectories")), []
        for name in ("routes", "scores"):
            if name in self._recorded_tables() and name not in self._beside:
                self._samples = self._samples.beside(self.table(name))
                self._beside.append(name)
        return self._samples

    def _recorded_tables(self) -> dict[str, FileRecord]:
        """Of finished stages."""
        return {name: record for result in self.results.values() for name, record in result.tables.items()}

    # The stage that runs now --------------------------------------------------------------------------------------

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of the block to `metrics[name]`."""
        began_s = time.monotonic()
        yield
        self.metrics[name] = self.metrics.get(name, 0.0) + time.monotonic() - began_s

    @property
    def is_reused(self) -> bool:
        """Whether the stage that runs now was finished before, so that there is nothing to do."""
        return self._stage in self.reused_stages

    @property
    def is_left_open(self) -> bool:
        """Whether a task before this one, of the same stage, called `leave_open`."""
        return self._left is not None

    def leave_open(self) -> None:
        """Let a further task go on with the stage: what this one has made is not recorded."""
        self._is_open = True

    def go_on(self) -> None:
        """Begin the stage that runs now with what the task before this one has made."""
        assert self._left is not None
        self._draft(self._stage, self._left)

    def keep_policy(self, policy: FolderRecord) -> None:
        """Name the policy that the stage made."""
        self._policy = policy
        self.show_asset("policy", {"version": self.number, "uri": policy.uri})

    def begin_stage(self, name: str, progress: StageProgress, recorded: bool = True) -> None:
        """Begin with nothing, or with what the record of an interrupted run names.

        Raises AttemptUnusable where that record does not fit or its files are missing or damaged.
        """
        self._draft(name)
        self.progress = progress
        self._left = self.results.pop(name, None)
        self.reused_stages.discard(name)
        if name in self._ahead:
            self.results[name] = self._ahead[name]
            self.reused_stages.add(name)
            return
        if not recorded:
            return
        try:
            standing = stages.recorded(self.store, self.number, self.attempt, name, self._made_from())
            if standing is None:
                return
            result = read_result(standing)
            check_objects(self.store, [*result.tables.values(), *(result.policy.files if result.policy else ())])
        except DataError as error:
            raise AttemptUnusable(f"stage {name} of iteration {self.number} cannot be reused: {error}") from error
        self._adopt(name, result)

    def end_stage(self, seconds: float) -> None:
        """Record what the stage that runs now has made, unless it is left open; a run that was faster is adopted."""
        name, took = self._stage, f"seconds/stage/{self._stage}_s"
        self.metrics[took] = self.metrics.get(took, 0.0) + seconds
        result = StageResult(tables=self._records, gates=tuple(self._gates), metrics=self.metrics, policy=self._policy)
        if self._is_open:
            self.results[name] = result
            return
        ours = result.model_dump(mode="json")
        standing = stages.record(self.store, self.number, self.attempt, name, self._made_from(), ours)
        if standing == ours:
            self.results[name] = result
        else:
            self._adopt(name, read_result(standing))

    def everything(self) -> StageResult:
        """What the finished stages and the one that runs now have made."""
        results = self.results.values()
        return StageResult(
            tables={**self._recorded_tables(), **self._records},
            gates=(*(gate for result in results for gate in result.gates), *self._gates),
            metrics={**{n: v for result in results for n, v in result.metrics.items()}, **self.metrics},
            policy=self.next_policy,
        )

    def adopt_stages(self, ahead: Iteration) -> None:
        """Reuse what another object of this attempt, made for the same commit before it, has made in this process."""
        if (ahead.number, ahead.attempt, ahead._made_from()) == (self.number, self.attempt, self._made_from()):
            self._ahead, self._tables = ahead.results, ahead._tables

    def _adopt(self, name: str, result: StageResult) -> None:
        for table, record in result.tables.items():
            if self._records.get(table) != record:
                self._tables.pop(table, None)
            self.show_asset(table, record)
        self._samples = None
        self.results[name] = result
        self.reused_stages.add(name)

    def _draft(self, name: str, left: StageResult | None = None) -> None:
        left = left or StageResult()
        self._stage, self._is_open = name, False
        self._records: dict[str, FileRecord] = {**left.tables}
        self._gates: list[GateResult] = [*left.gates]
        self._policy: FolderRecord | None = left.policy
        self.metrics: dict[str, Any] = {**left.metrics}

    def _made_from(self) -> dict[str, str]:
        return made_from(self.config, self.parent, self._stage)

    def show_asset(self, name: str, record: FileRecord | Mapping[str, Any]) -> None:
        """Tell Prefect what was materialized, where the stage's task declares it."""
        context, key = AssetContext.get(), asset(name, self.config.campaign)
        if context is not None and any(one.key == key for one in context.downstream_assets):
            if isinstance(record, FileRecord):
                path = location(self.store, record.path)
                record = {"path": path, "rows": record.rows, "content_hash": record.content_hash}
            context.add_asset_metadata(key, {"iteration": self.number, **record})


# Stages as Prefect tasks --------------------------------------------------------------------------------------------


@contextmanager
def stage(name: str, campaign: str, iteration: int, attempt: int, recorded: bool = True) -> Iterator[Iteration]:
    """The live iteration for the body of a stage's task, which returns at once where `Iteration.is_reused`.

    Timed, and `recorded` at the end. Any fault ends engine and learner: the next try makes new ones from the stored
    policy. Of an iteration that is played ahead it ends the engine alone: the learner stores what is not committed yet.
    """
    run = campaign_run(campaign)
    named = (one for one in (run.iteration, run.ahead) if one and (one.number, one.attempt) == (iteration, attempt))
    it = next(named, None)
    if it is None:
        raise ConfigError(f"campaign {campaign!r}: attempt {attempt} at iteration {iteration} is not what it works on")
    with logged(name, iteration):
        try:
            began_s = time.monotonic()
            it.begin_stage(
                name, StageProgress(iteration, name, artifact_key("progress", campaign), get_run_logger()), recorded
            )
            it.progress(note=REUSED if it.is_reused else "")
            yield it
            if recorded and not it.is_reused:
                it.end_stage(time.monotonic() - began_s)
            it.progress.end()
        except BaseException as error:
            (it.workers.close_engine if it is run.ahead else it.workers.close)()
            if isinstance(error, OutOfMemory):
                it.workers.shrink_micro_batches()
            raise


def may_pass(task: Any, run: Any, state: Any) -> bool:
    """Prefect's retry condition: a fault outside the program may pass, anything else will come again."""
    return isinstance(state.result(raise_on_failure=False), InfrastructureError | TimeoutError)


TASK: Any = {"cache_policy": NO_CACHE, "persist_result": False, "retry_condition_fn": may_pass}
"""Options of every task: whatever Prefect's settings say, what a task did is asked of the store alone."""


def asset(name: str, campaign: str = "campaign") -> str:
    """Prefect's key of a table, of the policy or of the manifest; `configured` puts in the campaign's name."""
    return f"opid://{campaign}/{name}"


def configured(task: Task[Inputs, Result], config: CampaignConfig) -> Callable[Inputs, Result]:
    """`task` with the time limit and the retries that `config.recovery` says, and its assets as the campaign's."""
    recovery = config.recovery
    options: dict[str, Any] = {
        "timeout_seconds": recovery.stage_timeout_s,
        "retries": recovery.stage_retries,
        "retry_delay_seconds": retry_delays_s(recovery),
    }
    if isinstance(task, MaterializingTask):
        for side, assets in (("assets", task.assets), ("asset_deps", task.asset_deps)):
            options[side] = [asset(one.key.rsplit("/", 1)[1], config.campaign) for one in assets]
    return task.with_options(**options)


def retry_delays_s(recovery: RecoveryConfig) -> list[float]:
    """Seconds before each further try: doubled each time up to a bound, with up to half of it added at random."""
    # Prefect's own `retry_jitter_factor` has no effect on tasks that retry in their own process.
    doubled = (recovery.retry_delay_s * 2**n for n in range(recovery.stage_retries))
    return [min(delay, LONGEST_DELAY_S) * random.uniform(1, 1.5) for delay in doubled]
