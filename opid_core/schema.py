"""The tables of an iteration: flat, one row a step (or episode), each schema with a version.

Columns marked `volatile` hold wall-clock readings and what else depends on the moment, such as requests sent anew; all
else is the same whenever config, seed and data are.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION = 7
"""Raised with any change of any table."""

_VOLATILE = {b"volatile": b"1"}

_i32, _i64, _f32, _f64, _text, _flag = pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.bool_()


def _table(*fields: tuple[str, pa.DataType] | pa.Field, nullable: tuple[str, ...] = ()) -> pa.Schema:
    built = [f if isinstance(f, pa.Field) else pa.field(f[0], f[1], nullable=f[0] in nullable) for f in fields]
    return pa.schema(built, metadata={b"version": str(VERSION).encode()})


STEPS = _table(
    ("campaign", _text),
    ("iteration", _i32),
    ("group_id", _text),
    ("trajectory_id", _text),
    ("step", _i32),
    ("task_id", _text),
    ("task_type", _text),
    ("task_text", _text),
    ("observation", _text),
    ("state", _text),
    ("admissible_actions", pa.list_(_text)),
    ("prompt_text", _text),
    ("prompt_ids", pa.list_(_i32)),
    ("history_dropped", _i32),
    ("response_text", _text),
    ("response_ids", pa.list_(_i32)),
    ("rollout_log_probs", pa.list_(_f32)),
    ("action", _text),
    ("is_valid", _flag),
    ("reward", _f32),
    ("done", _flag),
    ("truncated", _flag),
    ("policy_version", _i32),
    ("seed", _i64),
    nullable=("state",),
)
"""One decision a row. `prompt_text` is the user message before the chat template; `observation` is what the policy saw
before acting, `state` the environment's own key of the state that it was in (`envs.base.HasStateKey`); `reward` is the
environment's own for the action; `history_dropped` counts entries cut for length."""

TRAJECTORIES = _table(
    ("campaign", _text),
    ("iteration", _i32),
    ("group_id", _text),
    ("trajectory_id", _text),
    ("task_id", _text),
    ("task_type", _text),
    ("outcome", _text),
    ("return", _f32),
    ("score", _f32),
    ("steps", _i32),
    ("tokens", _i32),
    pa.field("seconds", _f32, nullable=False, metadata=_VOLATILE),
    ("error", _text),
    nullable=("score", "error"),
)
"""One episode a row. outcome: success | failure | truncated | broken; score: what the episode was worth, 0 to 1, where
the environment says so (`envs.base.StepResult`); tokens: response tokens."""
OUTCOMES = ("success", "failure", "truncated", "broken")

SKILLS = _table(
    ("skill_id", _text),
    ("trajectory_id", _text),
    ("kind", _text),
    ("step", _i32),
    ("text", _text),
    ("reason", _text),
    ("outcome", _text),
    ("analyzer", _text),
    ("model", _text),
    ("prompt_hash", _text),
    pa.field("attempts", _i32, nullable=False, metadata=_VOLATILE),
    ("tokens", _i32),
    ("prompt_tokens", _i32),
    ("completion_tokens", _i32),
    ("cost", _f64),
    pa.field("seconds", _f32, nullable=True, metadata=_VOLATILE),
    ("cut", _text),
    ("error", _text),
    ("raw_reply", _text),
    ("reasoning", _text),
    nullable=(
        *("step", "reason", "model", "prompt_hash", "tokens", "prompt_tokens", "completion_tokens", "cost", "cut"),
        *("error", "raw_reply", "reasoning"),
    ),
)
"""One skill a row, one row of kind `failed` (empty text, `error` set) a failed analysis. reason: JSON of why a step
has its skill, where the analyzer says so; hindsight gives `kind` (`own`: the skill names what the step did; `other`),
`left` and `left_after` (steps to success before and after the step, null: nobody won from there) and `siblings` (how
many other trajectories were in the step's state). From `model` to
`reasoning` it tells of the model's call, which all skills of a trajectory share; `reasoning` is what the endpoint kept
apart of the reply. attempts: requests sent; tokens: of prompts and
completions; cost: at the configured prices, null without them; cut: JSON of what the model was not shown. A skill with
an `error` was made by hindsight (`analyzer`) because the model's analysis failed for that reason."""
SKILL_KINDS = ("episode", "step", "failed")

ROUTES = _table(
    ("trajectory_id", _text),
    ("step", _i32),
    ("route", _text),
    ("skill_id", _text),
    ("added_skill_id", _text),
    ("reason", _text),
    ("placebo", _text),
    nullable=("skill_id", "added_skill_id", "placebo"),
)
"""One row a step sample. route: step | episode | none; skill_id: the row of `skills` that is injected; added_skill_id:
under `method.routing: additive` the episode skill that a step of route `step` is scored under too; placebo: the text of
the skill's placebo, under which the step is scored too (`method.placebo_episode`, `method.placebo_step`)."""
ROUTE_NAMES = ("step", "episode", "none")

SCORES = _table(
    ("trajectory_id", _text),
    ("step", _i32),
    ("old_log_probs", pa.list_(_f32)),
    ("skill_log_probs", pa.list_(_f32)),
    ("added_log_probs", pa.list_(_f32)),
    ("placebo_log_probs", pa.list_(_f32)),
    ("reference_log_probs", pa.list_(_f32)),
    ("skill_prompt_ids", pa.list_(_i32)),
    ("history_dropped", _i32),
    ("outcome_advantage", _f32),
    ("step_advantage", _f32),
    ("skill_advantages", pa.list_(_f32)),
    ("trained", _flag),
    nullable=(
        *("skill_log_probs", "added_log_probs", "placebo_log_probs", "reference_log_probs"),
        "skill_prompt_ids",
    ),
)
"""One row a step sample. `skill_log_probs` is null where nothing is routed, `added_log_probs` where no other skill is,
`placebo_log_probs` where the skill has no placebo,
`reference_log_probs` where the KL term is off; `step_advantage` and `skill_advantages` already carry their weights;
`trained` is false for groups in which an environment broke, or whose outcomes tie where the method filters those."""

METRICS = _table(
    ("iteration", _i32),
    ("name", _text),
    ("value", _f64),
    nullable=("value",),
)
"""One number a row (a long table: new metrics need no new schema). Names ending in `_s` or `_per_s` are wall-clock."""

EVALUATIONS = _table(
    ("policy_version", _i32),
    ("split", _text),
    ("temperature", _f32),
    ("repetition", _i32),
    ("task_id", _text),
    ("task_type", _text),
    ("outcome", _text),
    ("return", _f32),
    ("score", _f32),
    ("steps", _i32),
    ("valid_actions", _i32),
    ("admissible_actions", _i32),
    ("tokens", _i32),
    ("seed", _i64),
    nullable=("score",),
)
"""One evaluated episode a row, `repetition` from 0; policy_version k is the policy that k updates made; `score` as in
`trajectories`.
`admissible_actions` counts the actions taken that were on offer."""

TABLES: dict[str, pa.Schema] = {
    "steps": STEPS,
    "trajectories": TRAJECTORIES,
    "skills": SKILLS,
    "routes": ROUTES,
    "scores": SCORES,
    "metrics": METRICS,
    "evaluations": EVALUATIONS,
}

LOG_PROB_COLUMNS = (
    "rollout_log_probs",
    "old_log_probs",
    "skill_log_probs",
    "added_log_probs",
    "placebo_log_probs",
    "reference_log_probs",
    "skill_advantages",
)
"""Columns stored byte-stream-split: their floats compress better so."""


def from_rows(name: str, rows: list[dict]) -> pa.Table:
    """Rows (dicts with every column) as table `name`. pyarrow raises on a missing type or an overflow."""
    return pa.Table.from_pylist(rows, schema=TABLES[name])


def without_clock(table: pa.Table) -> pa.Table:
    """The table without its volatile columns and, of `metrics`, without the wall-clock rows."""
    columns = [f.name for f in table.schema if not (f.metadata or {}).get(b"volatile")]
    table = table.select(columns).combine_chunks()
    if "name" in table.column_names and "value" in table.column_names:
        names = table.column("name").to_pylist()
        table = table.filter(pa.array([not n.endswith("_s") for n in names], pa.bool_()))
    return table


def content_hash(table: pa.Table) -> str:
    """sha256 over what is left `without_clock`: equal for equal data, whatever the clock said."""
    table = without_clock(table)
    digest = hashlib.sha256()
    with pa.ipc.new_stream(_Into(digest.update), table.schema) as writer:
        writer.write_table(table)
    return digest.hexdigest()


class _Into(io.RawIOBase):
    """A file that hands on what is written, so that a table's stream is never held as a whole."""

    def __init__(self, take: Callable[[Buffer], None]) -> None:
        self._take = take

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self._take(data)
        return memoryview(data).nbytes
