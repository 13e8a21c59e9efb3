from __future__ import annotations

import math

import numpy as np
import pytest

from envs.base import ActionWords
from opid_core.evaluation import Estimate, mean_interval, wilson_interval
from opid_core.samples import Ragged, Samples
from opid_core.schema import from_rows
from opid_core.skills.signal import Outcomes, action_tokens, order, order_above, ordered_pairs, outcomes, signal_metrics
from tests.factories import row
from tests.opid_core.skills.episodes import episode, together

WORDS = ActionWords()
FAR = math.inf
# Group 0 has the state 0 of three steps, group 1 the state 1 of two, and a step whose end nobody knows.
LED = Outcomes(
    group=np.array([0, 0, 0, 1, 1, 1]),
    state=np.array([0, 0, 0, 1, 1, 1]),
    left_after=np.array([1, 2, FAR, 0, 1, FAR]),
    known=np.array([True] * 5 + [False]),
)
ALL = np.ones(6, bool)
DELTA = np.array([3.0, 1, 2, 5, 5, 9])
# 3 > 1 and 3 > 2 are right, 1 < 2 is wrong; 5 = 5 counts half
PAIRS = {0: (2.0, 3), 1: (0.5, 1)}


def test_delta_orders_the_pairs_of_a_state_that_led_nearer_and_less_near():
    assert ordered_pairs(DELTA, LED, ALL) == PAIRS
    assert ordered_pairs(DELTA, LED, np.array([True, False, True, False, True, True])) == {0: (1.0, 1)}
    assert ordered_pairs(DELTA, LED, ~ALL) == {}


def test_the_order_has_an_interval_over_groups():
    # 2.5 of 4; residuals 2 - 0.625 * 3 and 0.5 - 0.625; error sqrt(2 * 2 * 0.125 ** 2) / 4; t of one degree: 12.7062
    found = mean_interval([2.0, 0.5], [3, 1])
    assert (found.mean, found.high - found.mean) == pytest.approx((0.625, 12.7062 * 0.0625), rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert order(PAIRS) == Estimate(0.625, 0.0, 1.0)  # a share
    assert order({0: (2.0, 2), 1: (3.0, 3)}) == Estimate(1.0, *wilson_interval(2, 2))  # nothing varies
    alone = order({0: (2.0, 3)})
    assert alone.mean == 2 / 3
    assert math.isnan(alone.low)
    assert math.isnan(order({}).mean)


def test_the_order_is_held_against_the_placebos_on_the_same_pairs():
    # 1 of 3 and 0 of 1 more: 1.5 of 4
    assert order_above(PAIRS, {0: (1.0, 3), 1: (0.0, 1)}).mean == 0.375
    nothing = order_above(PAIRS, PAIRS)
    assert nothing.mean == 0
    assert math.isnan(nothing.low)
    assert math.isnan(nothing.high)


def test_the_interval_of_equal_clusters_is_that_of_a_mean():
    # 1, 2, 3: standard error 1 / sqrt(3); t of two degrees: 4.302653
    found = mean_interval([1, 2, 3], [1, 1, 1])
    assert found.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_where_steps_led_is_what_the_map_says():
    won = episode("x", ["go", "open"], states=["s", "a"])
    cut = episode("y", ["wait", "go"], "truncated", states=["s", "s"])
    other = episode("z", ["go"], "failure", states=["s"], group_id="h")
    led = outcomes(together(won, other, cut), WORDS)
    assert led.group.tolist() == [0, 0, 1, 0, 0]
    assert (led.state == led.state[0]).tolist() == [True, False, False, True, True]
    assert led.left_after.tolist() == [1, 0, FAR, 2, FAR]
    assert led.known.tolist() == [True, True, False, True, False]  # nobody of h won; nobody knows y's end


PIECES = ["<think>Go", " on</think>", "<action>", "Go", " to bed", "</action>"]


def decode(ids) -> str:
    return "".join(PIECES[i] for i in ids)


def test_the_tokens_of_an_action():
    rows = {"response_text": [decode(range(6)), "go", ""], "action": ["go to bed", "open", ""]}
    samples = Samples.from_columns(response_ids=Ragged.from_rows([range(6), [3], []], np.int32), **rows)
    assert [*action_tokens(samples, [0, 1, 2], decode)] == [slice(3, 5), slice(0, 0), slice(0, 0)]


def test_the_tokens_of_an_action_after_a_letter_that_is_two_in_lower_case():
    rows = {"response_text": ["İİ Go"], "action": ["go"]}
    samples = Samples.from_columns(response_ids=Ragged.from_rows([[0, 1, 2, 3, 4]], np.int32), **rows)
    assert [*action_tokens(samples, [0], lambda ids: "".join("İİ Go"[n] for n in ids))] == [slice(3, 5)]


def scored(*, placebo: bool) -> tuple[Samples, list[dict]]:
    """x and y of group g meet in s, where x's "go" wins in the end and y's "wait" changes nothing; both have a step
    skill there, and an episode skill at the next step."""
    x = episode("x", ["go", "open"], states=["s", "a"])
    y = episode("y", ["wait", "go"], "truncated", states=["s", "s"])
    # "go" and "open" are the second of two tokens
    deltas, of_placebo = [[0.5, 2.0], [0.25, 0.0], [-0.5, -1.0], [0.75, 0.0]], [[0.0, -2.0], [0, 0], [0.0, 1.0], [0, 0]]
    columns = {
        "route": ["step", "episode", "step", "none"],
        "skill_id": ["x/0", "x/e", "y/0", None],
        "response_text": ["think go", "think open", "think wait", "think go"],
        "response_ids": Ragged.from_rows([[0, 1]] * 4, np.int32).to_arrow(),
        "old_log_probs": Ragged.from_rows([[-1.0, -4.0]] * 4, np.float32).to_arrow(),
        "skill_log_probs": [[-1 + a, -4 + b] for a, b in deltas[:3]] + [None],
        "placebo_log_probs": [
            [-1 + a, -4 + b] if placebo and n in (0, 2) else None for n, (a, b) in enumerate(of_placebo)
        ],
        "skill_advantages": [[0.5, 0.5], [0.25, 0.0], [0.0, 0.75], [0.0, 0.0]],
        "outcome_advantage": np.array([1, 1, 0, 0], np.float32),
        "step_advantage": np.zeros(4, np.float32),
    }
    kinds = {"x/0": "own", "y/0": "other"}
    skills = [row("skills", skill_id=n, kind="step", step=0, reason=f'{{"kind": "{k}"}}') for n, k in kinds.items()]
    return together(x, y).with_columns(**columns), [*skills, row("skills", skill_id="x/e")]


def halves(ids) -> str:
    """Of the responses above: "think " and the action."""
    return ("think ", "think go")[len(ids) - 1] if len(ids) else ""


def test_the_metrics_of_a_small_iteration():
    samples, skills = scored(placebo=True)
    metrics = signal_metrics(samples, from_rows("skills", skills), WORDS, halves)
    # delta of x 2.5 above y's -1.5, where x led on; the placebo's -2 is below 1
    expected = {"order": 1.0, "placebo_order": 0.0, "above_placebo": 1.0, "pairs": 1}
    assert {name: metrics[f"signal/step/{name}"] for name in expected} == expected
    assert math.isnan(metrics["signal/step/order_low"])  # one group alone
    # action tokens |2.0|, |-1.0| ("wait" takes the second token too), others 0.5, 0.5
    assert (metrics["signal/step/delta_action"], metrics["signal/step/delta_rest"]) == (1.5, 0.5)
    moved = signal_metrics(samples.select(np.array([3, 0, 1, 2])), from_rows("skills", skills), WORDS, halves)
    assert (moved["signal/step/delta_action"], moved["signal/step/delta_rest"]) == (1.5, 0.5)  # one without before them
    # advantages 1.5, 1.5; 1.25, 1; 0, 0.75; 0, 0: 6 in all, of which step skills have 1.75
    assert metrics["signal/step/advantage"] == pytest.approx(1.75 / 6)
    assert metrics["signal/episode/advantage"] == pytest.approx(0.25 / 6)
    # Another part of two tokens of -1 makes 8, though on the first sample it cancels the outcome's.
    less = samples.with_columns(step_advantage=np.array([-1, 0, 0, 0], np.float32))
    again = signal_metrics(less, from_rows("skills", skills), WORDS, halves)
    assert again["signal/step/advantage"] == pytest.approx(1.75 / 8)
    assert (metrics["signal/step_own/pairs"], metrics["signal/step_other/pairs"]) == (0, 0)
    assert math.isnan(metrics["signal/step_own/order"])
    assert "signal/episode/placebo_order" not in metrics


def test_without_placebos_or_skills_there_is_less_to_tell():
    samples, skills = scored(placebo=False)
    metrics = signal_metrics(samples, from_rows("skills", skills), WORDS, halves)
    assert metrics["signal/step/order"] == 1.0
    assert not any("placebo" in name for name in metrics)
    nothing = samples.with_columns(skill_log_probs=samples.table["placebo_log_probs"])
    assert signal_metrics(nothing, from_rows("skills", []), WORDS, halves) == {}
