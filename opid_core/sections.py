"""What the sections of a config share: their base class, and objects of the user's own named `module:name`."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel, ConfigDict

from opid_core.errors import ConfigError


class Section(BaseModel):
    """Base of all config models, those of an environment's options too: unknown keys are errors, values never change
    after loading, numbers are finite, and a text is not empty where its field does not say so (`min_length=0`)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, str_min_length=1
    )


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
