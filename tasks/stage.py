"""A stage: a function of earlier results that writes tables, made into a Prefect task that survives faults.

Each stage is timed, limited, tried again after faults outside the program, and recorded when it is done: an interrupted
iteration reuses what its record names.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyarrow as pa
from prefect import task

from envs.base import Environment, make, validate_options
from infra import stages
from infra.store import check_objects, new_attempt, read_table, write_table
from opid_core.config import CampaignConfig, RecoveryConfig
from opid_core.errors import AttemptUnusable, DataError, InfrastructureError, OutOfMemory
from opid_core.hashing import training_hash
from opid_core.rollout.episodes import EpisodeSettings
from opid_core.skills.banks import skill_finder
from tasks import workers
from tasks.context import Place, StageResult
from tasks.gates import run as gates
from tasks.progress import report
from tasks.version import code_version

Inputs = ParamSpec("Inputs")
PlaceT = TypeVar("PlaceT", bound=Place)
ResultT = TypeVar("ResultT")


def stage(
    name: str,
) -> Callable[[Callable[Concatenate[PlaceT, Inputs], StageResult]], Callable[Concatenate[PlaceT, Inputs], StageResult]]:
    """Make a stage of a function: its result is recorded, and what a record names is not made again.

    Raises AttemptUnusable where the record of an interrupted run does not fit or its files are missing or damaged.
    """

    def decorate(
        function: Callable[Concatenate[PlaceT, Inputs], StageResult],
    ) -> Callable[Concatenate[PlaceT, Inputs], StageResult]:
        @functools.wraps(function)
        def run(place: PlaceT, *inputs: Inputs.args, **named: Inputs.kwargs) -> StageResult:
            if (recorded := _recorded(place, name)) is not None:
                report(place.iteration, name, note="reused")
                return recorded
            started_s = time.monotonic()
            result = function(place, *inputs, **named)
            seconds = {f"seconds/stage/{name}_s": time.monotonic() - started_s}
            return _record(place, name, merge_metrics(result, seconds))

        return persistent(name)(run)

    return decorate


def persistent(
    name: str,
) -> Callable[[Callable[Concatenate[PlaceT, Inputs], ResultT]], Callable[Concatenate[PlaceT, Inputs], ResultT]]:
    """Make a Prefect task of a function: ended after `recovery.stage_timeout_s`, tried again after a fault outside the
    program. Any fault ends the engine and the learner: the next try makes new ones from the stored policy."""

    def decorate(
        function: Callable[Concatenate[PlaceT, Inputs], ResultT],
    ) -> Callable[Concatenate[PlaceT, Inputs], ResultT]:
        def guarded(place: PlaceT, *inputs: Inputs.args, **named: Inputs.kwargs) -> ResultT:
            try:
                return function(place, *inputs, **named)
            except BaseException as error:
                workers.close()
                if isinstance(error, OutOfMemory):
                    workers.shrink_micro_batches()
                raise

        @functools.wraps(function)
        def call(place: PlaceT, *inputs: Inputs.args, **named: Inputs.kwargs) -> ResultT:
            return patiently(place.config.recovery, name, guarded, place, *inputs, **named)

        return call

    return decorate


def patiently(
    recovery: RecoveryConfig,
    name: str,
    function: Callable[Inputs, ResultT],
    *inputs: Inputs.args,
    **named: Inputs.kwargs,
) -> ResultT:
    """Call `function` as the Prefect task `name`, limited in time and tried again as `recovery` says."""

    def reporting(*inputs: Inputs.args, **named: Inputs.kwargs) -> ResultT:
        try:
            return function(*inputs, **named)
        except (InfrastructureError, TimeoutError) as error:
            report("start", "fault", note=f"{name} failed: {error}")
            raise

    with_options = task(
        name=name,
        timeout_seconds=recovery.stage_timeout_s,
        retries=recovery.stage_retries,
        retry_delay_seconds=retry_delays_s(recovery),
        retry_condition_fn=may_pass,
    )
    return with_options(reporting)(*inputs, **named)


def leniently(
    recovery: RecoveryConfig,
    name: str,
    function: Callable[Inputs, Any],
    *inputs: Inputs.args,
    **named: Inputs.kwargs,
) -> None:
    """`patiently`, for what no commit depends on: a fault that does not pass is told, and costs nothing else."""
    try:
        patiently(recovery, name, function, *inputs, **named)
    except (InfrastructureError, TimeoutError) as error:
        report("start", "fault", note=f"{name} was left undone: {error}")


def may_pass(task: Any, run: Any, state: Any) -> bool:
    """Prefect's retry condition: a fault outside the program may pass, anything else will come again."""
    return isinstance(state.result(raise_on_failure=False), InfrastructureError | TimeoutError)


def retry_delays_s(recovery: RecoveryConfig) -> list[float]:
    """Seconds before each further try: doubled each time, with up to half of it added at random.

    Prefect's own `retry_jitter_factor` has no effect on tasks that retry in their own process.
    """
    return [recovery.retry_delay_s * 2**n * random.uniform(1, 1.5) for n in range(recovery.stage_retries)]


def save(place: Place, name: str, table: pa.Table, related: Mapping[str, pa.Table], **limits: Any) -> StageResult:
    """Check `table` against its gate, then write it. Raises GateError before anything is written."""
    rollout = place.config.rollout
    limits = {
        "settings": place.config.gates,
        "max_prompt_tokens": rollout.max_prompt_tokens,
        "max_response_tokens": rollout.max_response_tokens,
        **limits,
    }
    gate = gates.check(name, table, related, degrade=place.degrade, **limits)
    record = write_table(place.store, name, place.iteration, new_attempt(), table)
    return StageResult(tables={name: record}, gates=(gate,))


def load(place: Place, *results: StageResult) -> dict[str, pa.Table]:
    """The tables of earlier stages by name."""
    return {name: read_table(place.store, record) for result in results for name, record in result.tables.items()}


def merge_metrics(result: StageResult, metrics: Mapping[str, float]) -> StageResult:
    """`result` with more numbers."""
    return StageResult(
        tables=result.tables, gates=result.gates, metrics={**result.metrics, **metrics}, policy=result.policy
    )


@contextmanager
def timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    """Put the wall-clock seconds of the block into `metrics[name]`."""
    started_s = time.monotonic()
    yield
    metrics[name] = time.monotonic() - started_s


def environment_maker(config: CampaignConfig) -> Callable[[], Environment]:
    """A function that makes one episode's environment after the other."""
    name = config.environment.name
    options = validate_options(name, config.environment.options)
    return lambda: make(name, options)


def training_settings(config: CampaignConfig) -> EpisodeSettings:
    """The rules of an episode that is trained on."""
    return _episode_settings(config, config.rollout.temperature, config.method.skill_bank)


def evaluation_settings(config: CampaignConfig, temperature: float) -> EpisodeSettings:
    """The rules of an evaluated episode."""
    return _episode_settings(config, temperature, config.bank_at_test)


def check_skill_banks(config: CampaignConfig) -> None:
    """Raise ConfigError for a skill bank that cannot be read or lacks a task type of the split that it is used on."""
    environment = environment_maker(config)()
    for split, settings in (
        (config.environment.train_split, training_settings(config)),
        (config.evaluation.split, evaluation_settings(config, 1.0)),
    ):
        if settings.skill_of is not None:
            for task in environment.tasks(split):
                settings.skill_of(task)


def _episode_settings(config: CampaignConfig, temperature: float, skill_bank: str | None) -> EpisodeSettings:
    return EpisodeSettings(
        max_steps=config.environment.max_steps,
        history_length=config.environment.history_length,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=temperature,
        success_reward=config.environment.success_reward,
        timeout_s=config.environment.episode_timeout_s,
        skill_of=skill_finder(skill_bank) if skill_bank else None,
    )


# Records ----------------------------------------------------------------------------------------------------------


def _recorded(place: Place, name: str) -> StageResult | None:
    try:
        found = stages.recorded(place.store, place.iteration, place.attempt, name, _made_from(place))
        if found is None:
            return None
        result = StageResult.model_validate(found)
        files = [*result.tables.values(), *(result.policy.folder.files if result.policy else ())]
        check_objects(place.store, files)
    except DataError as error:
        raise AttemptUnusable(f"stage {name} of iteration {place.iteration} cannot be reused: {error}") from error
    return result.model_copy(update={"reused": True})


def _record(place: Place, name: str, result: StageResult) -> StageResult:
    made = result.model_dump(mode="json")
    standing = stages.record(place.store, place.iteration, place.attempt, name, _made_from(place), made)
    return StageResult.model_validate(standing).model_copy(update={"reused": standing != made})


def _made_from(place: Place) -> dict[str, str]:
    return {
        "parent": place.parent,
        "config": training_hash(place.config),
        "code_version": code_version(),
    }
