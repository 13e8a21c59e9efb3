"""What the sections of a config share: their base class, and objects of the user's own named `module:name`."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from opid_core.errors import ConfigError


class Section(BaseModel):
    """Base of all config models, those of an environment's options too: unknown keys are errors, values never change
    after loading, numbers are finite, and a text is not empty where its field does not say so (`min_length=0`)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, str_min_length=1
    )


def _without_switch_words(values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        if word := _switch_word(value):
            raise ValueError(f"{key}: {word!r} is a text here, which counts as true; write true or false")
    return values


def _switch_word(value: Any) -> str | None:
    """The first `on`, `off`, `yes` or `no` among a value and those nested in it."""
    if isinstance(value, str):
        return value if value.lower() in ("on", "off", "yes", "no") else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(_switch_word, inner)), None)


WithoutSwitchWords = AfterValidator(_without_switch_words)
"""Of a mapping whose values have no types of their own: what a field of type bool takes for true or false is refused,
as nothing here would make it one."""


def imported(reference: str, key: str) -> Any:
    """The object that `reference`, `module:name`, names in an importable module, None where the module has no such
    name.

    Raises ConfigError that begins with the config's `key` where the module cannot be imported.
    """
    module, _, name = reference.rpartition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"{key}: {module!r} is no name of a module (expected package.module:name)")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(
            f"{key}: cannot import module {module!r}: {error}; is its folder installed or on PYTHONPATH?"
        ) from None
