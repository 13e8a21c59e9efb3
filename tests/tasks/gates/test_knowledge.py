"""What delta tells of how much skills know of the responses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.gates.knowledge import FALSE_ALARMS, evidence
from tests.factories import valid_rows
from tests.tasks.gates.gated import checked, warnings

EVIDENCE = [("column_values_to_be_between", "evidence")]


def test_evidence_by_hand():
    # (exp(ln 12) / 3 + exp(0) / 2) / 10 steps = (4 + 0.5) / 10
    assert evidence([math.log(12), 0.0], [3, 2], 10) == pytest.approx(math.log(0.45))
    assert evidence([], [], 10) == -math.inf
    assert evidence([2000.0], [1], 1) == pytest.approx(2000.0)  # beyond a float's exponential


policies = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).dirichlet(np.full(6, 0.3), size=8))
"""[skills, responses]: the policy without a skill in row 0, under each skill in the others; three actions, each worded
in two ways: responses 0 and 1 take the first."""


@given(policies)
def test_its_expectation_is_at_most_1_for_a_skill_that_tells_the_action_and_more_for_one_that_quotes(policy):
    """Expectations over all responses, exactly."""
    plain, under = policy[0], policy[1:]

    def expected(skill_of) -> float:
        terms = [np.log(under[skill_of(y)][y]) - np.log(plain[y]) for y in range(6)]
        return sum(p * math.exp(evidence([delta], [3], 1)) for p, delta in zip(plain, terms, strict=True))

    assert expected(lambda y: 0) == pytest.approx(1 / 3)  # says the same whatever was done
    assert expected(lambda y: y // 2) <= 1 + 1e-9
    likeliest = [int(under[:, y].argmax()) for y in range(6)]
    assert expected(lambda y: likeliest[y]) == pytest.approx(under.max(axis=0).sum() / 3)


def with_delta(delta: float, offered: list[str]):
    """Valid rows; the one response under a step skill (2 tokens, of 3 steps in all) is moved by `delta` nats."""
    rows = valid_rows()
    rows["scores"][0] |= {"old_log_probs": [-10.0, -10.0], "skill_log_probs": [-10.0 + delta / 2] * 2}
    rows["steps"][0] |= {"admissible_actions": offered}
    return rows


def test_skills_that_know_more_than_the_action_are_a_warning_per_route_and_outcome():
    # exp(delta) / 2 choices / 3 steps reaches 1,000 at delta = ln 6,000 = 8.70
    at = math.log(2 * 3 / FALSE_ALARMS)
    assert warnings("scores", with_delta(at - 0.01, ["look", "wait"])) == []
    assert warnings("scores", with_delta(at + 0.01, ["look", "wait"])) == EVIDENCE
    assert warnings("scores", with_delta(at + 0.01, ["look", "wait", "go"])) == []
    assert warnings("scores", with_delta(at + 0.01, ["wait", "go"])) == []  # `look` was not on offer: K is not known
    (warning,) = checked("scores", with_delta(10.0, ["look", "wait"])).warnings
    (row,) = warning.failing_rows
    assert row["evidence"] == pytest.approx(10 - math.log(6), abs=1e-4)
    assert {key: row[key] for key in ("route", "outcome", "steps", "delta", "delta_per_token")} == {
        **{"route": "step", "outcome": "success", "steps": 1, "delta": 10.0, "delta_per_token": 5.0}
    }
