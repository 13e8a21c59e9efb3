"""Skills as data: from an analyzer's reply to clean texts and table rows (ALGORITHM, section 3)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

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

# reading loose JSON: brackets and opening quotes, and what ends a string: a quote of its kind that a delimiter follows
_BRACKET_OR_QUOTE = re.compile(r"[\[\]{}\"']")
_STRING_END = {
    quote: re.compile(rf"(?:[^\\{quote}]|\\.|{quote}(?!\s*(?:[,:\]}}]|$)))*+{quote}", re.DOTALL) for quote in "\"'"
}
# What bounds the time that hostile text takes; a reply has two levels and, in 4,096 tokens, about 16,000 characters.
_MAX_LOOSE_CHARS = 32_000
_MAX_DEPTH = 8
_MAX_BRACKETS = 128
"""Round ones too, in strings or not: json-repair's time grows with their square (14 s at 4,000)."""
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
    analyzer: str = ""
    """What made the skills, or tried last: `hindsight`, `llm`, or a user's `module:name`."""
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
    reasoning: str | None = None
    """What the endpoint kept apart of the reply."""
    replayed: bool = field(default=False, compare=False)
    """Whether the call was made and paid for earlier."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """By step JSON of why it has its skill, where the analyzer says so."""

    @property
    def failed(self) -> bool:
        return not self.episode_skill

    @property
    def tokens(self) -> int | None:
        """Of prompts and completions."""
        known = [count for count in (self.prompt_tokens, self.completion_tokens) if count is not None]
        return sum(known) if known else None


_SHARED = (
    *("analyzer", "model", "prompt_hash", "attempts", "tokens", "prompt_tokens", "completion_tokens", "cost"),
    *("seconds", "cut", "error", "raw_reply", "reasoning"),
)
"""Columns of `skills` that all rows of an analysis share."""


def parse_reply(text: str) -> Reply:
    """The first JSON object in `text` with an `episode_skill`: a text with a letter in it.

    Tolerated: code fences, prose around the object, trailing commas, single quotes, several objects, raw newlines in
    strings, and what else json-repair mends in an object that is whole. Step keys that are no step number and step
    skills without a letter are left out. Raises AnalyzerReplyError where no object is usable, a cut one included.
    Source: ALGORITHM, section 3.
    """
    objects = 0
    for value in _objects(text):
        objects += 1
        skill, summary = value.get("episode_skill"), value.get("episode_summary")
        if _has_words(skill):
            return Reply(summary.strip() if isinstance(summary, str) else "", skill.strip(), _step_skills(value))
    raise AnalyzerReplyError(
        "no object of the reply has a non-empty episode_skill in words" if objects else "the reply holds no JSON object"
    )


def select_step_skills(
    step_skills: Mapping[int, str], candidates: Collection[int], max_step_skills: int
) -> dict[int, str]:
    """The first `max_step_skills` step skills whose step is among the candidates, in order of appearance."""
    selected = [(step, text) for step, text in step_skills.items() if step in candidates and text.strip()]
    return dict(selected[:max_step_skills])


def clean_skill(text: str, max_chars: int = MAX_SKILL_CHARS) -> str:
    """`text` on one line, cut at a word to `max_chars`, without chat-template control tokens and response tags, and
    without what cannot be seen: control and invisible characters, lone surrogates. HTML stays, as text. "" where no
    letter is left."""
    cleaned = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    before = None
    while cleaned != before:  # taking one token out may put another together
        cleaned, before = _CONTROL_TOKENS.sub(" ", cleaned), cleaned
    cleaned = " ".join(c for c in cleaned.split() if c)
    if len(cleaned) > max_chars:
        cut = cleaned[: max_chars + 1]
        cleaned = (cut.rsplit(" ", 1)[0] if " " in cut else cut)[:max_chars].rstrip()
    return cleaned if _has_words(cleaned) else ""


def skills_table(analyses: Iterable[Analysis], trajectories: pa.Table) -> pa.Table:
    """The `skills` table of an iteration: the episode skill and the step skills of each analysis in order of steps, or
    one row of kind `failed`. Outcomes are from its `trajectories` table. Raises DataError for an analysis of an unknown
    trajectory."""
    outcomes = dict(zip(*(trajectories[name].to_pylist() for name in ("trajectory_id", "outcome")), strict=True))
    rows: list[dict[str, Any]] = []
    for analysis in analyses:
        trajectory_id = analysis.trajectory_id
        if trajectory_id not in outcomes:
            raise DataError(f"analysis of trajectory {trajectory_id!r}, which is not in the iteration")
        skills: list[tuple[str, str, int | None, str]] = [("failed", "failed", None, "")]
        if not analysis.failed:
            steps = sorted(analysis.step_skills.items())
            skills = [("episode", "episode", None, analysis.episode_skill)]
            skills += [(f"step{step}", "step", step, text) for step, text in steps]
        shared = {"trajectory_id": trajectory_id, "outcome": outcomes[trajectory_id]}
        shared |= {name: getattr(analysis, name) for name in _SHARED}
        rows += [
            {"skill_id": f"{trajectory_id}/{name}", "kind": kind, "step": step, "text": text, **shared}
            | {"reason": None if step is None else analysis.reasons.get(step)}
            for name, kind, step, text in skills
        ]
    return schema.from_rows("skills", rows)


# --- reading loose JSON ------------------------------------------------------------------------------------------


def _has_words(text: object) -> TypeGuard[str]:
    """Whether `text` is a string with a letter in it: models fill a schema with "1" or "," too."""
    return isinstance(text, str) and any(map(str.isalpha, text))


def _step_skills(value: Mapping[str, Any]) -> dict[int, str]:
    given = value.get("step_skills")
    if not isinstance(given, Mapping):
        return {}
    skills: dict[int, str] = {}
    for key, text in given.items():
        number = re.fullmatch(r"\s*(?:step)?[ _]*([0-9]{1,6})\s*", str(key), re.IGNORECASE)
        if number and _has_words(text):
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
        if isinstance(value, dict):
            yield value


def _read_object(text: str, start: int) -> tuple[Any, int]:
    """The object that opens at `start` (None: unreadable or cut), and where to look for the next one."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        loose = _whole_object(text[start : start + _MAX_LOOSE_CHARS])
    # json-repair would complete an object that was cut, or join it with the next one, as if that had been meant
    if loose.count("episode_skill") != 1 or sum(map(loose.count, "()[]{}")) > _MAX_BRACKETS:
        return None, start + 1 if "episode_skill" in loose else start + max(1, len(loose))
    import json_repair

    try:
        return json_repair.loads(loose, skip_json_loads=True), start + len(loose)
    except (ValueError, RecursionError):
        return None, start + len(loose)


def _whole_object(text: str) -> str:
    """What of `text` is the loose object that opens it; "" where no bracket closes it or it is too deep."""
    depth, position = 0, 0
    while depth <= _MAX_DEPTH and (match := _BRACKET_OR_QUOTE.search(text, position)):
        position = match.end()
        if match[0] in _STRING_END:
            string = _STRING_END[match[0]].match(text, position)
            if string is None:
                return ""
            position = string.end()
        else:
            depth += 1 if match[0] in "{[" else -1
            if depth == 0:
                return text[:position]
    return ""
