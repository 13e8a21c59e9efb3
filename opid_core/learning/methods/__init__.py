"""Methods: each a class with its keys, its advantages and its loss (`base.Method`; ALGORITHM, sections 6 and 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opid_core.errors import ConfigError
from opid_core.learning.methods.base import (
    Advantages,
    DistillingMethod,
    Method,
    OutcomeMethod,
    SkillMethod,
    StateMethod,
    TaughtMethod,
    routes,
)
from opid_core.learning.methods.opid import Opid
from opid_core.learning.methods.rlsd import Rlsd
from opid_core.learning.methods.simple import Dapo, Gigpo, Grpo, GrpoOpsd, Opsd, Rloo, Sdar, SkillGrpo, SkillSd
from opid_core.sections import imported

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "Advantages",
    "DistillingMethod",
    "Gigpo",
    "Grpo",
    "Method",
    "Opid",
    "OutcomeMethod",
    "Sdar",
    "SkillMethod",
    "SkillSd",
    "StateMethod",
    "TaughtMethod",
    "from_keys",
    "get",
    "routes",
]

DEFAULT = "opid"
BUILT_IN: dict[str, type[Method]] = {
    "grpo": Grpo,
    "gigpo": Gigpo,
    "rloo": Rloo,
    "dapo": Dapo,
    "skill_grpo": SkillGrpo,
    "opsd": Opsd,
    "grpo_opsd": GrpoOpsd,
    "skill_sd": SkillSd,
    "rlsd": Rlsd,
    "sdar": Sdar,
    "opid": Opid,
}


def get(name: Any) -> type[Method]:
    """The method that a config calls `name`: a built-in one, or the class `module:name` of an importable module.

    Raises ConfigError for an unknown name, a module that cannot be imported, and what is no method.
    """
    if isinstance(name, str) and name in BUILT_IN:
        return BUILT_IN[name]
    if not isinstance(name, str) or ":" not in name:
        known = ", ".join(BUILT_IN)
        raise ConfigError(f"method.name: unknown method {name!r}; known: {known}, or module:name for one of your own")
    found = imported(name, "method.name")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method.name: {name} is no class that extends opid_core.learning.methods.Method")
    return found


def from_keys(data: Any) -> Any:
    """The method that the section `method` of a config describes: the class that its `name` says, with its keys.

    Raises pydantic's ValidationError, and ConfigError as `get`.
    """
    if isinstance(data, Mapping):
        return get(data.get("name", DEFAULT)).model_validate(data)
    return data if isinstance(data, Method) else Opid.model_validate(data)
