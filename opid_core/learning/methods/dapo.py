"""DAPO: the outcome advantage, from groups of mixed outcome alone, with a wider clip above (0.2 / 0.28).

The clip is what `dapo` sets for `learner.clip_high`; the rollout draws further tasks for the groups that tie.
"""

from __future__ import annotations

from opid_core.learning.methods import Method
from opid_core.learning.methods.grpo import advantages

METHOD = Method(advantages, filters_ties=True)
"""Source: ALGORITHM, section 8."""
