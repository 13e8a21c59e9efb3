"""OPID's algorithm as a library. Arrays are numpy's or torch's, [samples] or [samples, tokens]; ids are any hashables.

Each name is imported when it is first used, so `import opid_core` alone loads no heavy library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opid_core.learning.advantages import (
        discounted_returns,
        outcome_advantages,
        skill_advantages,
        state_advantages,
    )
    from opid_core.learning.losses import kl_loss, policy_loss
    from opid_core.skills.replies import parse_reply
    from opid_core.skills.selector import critical_steps

__all__ = [
    "critical_steps",
    "discounted_returns",
    "kl_loss",
    "outcome_advantages",
    "parse_reply",
    "policy_loss",
    "skill_advantages",
    "state_advantages",
]

_MODULES = {
    "critical_steps": "opid_core.skills.selector",
    "discounted_returns": "opid_core.learning.advantages",
    "kl_loss": "opid_core.learning.losses",
    "outcome_advantages": "opid_core.learning.advantages",
    "parse_reply": "opid_core.skills.replies",
    "policy_loss": "opid_core.learning.losses",
    "skill_advantages": "opid_core.learning.advantages",
    "state_advantages": "opid_core.learning.advantages",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'opid_core' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
