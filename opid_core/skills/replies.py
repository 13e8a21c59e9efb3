"""Skills as data: from an analyzer's reply to clean texts and table rows (ALGORITHM, section 3)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from opid_core import schema
from opid_core.errors import AnalyzerReplyError, DataError

MAX_SKILL_CHARS = 1000
"""Longer skills are cut at a word: they must leave room for the prompt itself."""

_CONTROL_TOKENS = re.compile(
    r"<[|\uff5c][^<>|\uff5c]{0,40}[|\uff5c]>|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|</?(?:start|end)_of_turn>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|</?(?:think|action|search|answer|information|tool_call|tool_response)>",
    re.IGNORECASE,
)
_UNSEEN = ("Cc", "Cf", "Cs")
"""Categories: control characters; invisible ones (of zero width or direction, soft hyphens, tags); lone surrogates."""

# what loose JSON may hold outside of strings, and what may follow a string
_WORD = re.compile(r"[A-Za-z0-9_.+-]+")
_CONSTANTS = {"None": "null", "True": "true", "False": "false"}
_DELIMITER = re.compile(r"\s*(?:[,:\]}]|$)")
_MAX_OBJECTS = 64


@dataclass(frozen=True)
class Reply:
    """An analyzer's parsed reply; `step_skills` by 0-based step, in order of appearance."""

    episode_summary: str
    episode_skill: str
    step_skills: dict[int, str]


@dataclass(frozen=True)
class Analysis:
    """What an analyzer made of one trajectory: a failed analysis has no `episode_skill`, but an `error`.

    From `model` on it tells of the model's call, where one was asked; hindsight that stands in for a model keeps all
    of it, with the model's `error`."""

    trajectory_id: str
    summary: str
    episode_skill: str
    step_skills: dict[int, str]
    analyzer: str
    """What made the skills, or tried last: `hindsight` or `llm`."""
    model: str | None = None
    prompt_hash: str | None = None
    attempts: int = 1
    """Requests sent."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    """At the configured prices."""
    seconds: float | None = field(default=None, compare=False)
    cut: str | None = None
    """JSON of what was cut from the trajectory."""
    error: str | None = None
    raw_reply: str | None = None
    replayed: bool = field(default=False, compare=False)
    """Whether the call was made and paid for earlier."""

    @property
    def failed(self) -> bool:
        return not self.episode_skill

    @property
    def tokens(self) -> int | None:
        """Of prompts and completions."""
        known = [count for count in (self.prompt_tokens, self.completion_tokens) if count is not None]
        return sum(known) if known else None


def parse_reply(text: str) -> Reply:
    """The first JSON object in `text` with a non-empty `episode_skill`.

    Tolerated: code fences, prose around the object, trailing commas, single quotes, several objects, raw newlines in
    strings. Step keys that are no step number and blank step skills are left out. Raises AnalyzerReplyError where no
    object is usable. Source: ALGORITHM, section 3.
    """
    found = 0
    for value in _objects(text):
        found += 1
        skill = value.get("episode_skill")
        if isinstance(skill, str) and skill.strip():
            summary = value.get("episode_summary")
            return Reply(summary.strip() if isinstance(summary, str) else "", skill.strip(), _step_skills(value))
    raise AnalyzerReplyError(
        "the reply holds no JSON object" if not found else "no object of the reply has a non-empty episode_skill"
    )


def select_step_skills(
    step_skills: Mapping[int, str], candidates: Collection[int], max_step_skills: int
) -> dict[int, str]:
    """The first `max_step_skills` step skills whose step is among the candidates, in order of appearance."""
    kept = [(step, text) for step, text in step_skills.items() if step in candidates and text.strip()]
    return dict(kept[:max_step_skills])


def clean_skill(text: str, max_chars: int = MAX_SKILL_CHARS) -> str:
    """`text` on one line, cut at a word to `max_chars`, without chat-template control tokens and response tags, and
    without what cannot be seen: control and invisible characters, lone surrogates. HTML stays, as text."""
    cleaned = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    before = None
    while cleaned != before:  # taking one token out may put another together
        cleaned, before = _CONTROL_TOKENS.sub(" ", cleaned), cleaned
    cleaned = " ".join(c for c in cleaned.split() if c)
    if len(cleaned) <= max_chars:
        return cleaned
    cut = cleaned[: max_chars + 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut else cut)[:max_chars].rstrip()


def skill_rows(analyses: Iterable[Analysis], outcomes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of `schema.SKILLS`: the episode skill and the step skills of each analysis in order of steps, or one row of
    kind `failed`. `outcomes`: by trajectory id. Raises DataError for an analysis of an unknown trajectory."""
    rows: list[dict[str, Any]] = []
    for analysis in analyses:
        if analysis.trajectory_id not in outcomes:
            raise DataError(f"analysis of trajectory {analysis.trajectory_id!r}, which is not in the iteration")
        skills: list[tuple[str, str, int | None, str]]
        if analysis.failed:
            skills = [("failed", "failed", None, "")]
        else:
            steps = sorted(analysis.step_skills.items())
            skills = [("episode", "episode", None, analysis.episode_skill)]
            skills += [(f"step{step}", "step", step, text) for step, text in steps]
        rows += [
            {
                "skill_id": f"{analysis.trajectory_id}/{name}",
                "trajectory_id": analysis.trajectory_id,
                "kind": kind,
                "step": step,
                "text": text,
                "outcome": outcomes[analysis.trajectory_id],
                "analyzer": analysis.analyzer,
                "model": analysis.model,
                "prompt_hash": analysis.prompt_hash,
                "attempts": analysis.attempts,
                "tokens": analysis.tokens,
                "prompt_tokens": analysis.prompt_tokens,
                "completion_tokens": analysis.completion_tokens,
                "cost": analysis.cost,
                "seconds": analysis.seconds,
                "cut": analysis.cut,
                "error": analysis.error,
                "raw_reply": analysis.raw_reply,
            }
            for name, kind, step, text in skills
        ]
    return rows


def skills_table(analyses: Iterable[Analysis], trajectories: pa.Table) -> pa.Table:
    """The `skills` table of an iteration from its analyses and its `trajectories` table."""
    ids, outcomes = (trajectories.column(name).to_pylist() for name in ("trajectory_id", "outcome"))
    return schema.from_rows("skills", skill_rows(analyses, dict(zip(ids, outcomes, strict=True))))


# --- reading loose JSON ------------------------------------------------------------------------------------------


def _step_skills(value: Mapping[str, Any]) -> dict[int, str]:
    given = value.get("step_skills")
    if not isinstance(given, Mapping):
        return {}
    skills: dict[int, str] = {}
    for key, text in given.items():
        number = re.fullmatch(r"\s*(?:step)?[ _]*([0-9]{1,6})\s*", str(key), re.IGNORECASE)
        if number and isinstance(text, str) and text.strip():
            skills.setdefault(int(number[1]), text.strip())
    return skills


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost objects of `text` that can be read, in order."""
    position = 0
    for _ in range(_MAX_OBJECTS):
        position = text.find("{", position)
        if position < 0:
            return
        value, position = _read_object(text, position)
        if value is not None:
            yield value


def _read_object(text: str, start: int) -> tuple[dict[str, Any] | None, int]:
    """The object that opens at `start` (None: unreadable), and where to look for the next one."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        repaired, end = _as_json(text, start)
    try:
        return (json.loads(repaired, strict=False), end) if repaired else (None, end)
    except (ValueError, RecursionError):
        return None, end


def _as_json(text: str, start: int) -> tuple[str, int]:
    """The loose object at `start` as JSON text ("" if it never closes), and the index after it."""
    out: list[str] = []
    depth, position = 0, start
    while position < len(text):
        char = text[position]
        word = _WORD.match(text, position)
        end = position + 1
        if char in "\"'":
            end = _string_end(text, position)
            out.append(_json_string(text[position + 1 : end - 1], char))
        elif word:
            end = word.end()
            out.append(_CONSTANTS.get(word[0], f'"{word[0]}"' if text[end:].lstrip()[:1] == ":" else word[0]))
        elif not char.isspace():
            if char in "]}" and out and out[-1] == ",":
                out.pop()
            out.append(char)
            depth += (char in "{[") - (char in "]}")
            if depth == 0:
                return "".join(out), end
        position = end
    return "", start + 1


def _string_end(text: str, start: int) -> int:
    """Index after the quote that closes the one at `start`: the next such quote that a delimiter follows."""
    for match in re.compile(r"\\.|" + text[start], re.DOTALL).finditer(text, start + 1):
        if match[0] == text[start] and _DELIMITER.match(text, match.end()):
            return match.end()
    return len(text)


def _json_string(content: str, quote: str) -> str:
    if quote == "'":
        content = re.sub(r"\\.|\"", lambda m: {"\\'": "'", '"': '\\"'}.get(m[0], m[0]), content, flags=re.DOTALL)
    # an escape that JSON does not know stands for its own backslash
    content = re.sub(r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|)', lambda m: m[0] if m[1] else "\\\\", content)
    return f'"{content}"'
