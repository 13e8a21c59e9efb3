"""How a value that a config's models refuse is told: in the words of a config file, not of Python."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from opid_core import proxies

CAMPAIGN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SERVER_ADDRESS = r"^https?://[^@/]+/?$"
FORMS = {
    CAMPAIGN_NAME: "must be letters, digits, `.`, `_` and `-`, at most 64, beginning with a letter or digit",
    SERVER_ADDRESS: "must begin with http:// or https://, as in http://localhost:9000, and have no user and no path",
}
"""What a pattern says, in words."""
_IN_YAML = {None: "null", True: "true", False: "false"}


def describe_validation_error(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """One line a problem: the field's full name, what is wrong, and the nearest valid name of an unknown key."""
    lines = []
    problems = error.errors()
    locations = [problem["loc"] for problem in problems]
    for problem in problems:
        location = problem["loc"]
        if problem["type"] == "too_short" and any(o != location and o[: len(location)] == location for o in locations):
            continue  # a list that lost its items, of which the lines before tell
        names = [str(part) for part in location]
        path = ".".join([*([where] if where else []), *names])
        if problem["type"] == "extra_forbidden":
            valid = _field_names(model, names[:-1])
            near = difflib.get_close_matches(names[-1], valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
            lines.append(f"{path}: unknown key; {hint}")
        else:
            lines.append(f"{path}: {_problem_text(problem)} (got {_shown(problem['input'])})")
    return "\n".join(lines)


def _problem_text(problem: Mapping[str, Any]) -> str:
    """What is wrong with a value."""
    match problem["type"]:
        case "tuple_type" | "list_type":
            given = problem["input"]
            return "expected a list" + ("" if isinstance(given, Mapping | None) else f", as in [{_shown(given)}]")
        case "dict_type" | "model_type" | "dataclass_type":
            return "expected keys below it"
        case "string_pattern_mismatch" if form := FORMS.get(problem["ctx"]["pattern"]):
            return form
        case "string_too_short" if problem["ctx"]["min_length"] == 1:
            return "must not be empty"
        case "value_error":
            return problem["msg"].removeprefix("Value error, ")
    return problem["msg"]


def _shown(value: Any) -> str:
    return _IN_YAML[value] if value is None or isinstance(value, bool) else proxies.masked(repr(value))


def _field_names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for name in path:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        choices = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
