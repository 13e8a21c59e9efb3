"""The commit of an iteration: one small JSON file that lists every object of it and names its predecessor.

`content` hashes only what training is made of, so it is equal for two runs of the same config and seed although their
attempts, run ids and clocks differ; `prev` hashes the predecessor's bytes, so no manifest can be edited unseen.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.names import StoredName, TableName
from opid_core.errors import DataError
from opid_core.hashing import EXECUTION, canonical_json
from opid_core.policy_check import ADAPTER

FORMAT = 5
"""Raised with any change of the fields below."""

OBSERVED_TABLES = ("metrics", "evaluations")
"""Tables that only look at a campaign: they do not enter `content`, so evaluating more often changes no seed."""

WEIGHT_SUFFIX = ".safetensors"
STATE_FOLDER = "optimizer"
"""Inside a policy's folder: the learner's own state, for an exact resume."""


class Record(BaseModel):
    """Base of what a manifest holds: unknown keys are errors, values never change, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileRecord(Record):
    """One immutable object of the store."""

    path: StoredName
    """Relative to the campaign's folder."""
    size: int = Field(ge=0, lt=1 << 63)
    """Bytes; no file has more."""
    sha256: str
    """Of its bytes."""
    rows: int | None = None
    """Of a table's part; null for other files, as are the next two."""
    schema_version: int | None = None
    """`schema.VERSION` of the version of OPID that wrote it."""
    content_hash: str | None = None
    """`schema.content_hash`: equal for equal data, whatever the clock said."""


class FolderRecord(Record):
    """A policy: a folder of immutable objects."""

    uri: StoredName = Field(pattern=r"^policies/[0-9]{6,}/[^/]+$")
    """Relative to the campaign's folder; every file lies below it."""
    files: tuple[FileRecord, ...]
    """Weights, tokenizer and the like, and the learner's state below `optimizer/`."""

    def name_of(self, file: FileRecord) -> str:
        """The path of one of its files in the folder."""
        return file.path.removeprefix(f"{self.uri}/")

    @model_validator(mode="after")
    def _holds_its_files(self) -> Self:
        paths = [file.path for file in self.files]
        if len({*paths}) < len(paths) or not all(path.startswith(f"{self.uri}/") for path in paths):
            raise ValueError(f"files: not every path is another one below {self.uri}/")
        return self


def _in_their_folders(tables: dict[str, FileRecord]) -> dict[str, FileRecord]:
    for name, record in tables.items():
        if not record.path.startswith(f"{name}/"):
            raise ValueError(f"{name}: {record.path} is no part of that table")
    return tables


def _of_execution(values: dict[str, bool | int | float]) -> dict[str, bool | int | float]:
    if unknown := values.keys() - EXECUTION:
        raise ValueError(f"{', '.join(map(repr, sorted(unknown)))}: expected keys of {', '.join(EXECUTION)}")
    return values


def _with_zone(time: str) -> str:
    if datetime.fromisoformat(time).tzinfo is None:
        raise ValueError(f"{time!r} is a time without its zone")
    return time


Tables = Annotated[dict[TableName, FileRecord], AfterValidator(_in_their_folders)]
"""Parts of tables by the table's name, below whose folder they lie."""


class BrokenExpectation(Record):
    """An expectation that did not hold in one table."""

    expectation: str
    column: str
    severity: Literal["fail", "warn"] = "fail"
    """`fail` keeps the table from being committed, `warn` is only recorded."""
    failing_rows: tuple[dict[str, Any], ...] = ()
    """Keys of the first failing rows, with the offending value where there is one."""
    observed: Any = None


HeldExpectation = tuple[str, str, Any]
"""Expectation, column and what was observed. No `Record`: a commit has a hundred, and as tuples of texts that repeat
they take a third of a long chain's memory and half of the time to read it."""


class GateResult(Record):
    """What the gate of one table found."""

    table: str
    passed: bool
    """Whether the table may be committed: all expectations of severity `fail` held, those in `degraded` aside."""
    held: tuple[HeldExpectation, ...] = ()
    broken: tuple[BrokenExpectation, ...] = ()
    degraded: tuple[str, ...] = ()
    """The failure budget that was exceeded and let through (`gates.on_exhausted: degrade`), one reason each."""

    @property
    def warnings(self) -> tuple[BrokenExpectation, ...]:
        """What was found and only recorded."""
        return tuple(result for result in self.broken if result.severity == "warn")


class Manifest(Record):
    """The commit of one iteration. Made by `new_manifest` only, which fills in the hashes."""

    format: int
    """`FORMAT` of the version of OPID that wrote it."""
    iteration: int = Field(ge=0)
    """0 is the start: the initial policy and its evaluation, before any training."""
    tables: Tables
    """The iteration's part of each table, by the table's name."""
    policy: FolderRecord
    """The policy that the iteration made."""
    policy_version: int
    """Version of `policy`: iteration k makes policy k."""
    gates: dict[str, GateResult]
    """What the gate of each table found: whether it passed, which expectations held, which broke."""
    config_hash: str
    """Of the run's config; at the start, of the campaign's `config.json`."""
    preset: str = ""
    """Name of the preset of the config's numbers."""
    execution: Annotated[dict[str, bool | int | float], AfterValidator(_of_execution)] = {}
    """How the run that committed it was fitted to its machine: `hashing.execution` of its config."""
    code_version: str
    """OPID's version, with the commit where it is known."""
    seeds: dict[str, int]
    """The campaign's and the iteration's."""
    prefect_run_id: str | None
    """Of the flow run that committed it."""
    metrics: dict[str, float | None]
    """A few headline numbers; the table `metrics` holds all."""
    created_at: Annotated[str, AfterValidator(_with_zone)]
    """ISO 8601, UTC."""
    degraded: tuple[str, ...] = ()
    """Why the iteration was committed although its failure budget was exceeded; empty for a sound one."""
    prev: str | None
    """sha256 of the previous manifest's bytes; null at the start."""
    content: str
    """sha256 over the tables' content hashes, the policy's weights and the previous `content`."""
    checksum: str
    """sha256 of the canonical JSON of all other fields."""


class Pruned(Record):
    """The note of which files of a policy's optimizer state were deleted for their space."""

    files: tuple[StoredName, ...]


class _Written(BaseModel):
    """What of a manifest can be read whatever its format."""

    format: int = 1
    """The first format did not say."""


def new_manifest(
    *,
    iteration: int,
    tables: Mapping[str, FileRecord],
    policy: FolderRecord,
    gates: Sequence[GateResult],
    config_hash: str,
    code_version: str,
    seeds: Mapping[str, int],
    prefect_run_id: str | None,
    metrics: Mapping[str, float | None],
    created_at: str,
    previous: Manifest | None,
    preset: str = "",
    execution: Mapping[str, bool | int | float] | None = None,
    degraded: Sequence[str] = (),
) -> Manifest:
    """A manifest with its hashes. `previous` is the manifest of the iteration before (None only at the start); raises
    DataError where it is not."""
    given = previous.iteration if previous else None
    if given != (iteration - 1 if iteration else None):
        raise DataError(f"manifest of iteration {iteration}: its predecessor cannot be that of iteration {given}")
    fields: dict[str, Any] = {
        "format": FORMAT,
        "iteration": iteration,
        "tables": dict(tables),
        "policy": policy,
        "policy_version": iteration,
        "gates": {gate.table: gate for gate in gates},
        "config_hash": config_hash,
        "preset": preset,
        "execution": dict(execution or {}),
        "code_version": code_version,
        "seeds": dict(seeds),
        "prefect_run_id": prefect_run_id,
        "metrics": dict(metrics),
        "created_at": created_at,
        "degraded": tuple(degraded),
        "prev": hashlib.sha256(to_bytes(previous)).hexdigest() if previous else None,
        "content": _content(iteration, tables, policy, previous.content if previous else None),
    }
    try:
        draft = Manifest(**fields, checksum="")
    except ValidationError as error:
        raise DataError(f"manifest of iteration {iteration}: {problems(error)}") from None
    return draft.model_copy(update={"checksum": _checksum(draft)})


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as stored: JSON, sorted keys, two spaces of indent, UTF-8."""
    return (json.dumps(manifest.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def parse(data: bytes, source: str) -> Manifest:
    """The manifest stored in `data`, checked against itself only. Raises DataError that names `source`."""
    manifest = _parsed(data, source)
    if _checksum(manifest) != manifest.checksum or to_bytes(manifest) != data:
        raise DataError(f"{source}: the manifest was changed after its commit (checksum differs)")
    return manifest


def from_bytes(data: bytes, source: str, previous: Manifest | None) -> Manifest:
    """The manifest stored in `data`, checked against itself and against its predecessor.

    Raises DataError that names `source` for anything but the bytes that `to_bytes` wrote after `previous`.
    """
    manifest = parse(data, source)
    _check_follows(manifest, source, previous, to_bytes(previous) if previous else None)
    return manifest


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage: a long chain is hundreds of thousands of objects without a cycle, and to look for some
    again and again takes as long as to read it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@uncollected()
def chain_from_bytes(stored: Iterable[tuple[bytes, str]]) -> list[Manifest]:
    """The chain of manifests stored as pairs of bytes and source, the start's first: as `from_bytes` for each, only
    faster. Raises DataError that names the source of the first bad one."""
    chain: list[Manifest] = []
    before: tuple[bytes, str] | None = None
    for data, source in stored:
        manifest = _parsed(data, source)
        try:
            _check_follows(manifest, source, chain[-1] if chain else None, before[0] if before else None)
            if manifest.iteration != len(chain):
                raise DataError(f"{source}: holds the manifest of iteration {manifest.iteration}")
        except DataError:
            for doubtful in (before, (data, source)):
                if doubtful:
                    parse(*doubtful)  # the fault is in the first whose bytes are not those that were committed
            raise
        chain.append(manifest)
        before = data, source
    if before:
        parse(*before)  # each manifest's bytes are hashed by the next: only the newest must vouch for itself
    return chain


def _parsed(data: bytes, source: str) -> Manifest:
    """The manifest in `data`, its fields checked."""
    try:
        manifest = Manifest.model_validate_json(data)
        written = manifest.format
    except ValidationError as error:
        written = _written_format(data)
        if written == FORMAT:
            raise DataError(f"{source}: not a manifest: {problems(error)}") from None
    if written != FORMAT:
        raise DataError(
            f"{source}: a manifest of format {written}; this version of OPID reads format {FORMAT} alone, so it "
            "can neither continue nor show this campaign: use the version that wrote it (`code_version` in the "
            "manifest), or begin another campaign (`--set campaign=NAME`)"
        )
    return manifest


def _written_format(data: bytes) -> int:
    """The format of a manifest that cannot be read; `FORMAT` for what is none."""
    try:
        return _Written.model_validate_json(data).format
    except ValidationError:
        return FORMAT


def _check_follows(manifest: Manifest, source: str, previous: Manifest | None, stored: bytes | None) -> None:
    """`stored`: the bytes of `previous`."""
    prev = None if stored is None else hashlib.sha256(stored).hexdigest()
    if manifest.prev != prev:
        raise DataError(
            f"{source}: broken chain: it names {manifest.prev} as its predecessor, "
            f"but manifest {previous.iteration if previous else None} hashes to {prev}"
        )


def kind_of(name: str) -> Literal["state", "weights", "other"]:
    """What a file of a policy holds, by its path in the policy's folder."""
    if name.startswith(f"{STATE_FOLDER}/"):
        return "state"
    return "weights" if name.endswith(WEIGHT_SUFFIX) else "other"


def is_adapter(policy: FolderRecord) -> bool:
    """Whether the policy's folder holds an adapter on the policy of the start, and not all weights."""
    return any(policy.name_of(file) == ADAPTER for file in policy.files)


def state_files(policy: FolderRecord) -> list[FileRecord]:
    """The files of a policy's optimizer state."""
    return [file for file in policy.files if kind_of(policy.name_of(file)) == "state"]


def weights_only(policy: FolderRecord) -> FolderRecord:
    """The policy's folder without its optimizer state: what it takes to sample and to score."""
    return _without(policy, "state")


def texts_only(policy: FolderRecord) -> FolderRecord:
    """The policy's folder without weights and optimizer state: what it takes to make tokens of a text."""
    return _without(policy, "state", "weights")


def _without(policy: FolderRecord, *kinds: str) -> FolderRecord:
    files = (file for file in policy.files if kind_of(policy.name_of(file)) not in kinds)
    return policy.model_copy(update={"files": tuple(files)})


def weights_hash(policy: FolderRecord) -> str:
    """sha256 of a policy's weights: equal for equal weights, wherever they lie."""
    return hashlib.sha256(canonical_json(_weights(policy)).encode()).hexdigest()


def iteration_seed(campaign_seed: int, updates: int, weights: str) -> int:
    """Seed of an iteration, 0 <= seed < 2**63, from the campaign's seed and the policy that it begins with: how many
    iterations have updated it, and its `weights_hash` ("" at the start, which begins with none). Campaigns that differ
    in nothing that changed a weight draw the same."""
    digest = hashlib.sha256(f"{campaign_seed}:{updates}:{weights}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _content(iteration: int, tables: Mapping[str, FileRecord], policy: FolderRecord, prev_content: str | None) -> str:
    parts = {
        "iteration": iteration,
        "tables": {name: record.content_hash for name, record in tables.items() if name not in OBSERVED_TABLES},
        "weights": _weights(policy),
        "prev": prev_content,
    }
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _weights(policy: FolderRecord) -> dict[str, str]:
    weights = (file for file in policy.files if file.path.endswith(WEIGHT_SUFFIX))
    return {policy.name_of(file): file.sha256 for file in weights}


def _checksum(manifest: Manifest) -> str:
    return hashlib.sha256(canonical_json(manifest.model_dump(mode="json", exclude={"checksum"})).encode()).hexdigest()


def problems(error: ValidationError) -> str:
    """What is wrong with which fields, in one line."""
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
