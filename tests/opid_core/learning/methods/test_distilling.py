"""opsd, grpo_opsd, sdar, skill_sd: advantages and the loss that each declares (the losses: ../test_losses.py)."""

from __future__ import annotations

import pickle

import pytest

from opid_core.learning.methods import NAMES, Distillation, distillation
from tests.opid_core.learning.methods.batches import BATCH, CONFIG, compute, configured, total


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("opsd", Distillation("gated", 0.01, 5.0)),
        ("grpo_opsd", Distillation("gated", 0.01, 0.0)),
        ("sdar", Distillation("gated", 0.01, 5.0)),
        ("skill_sd", Distillation("ratio_k3", 0.001)),
    ],
)
def test_the_loss_with_the_papers_numbers(name, expected):
    assert distillation(configured(name)) == expected
    assert pickle.loads(pickle.dumps(expected)) == expected  # it crosses to the learner's processes
    assert distillation(configured(name, distillation_coefficient=0.5)) == Distillation(
        expected.kind, 0.5, expected.gate_beta
    )
    assert distillation(configured(name, distillation_coefficient=0.0)) is None


def test_no_other_method_has_one():
    distilling = {"opsd", "grpo_opsd", "sdar", "skill_sd"}
    assert {name for name in NAMES if distillation(configured(name)) is not None} == distilling


@pytest.mark.parametrize("name", ["grpo_opsd", "sdar", "skill_sd", "skill_grpo", "dapo"])
def test_the_advantages_are_those_of_grpo(name):
    assert total(BATCH, compute(name, BATCH, CONFIG)).tolist() == [5, 5, 5, -5, -5]


def test_opsd_has_no_policy_gradient():
    result = compute("opsd", BATCH, CONFIG)
    assert total(BATCH, result).tolist() == [0.0] * 5
