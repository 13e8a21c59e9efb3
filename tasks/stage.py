"""What every stage of an iteration shares: where it works, what it hands on, how it writes a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from envs.base import Environment, make, validate_options
from infra.manifest import FileRecord, FolderRecord, GateResult
from infra.store import CampaignStore, read_table, write_table
from opid_core.config import CampaignConfig
from opid_core.episodes import EpisodeSettings
from opid_core.errors import InfrastructureError
from tasks import gates


@dataclass(frozen=True)
class Policy:
    """A policy in the store: the one after `version` updates."""

    version: int
    folder: FolderRecord


@dataclass(frozen=True)
class Context:
    """One attempt at one iteration (`start`: the initial policy and its evaluation)."""

    config: CampaignConfig
    store: CampaignStore
    iteration: int | Literal["start"]
    attempt: str
    seed: int
    policy: Policy
    """The policy that rolls out and scores, made by the iteration before."""
    reference: Policy
    """The policy of the start, which the KL term stays close to."""


@dataclass(frozen=True)
class StageResult:
    """What a stage hands on: small and serialisable (records of what it wrote, and numbers)."""

    tables: dict[str, FileRecord] = field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


def save(context: Context, name: str, table: pa.Table, related: Mapping[str, pa.Table], **limits: Any) -> StageResult:
    """Check `table` against its gate, then write it. Raises GateError before anything is written."""
    gate = gates.check(name, table, related, **limits)
    record = write_table(context.store, name, context.iteration, context.attempt, table)
    return StageResult(tables={name: record}, gates=(gate,))


def load(context: Context, *results: StageResult) -> dict[str, pa.Table]:
    """The tables of earlier stages by name."""
    return {name: read_table(context.store, record) for result in results for name, record in result.tables.items()}


def merge(*results: StageResult) -> StageResult:
    """Several results as one."""
    return StageResult(
        tables={name: record for result in results for name, record in result.tables.items()},
        gates=tuple(gate for result in results for gate in result.gates),
        metrics={name: value for result in results for name, value in result.metrics.items()},
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


def episode_settings(config: CampaignConfig, temperature: float) -> EpisodeSettings:
    """The rules of an episode as the config has them."""
    return EpisodeSettings(
        max_steps=config.environment.max_steps,
        history_length=config.environment.history_length,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=temperature,
        success_reward=config.environment.success_reward,
        timeout_s=config.environment.episode_timeout_s,
    )


def is_infrastructure_fault(task: Any, run: Any, state: Any) -> bool:
    """Prefect's retry condition: only faults outside the program are worth another try."""
    return isinstance(state.result(raise_on_failure=False), InfrastructureError)


RETRIES: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 10], "retry_condition_fn": is_infrastructure_fault}
"""Of every stage's task: two more tries for an infrastructure fault, none for anything else."""
