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


TABLES: dict[str, pa.Schema] = {}
ROWS: dict[str, str] = {}
"""What a row of each table is."""
MEANINGS: dict[str, dict[str, str]] = {}
"""What each column of each table holds, in Markdown (docs/tables.md)."""

_Column = tuple[str, pa.DataType, str] | tuple[str, pa.DataType, str, dict[bytes, bytes]]
"""Name, type, meaning, and what Arrow keeps with it."""


def _table(name: str, row: str, *columns: _Column, nullable: tuple[str, ...] = ()) -> pa.Schema:
    fields = [
        pa.field(n, of, nullable=n in nullable, metadata=marks[0] if marks else None) for n, of, _, *marks in columns
    ]
    ROWS[name], MEANINGS[name] = row, {column[0]: column[2] for column in columns}
    TABLES[name] = pa.schema(fields, metadata={b"version": str(VERSION).encode()})
    return TABLES[name]


# Columns of several tables.
_campaign = ("campaign", _text, "Name of the campaign.")
_iteration = ("iteration", _i32, "Of the campaign, from 1.")
_group_id = ("group_id", _text, "Episodes of one task that are compared with each other.")
_trajectory_id = ("trajectory_id", _text, "Id of the episode, unique in the campaign; it begins with the iteration.")
_step = ("step", _i32, "From 0 in its trajectory.")
_task_id = ("task_id", _text, "Id of the task in its split.")
_task_type = ("task_type", _text, "Kind of the task.")
_outcome = ("outcome", _text, "`success`, `failure`, `truncated` (out of steps) or `broken` (by an error).")
_return = ("return", _f32, "Sum of the episode's rewards; penalties for invalid responses are no part of it.")
_score = ("score", _f32, "What the episode was worth, 0 to 1, where the environment says so.")
_steps = ("steps", _i32, "How many steps were played.")
_tokens = ("tokens", _i32, "Of the responses.")

STEPS = _table(
    "steps",
    "a decision: prompt and response",
    _campaign,
    _iteration,
    _group_id,
    _trajectory_id,
    _step,
    _task_id,
    _task_type,
    ("task_text", _text, "The task as the prompt states it."),
    ("observation", _text, "What the policy saw before it acted."),
    ("state", _text, "The environment's own key of its state before the action; null where it has none."),
    ("admissible_actions", pa.list_(_text), "What the world offered; empty where it lists nothing."),
    (
        "prompt_text",
        _text,
        "The user message before the chat template; with `prompting.style: chat` the conversation so far.",
    ),
    ("prompt_ids", pa.list_(_i32), "Tokens of the whole prompt, chat template included."),
    ("history_dropped", _i32, "Past steps left out of the prompt for its length."),
    ("response_text", _text, "The response as text."),
    ("response_ids", pa.list_(_i32), "Tokens of the response, as sampled."),
    ("rollout_log_probs", pa.list_(_f32), "Of the response's tokens, by the engine that sampled, at temperature 1."),
    ("action", _text, "The action found in the response, as the world got it."),
    ("is_valid", _flag, "Whether the response was well-formed."),
    ("reward", _f32, "The environment's own for the action, times `environment.success_reward`."),
    ("done", _flag, "Whether the step was its trajectory's last."),
    ("truncated", _flag, "Whether the step was the last of a trajectory that ran out of steps."),
    ("policy_version", _i32, "The policy that sampled: k is the one that k updates made."),
    ("seed", _i64, "Of the response's sampling."),
    nullable=("state",),
)

TRAJECTORIES = _table(
    "trajectories",
    "an episode",
    _campaign,
    _iteration,
    _group_id,
    _trajectory_id,
    _task_id,
    _task_type,
    _outcome,
    _return,
    _score,
    _steps,
    _tokens,
    ("seconds", _f32, "How long the episode took.", _VOLATILE),
    ("error", _text, "Why the episode broke."),
    nullable=("score", "error"),
)
OUTCOMES = ("success", "failure", "truncated", "broken")

SKILLS = _table(
    "skills",
    "a skill, or a failed analysis",
    ("skill_id", _text, "Id of the skill."),
    _trajectory_id,
    ("kind", _text, "`episode`, `step`, or `failed` (no skill, but an `error`)."),
    ("step", _i32, "The step that a step skill is for; null for others."),
    ("text", _text, "The skill, as it is put into a prompt; empty where the analysis failed."),
    ("reason", _text, "JSON of why a step has this skill, where the analyzer says so."),
    ("outcome", _text, "Of its trajectory."),
    ("analyzer", _text, "What made the skill, or tried last: `hindsight`, `llm`, or `module:name`."),
    (
        "model",
        _text,
        "The model asked; null where none was. "
        "What follows, up to `reasoning`, is of its call, which all skills of a trajectory share.",
    ),
    ("prompt_hash", _text, "sha256 of the messages sent to the model."),
    ("attempts", _i32, "Requests sent.", _VOLATILE),
    ("tokens", _i32, "Of prompts and replies."),
    ("prompt_tokens", _i32, "Of the prompts sent to the model."),
    ("completion_tokens", _i32, "Of the model's replies."),
    ("cost", _f64, "Of the model's calls at the configured prices; null without prices."),
    ("seconds", _f32, "How long the analysis took.", _VOLATILE),
    ("cut", _text, "JSON of what the model was not shown for length."),
    ("error", _text, "Why there is no skill; with `hindsight` as analyzer, why the model's analysis failed."),
    ("raw_reply", _text, "The model's last reply, unchanged."),
    ("reasoning", _text, "What the endpoint kept apart of the reply."),
    nullable=(
        *("step", "reason", "model", "prompt_hash", "tokens", "prompt_tokens", "completion_tokens", "cost", "cut"),
        *("seconds", "error", "raw_reply", "reasoning"),
    ),
)
"""One row of kind `failed` is a failed analysis. The `reason` of hindsight's step skills holds `kind` (`own`: the skill
names what the step did; `other`), `left` and `left_after` (steps to success before and after the step, null: nobody won
from there) and `siblings` (how many other trajectories were in the step's state)."""
SKILL_KINDS = ("episode", "step", "failed")

ROUTES = _table(
    "routes",
    "a step, and which skill it is scored under",
    _trajectory_id,
    _step,
    ("route", _text, "`step`, `episode`, or `none`: which kind of skill the step is scored under."),
    ("skill_id", _text, "The skill that the step is scored under; null where nothing is routed."),
    ("added_skill_id", _text, "With `method.routing: additive` the episode skill beside the step's own."),
    ("reason", _text, "Why the step has this route."),
    ("placebo", _text, "Text of the skill's placebo, under which the step is scored too."),
    nullable=("skill_id", "added_skill_id", "placebo"),
)
ROUTE_NAMES = ("step", "episode", "none")

SCORES = _table(
    "scores",
    "a step's log-probs and advantages",
    _trajectory_id,
    _step,
    ("old_log_probs", pa.list_(_f32), "Of the response without a skill, by the learner and the policy that sampled."),
    ("skill_log_probs", pa.list_(_f32), "Of the response under the routed skill; null where nothing is routed."),
    (
        "added_log_probs",
        pa.list_(_f32),
        "Of the response under the episode skill of `added_skill_id` too; null where there is none.",
    ),
    ("placebo_log_probs", pa.list_(_f32), "Of the response under the placebo; null where there is none."),
    ("reference_log_probs", pa.list_(_f32), "Of the response by the reference policy; null where the KL term is off."),
    ("skill_prompt_ids", pa.list_(_i32), "Tokens of the prompt with the skill; null where nothing is routed."),
    ("history_dropped", _i32, "Past steps left out of the prompt with the skill; 0 where nothing is routed."),
    ("outcome_advantage", _f32, "The advantage from won and lost, the same for each token of the response."),
    ("step_advantage", _f32, "The advantage from comparing actions in the same state, weighted (gigpo); else 0."),
    ("skill_advantages", pa.list_(_f32), "The advantage from the skill, a number a token, weighted."),
    (
        "trained",
        _flag,
        "False in groups in which an environment broke, or whose outcomes tie where the method skips those.",
    ),
    nullable=(
        *("skill_log_probs", "added_log_probs", "placebo_log_probs", "reference_log_probs"),
        "skill_prompt_ids",
    ),
)

METRICS = _table(
    "metrics",
    "a number of an iteration",
    ("iteration", _i32, "Of the campaign; 0 is the start."),
    ("name", _text, "See [metrics](metrics.md). Names that end in `_s` or `_per_s` are wall-clock."),
    ("value", _f64, "The number; null where there is none."),
    nullable=("value",),
)
"""A long table: new metrics need no new schema."""

EVALUATIONS = _table(
    "evaluations",
    "an evaluated episode",
    ("policy_version", _i32, "The policy that played: k is the one that k updates made."),
    ("split", _text, "The evaluated split."),
    ("temperature", _f32, "Of the evaluation's sampling."),
    ("repetition", _i32, "From 0, where tasks are played several times."),
    _task_id,
    _task_type,
    _outcome,
    _return,
    _score,
    _steps,
    ("valid_actions", _i32, "How many responses were well-formed."),
    ("admissible_actions", _i32, "How many actions were on offer."),
    _tokens,
    ("seed", _i64, "Of the episode."),
    nullable=("score",),
)

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
