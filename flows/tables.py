"""`python -m flows.tables`: docs/tables.md, every column of the tables and every field of a manifest."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pyarrow as pa

from flows.reference import table
from infra import manifest
from opid_core.schema import TABLES, VERSION

ROWS = {
    "steps": "a decision: prompt and response",
    "trajectories": "an episode",
    "skills": "a skill, or a failed analysis",
    "routes": "a step, and which skill it is scored under",
    "scores": "a step's log-probs and advantages",
    "metrics": "a number of an iteration",
    "evaluations": "an evaluated episode",
}
"""What a row is."""

MEANINGS = {
    "action": "The action found in the response, as the world got it.",
    "added_log_probs": "Of the response under the episode skill of `added_skill_id` too; null where there is none.",
    "added_skill_id": "With `method.routing: additive` the episode skill beside the step's own.",
    "admissible_actions": "What the world offered; empty where it lists nothing.",
    "analyzer": "What made the skill, or tried last: `hindsight`, `llm`, or `module:name`.",
    "attempts": "Requests sent.",
    "campaign": "Name of the campaign.",
    "completion_tokens": "Of the model's replies.",
    "cost": "Of the model's calls at the configured prices; null without prices.",
    "cut": "JSON of what the model was not shown for length.",
    "done": "Whether the step was its trajectory's last.",
    "error": "Why the episode broke.",
    "evaluations.admissible_actions": "How many actions were on offer.",
    "evaluations.policy_version": "The policy that played: k is the one that k updates made.",
    "evaluations.seed": "Of the episode.",
    "group_id": "Episodes of one task that are compared with each other.",
    "history_dropped": "Past steps left out of the prompt for its length.",
    "is_valid": "Whether the response was well-formed.",
    "iteration": "Of the campaign, from 1.",
    "kind": "`episode`, `step`, or `failed` (no skill, but an `error`).",
    "metrics.iteration": "Of the campaign; 0 is the start.",
    "metrics.name": "See [metrics](metrics.md). Names that end in `_s` or `_per_s` are wall-clock.",
    "model": "The model asked; null where none was. What follows, up to `reasoning`, is of its call, which all skills "
    "of a trajectory share.",
    "observation": "What the policy saw before it acted.",
    "old_log_probs": "Of the response without a skill, by the learner and the policy that sampled.",
    "outcome": "`success`, `failure`, `truncated` (out of steps) or `broken` (by an error).",
    "outcome_advantage": "The advantage from won and lost, the same for each token of the response.",
    "placebo": "Text of the skill's placebo, under which the step is scored too.",
    "placebo_log_probs": "Of the response under the placebo; null where there is none.",
    "policy_version": "The policy that sampled: k is the one that k updates made.",
    "prompt_hash": "sha256 of the messages sent to the model.",
    "prompt_ids": "Tokens of the whole prompt, chat template included.",
    "prompt_text": "The user message before the chat template; with `prompting.style: chat` the conversation so far.",
    "prompt_tokens": "Of the prompts sent to the model.",
    "raw_reply": "The model's last reply, unchanged.",
    "reason": "JSON of why a step has this skill, where the analyzer says so.",
    "reasoning": "What the endpoint kept apart of the reply.",
    "reference_log_probs": "Of the response by the reference policy; null where the KL term is off.",
    "repetition": "From 0, where tasks are played several times.",
    "response_ids": "Tokens of the response, as sampled.",
    "response_text": "The response as text.",
    "return": "Sum of the episode's rewards; penalties for invalid responses are no part of it.",
    "reward": "The environment's own for the action, times `environment.success_reward`.",
    "rollout_log_probs": "Of the response's tokens, by the engine that sampled, at temperature 1.",
    "route": "`step`, `episode`, or `none`: which kind of skill the step is scored under.",
    "routes.reason": "Why the step has this route.",
    "routes.skill_id": "The skill that the step is scored under; null where nothing is routed.",
    "score": "What the episode was worth, 0 to 1, where the environment says so.",
    "scores.history_dropped": "Past steps left out of the prompt with the skill; 0 where nothing is routed.",
    "seconds": "How long the episode took.",
    "seed": "Of the response's sampling.",
    "skill_advantages": "The advantage from the skill, a number a token, weighted.",
    "skill_id": "Id of the skill.",
    "skill_log_probs": "Of the response under the routed skill; null where nothing is routed.",
    "skill_prompt_ids": "Tokens of the prompt with the skill; null where nothing is routed.",
    "skills.error": "Why there is no skill; with `hindsight` as analyzer, why the model's analysis failed.",
    "skills.outcome": "Of its trajectory.",
    "skills.seconds": "How long the analysis took.",
    "skills.step": "The step that a step skill is for; null for others.",
    "skills.tokens": "Of prompts and replies.",
    "split": "The evaluated split.",
    "state": "The environment's own key of its state before the action; null where it has none.",
    "step": "From 0 in its trajectory.",
    "step_advantage": "The advantage from comparing actions in the same state, weighted (gigpo); else 0.",
    "steps": "How many steps were played.",
    "task_id": "Id of the task in its split.",
    "task_text": "The task as the prompt states it.",
    "task_type": "Kind of the task.",
    "temperature": "Of the evaluation's sampling.",
    "text": "The skill, as it is put into a prompt; empty where the analysis failed.",
    "tokens": "Of the responses.",
    "trained": "False in groups in which an environment broke, or whose outcomes tie where the method skips those.",
    "trajectory_id": "Id of the episode, unique in the campaign; it begins with the iteration.",
    "truncated": "Whether the step was the last of a trajectory that ran out of steps.",
    "valid_actions": "How many responses were well-formed.",
    "value": "The number; null where there is none.",
}
"""Of a column in every table that has it, or of `table.column`."""

_TYPES = {"string": "text", "bool": "true or false", "float": "float32", "double": "float64"}
_RECORDS = (manifest.Manifest, manifest.FileRecord, manifest.FolderRecord)

_INTRODUCTION = f"""\
# Tables and manifests

What a campaign stores, column by column; [tables as data sets](datasets.md) shows how to read it. This page is made
from the code by `make docs`.

The tables are of version {VERSION}. A column may be null only where its type says so. What is marked *clock* depends on
the moment; all else is the same whenever config, seed and data are. Lists have one entry a token where their meaning
says nothing else. Joins go by `trajectory_id` and `step`, by `skill_id`, by `group_id` and by `task_id`.
"""


def reference() -> str:
    """The whole page in Markdown: a section a table, then what a manifest holds."""
    parts = [_INTRODUCTION]
    for name, schema in TABLES.items():
        rows = [(f"`{field.name}`", _type(field), meaning(name, field.name)) for field in schema]
        parts.append(f"## `{name}`\n\nOne row is {ROWS[name]}.\n\n" + table(("column", "type", "meaning"), rows))
    parts.append(
        "## The manifest\n\n`_commits/ITERATION.json`, the commit of an iteration; "
        f"[architecture](architecture.md) says how it is made. Its format is {manifest.FORMAT}.\n"
    )
    meanings = _docstrings()
    for record in _RECORDS:
        fields = record.model_json_schema()["properties"]
        rows = [(f"`{name}`", _json_type(field), meanings[record.__name__, name]) for name, field in fields.items()]
        summary = " ".join((record.__doc__ or "").split())
        parts.append(f"### `{record.__name__}`\n\n{summary}\n\n" + table(("field", "type", "meaning"), rows))
    return "\n".join(parts)


def meaning(table_name: str, column: str) -> str:
    """What a column of a table holds."""
    return MEANINGS.get(f"{table_name}.{column}") or MEANINGS[column]


def _type(field: pa.Field) -> str:
    of = field.type
    word = _TYPES.get(str(of), str(of))
    if pa.types.is_list(of):
        word = f"list of {_TYPES.get(str(of.value_type), str(of.value_type))}"
    return word + (", or null" if field.nullable else "") + (", *clock*" if field.metadata else "")


def _json_type(field: dict[str, Any]) -> str:
    """A field's type in words, from its JSON schema."""
    if choices := field.get("anyOf"):
        return " or ".join(_json_type(choice) for choice in choices)
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`"
    if field["type"] == "array":
        return f"list of {_json_type(field['items'])}" if "items" in field else "list"
    values = field.get("additionalProperties")
    return f"object of {_json_type(values)}" if isinstance(values, dict) else field["type"]


def _docstrings() -> dict[tuple[str, str], str]:
    """The docstring of each attribute in the module of manifests, by class and name."""
    return {
        (record.name, attribute.target.id): " ".join(ast.literal_eval(text.value).split())
        for record in ast.parse(inspect.getsource(manifest)).body
        if isinstance(record, ast.ClassDef)
        for attribute, text in zip(record.body, record.body[1:], strict=False)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
        if isinstance(text, ast.Expr)
    }


if __name__ == "__main__":
    print(reference(), end="")
