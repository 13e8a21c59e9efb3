"""Imitation at toy size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from opid_core.config import WarmStartConfig
from opid_core.learning.imitation import Demonstration, branches, imitate, pack
from opid_core.policies import make_tiny_policy

TOY = WarmStartConfig(epochs=30, batch_size=4, learning_rate=5e-3, prompt_loss_weight=0.1)


def toy_demonstrations() -> list[Demonstration]:
    """The response repeats the prompt's last token and ends with token 1."""
    generator = np.random.default_rng(0)
    prompts = [generator.integers(2, 32, size=length).tolist() for length in (3, 5, 4, 6, 3, 4, 5, 6)]
    return [Demonstration(prompt, [prompt[-1], 1]) for prompt in prompts]


def imitated(seed: int = 0, **changes: Any):
    """A toy policy after imitation, the loss that this returned, and what it reported."""
    torch.set_num_threads(1)
    policy = make_tiny_policy(vocab_size=32, hidden_size=32, layers=1, heads=1, max_positions=32, seed=1)
    settings, reports = TOY.model_copy(update=changes), []
    last = imitate(
        policy, toy_demonstrations(), settings, seed=seed, pad_id=0, on_step=lambda *report: reports.append(report)
    )
    return policy, last, reports


def weights(policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_imitation_learns_its_samples_and_reports():
    _, before, reports = imitated(epochs=1, learning_rate=1e-9)
    assert [step for step, _, _ in reports] == [1, 2]  # two batches of four
    assert reports[-1] == (2, 2, before)
    # An untrained policy: log(32) = 3.47 nats on the response, a tenth of it on the prompt.
    assert before == pytest.approx(1.1 * np.log(32), rel=0.05)
    policy, after, reports = imitated()
    assert [(step, steps) for step, steps, _ in reports] == [(step, 60) for step in range(3, 61, 3)]
    assert after == reports[-1][2] < before / 3
    for one in toy_demonstrations():
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([[*one.prompt_ids, one.response_ids[0]]])).logits[0]
        assert logits[-2:].argmax(-1).tolist() == one.response_ids
    assert weights(policy).equal(weights(imitated()[0]))
    assert not weights(policy).equal(weights(imitated(seed=1)[0]))


def test_the_clock_ends_the_training():
    policy, _, reports = imitated(seconds=1e-9)
    assert reports == []
    fresh = make_tiny_policy(vocab_size=32, hidden_size=32, layers=1, heads=1, max_positions=32, seed=1)
    assert weights(policy).equal(weights(fresh))


def test_branches_are_neighbours_that_begin_alike():
    one, two, three = Demonstration([5, 6, 7, 8], [9]), Demonstration([5, 6, 7, 4], [9]), Demonstration([5, 4], [9])
    assert branches([one, two, three, one]) == [[one, two], [three], [one]]


def test_a_response_in_a_branch_is_scored_as_it_is_alone():
    policy = make_tiny_policy(vocab_size=32, hidden_size=64, layers=2, heads=2, max_positions=32, seed=1).eval()
    together = [
        Demonstration([2, 3, 4, 5, 6], [7, 1]),
        Demonstration([2, 3, 4, 5, 6], [8, 9, 1]),
        Demonstration([2, 3, 4, 9, 9, 6], [7, 1]),
    ]
    packed = pack([together, [Demonstration([20, 21], [22])]], pad_id=0)
    assert packed.ids[0].tolist() == [2, 3, 4, 5, 6, 7, 1, 5, 6, 8, 9, 1, 9, 9, 6, 7, 1]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]
    with torch.no_grad():
        logits = policy(input_ids=packed.ids, position_ids=packed.positions, attention_mask=packed.mask).logits
        row, column = packed.predicted[:, packed.is_response]
        found = logits[row, column].log_softmax(-1)
        alone = []
        for one in [*together, Demonstration([20, 21], [22])]:
            of_one = policy(input_ids=torch.tensor([[*one.prompt_ids, *one.response_ids]])).logits[0]
            alone.append(of_one[len(one.prompt_ids) - 1 : -1].log_softmax(-1))
    assert packed.targets[packed.is_response].tolist() == [7, 1, 8, 9, 1, 7, 1, 22]
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)
    # Every other token but the first of a row and, of a branch, what is shared.
    assert packed.targets[~packed.is_response].tolist() == [3, 4, 5, 6, 5, 6, 9, 9, 6, 21]


def test_without_weight_prompt_tokens_are_not_predicted_and_responses_count_as_they_do_alone():
    together = [Demonstration([2, 3, 4, 5, 6], [7, 1]), Demonstration([2, 3, 4, 5, 6], [8, 9, 1])]
    alone = Demonstration([20, 21], [22])
    packed = pack([together, [alone]], pad_id=0, prompts=False)
    assert packed.is_response.all()
    assert packed.targets.tolist() == [7, 1, 8, 9, 1, 22]
    policy = make_tiny_policy(vocab_size=32, hidden_size=32, layers=1, heads=1, max_positions=32, seed=1)
    losses = []
    for one in [*together, alone]:
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([[*one.prompt_ids, *one.response_ids]])).logits[0]
        of_one = logits[len(one.prompt_ids) - 1 : -1].log_softmax(-1)
        losses += [-of_one[place, token].item() for place, token in enumerate(one.response_ids)]
    settings = TOY.model_copy(update={"epochs": 1, "learning_rate": 1e-12, "prompt_loss_weight": 0.0})
    last = imitate(policy, [*together, alone], settings, seed=0, pad_id=0)
    assert last == pytest.approx(np.mean(losses), abs=1e-5)
