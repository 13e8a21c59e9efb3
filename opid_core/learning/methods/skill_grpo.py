"""Skill-GRPO: GRPO with a static skill of the task's type in the policy's own prompt while it trains.

The rollout puts the skill there (`method.skill_bank`); an evaluation has it only with `evaluation.skill_bank`.
"""

from __future__ import annotations

from opid_core.learning.methods import Method
from opid_core.learning.methods.grpo import advantages

METHOD = Method(advantages)
"""Source: ALGORITHM, section 8."""
