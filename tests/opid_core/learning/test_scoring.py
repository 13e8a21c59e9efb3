import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opid_core.errors import ConfigError, DataError
from opid_core.learning.scoring import ResponseScorer, response_mask, score
from opid_core.policies import make_tiny_policy
from opid_core.samples import Ragged, micro_batches
from tests.factories import VOCABULARY, random_tokens


def tiny_model(seed: int = 0, **changes):
    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 64, "layers": 2, "heads": 2, "max_positions": 128}
    model = make_tiny_policy(**{**sizes, **changes}, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model


COUNTED_MODEL = tiny_model()


def ragged(*rows: list[int]) -> Ragged:
    return Ragged.from_rows(rows, np.int32)


def random_sequences(count: int, seed: int = 0, longest=(29, 29), shortest=(1, 1)) -> tuple[Ragged, Ragged]:
    """Prompts and responses."""
    generator = np.random.default_rng(seed)
    drawn = [
        [random_tokens(generator, n) for n in generator.integers(shortest, np.add(longest, 1))] for _ in range(count)
    ]
    return ragged(*(prompt for prompt, _ in drawn)), ragged(*(response for _, response in drawn))


def test_scores_are_the_log_softmax_of_the_models_own_logits_in_the_order_given():
    model, sequences = tiny_model(), random_sequences(7)
    for prompt, response, scored in zip(*sequences, score(model, *sequences, micro_batch_tokens=200), strict=True):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            distribution = model(input_ids=ids).logits[0].log_softmax(-1)
        expected = [float(distribution[len(prompt) + i - 1, token]) for i, token in enumerate(response)]
        assert scored.dtype == np.float32
        np.testing.assert_allclose(scored, expected, atol=2e-6)


def test_scores_do_not_depend_on_the_micro_batches():
    model, sequences = tiny_model(), random_sequences(24)
    alone = score(model, *sequences, micro_batch_tokens=1).values
    for budget in (64, 300, 100_000):
        scores = score(model, *sequences, micro_batch_tokens=budget)
        np.testing.assert_allclose(scores.values, alone, atol=2e-6, rtol=1e-6)


def test_an_empty_response_scores_as_nothing_and_an_empty_prompt_is_refused():
    model = tiny_model()
    first, second = score(model, ragged([5], [5]), ragged([], [6]), micro_batch_tokens=64)
    assert first.shape == (0,)
    assert second.shape == (1,)
    with pytest.raises(DataError, match="a prompt without tokens"):
        score(model, ragged([]), ragged([5]), micro_batch_tokens=64)


def test_scoring_keeps_the_models_mode_and_makes_no_graph():
    for training in (False, True):
        model = tiny_model().train(training)
        score(model, *random_sequences(2), micro_batch_tokens=64)
        assert model.training is training
    log_probs, entropy = ResponseScorer(model)(*random_sequences(2), entropy=True)
    assert log_probs.requires_grad
    assert entropy is not None
    assert not entropy.requires_grad


def test_entropy_of_a_uniform_policy_is_the_log_of_the_vocabulary():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        log_probs, entropy = ResponseScorer(model)(ragged([5, 6], [5]), ragged([7, 8], [9]), entropy=True)
    uniform = float(np.log(len(VOCABULARY)))
    np.testing.assert_allclose(entropy, [[uniform, uniform], [uniform, 0.0]], atol=1e-6)
    np.testing.assert_allclose(log_probs, [[-uniform, -uniform], [-uniform, 0.0]], atol=1e-6)


def test_micro_batches_by_hand():
    # Longest first: 9 alone would need 2 x 9 > 16 with the next; 5 and 4 pad to 2 x 5; 3 x 5 <= 16 takes the 1 too.
    assert micro_batches([4, 9, 1, 5], 16) == [[1], [3, 0, 2]]
    assert micro_batches([20, 2], 16) == [[0], [1]]
    assert micro_batches([], 16) == []


class CountingScorer(ResponseScorer):
    """Remembers how many samples went through the model, and each forward pass' rows and padded width."""

    def __init__(self, policy) -> None:
        super().__init__(policy)
        self.seen = 0
        self.shapes: list[tuple[int, int]] = []

    def forward(self, prompts, responses, entropy=False):
        self.seen += len(prompts)
        base = self.policy.base_model
        hook = base.register_forward_pre_hook(
            lambda _, __, inputs: self.shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
        )
        try:
            return super().forward(prompts, responses, entropy)
        finally:
            hook.remove()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), st.integers(1, 120), st.integers(0, 9))
def test_scoring_drops_duplicates_and_pads_no_sample(count, budget, seed):
    prompts, responses = random_sequences(count, seed, longest=(20, 8), shortest=(1, 0))
    scorer = CountingScorer(COUNTED_MODEL)
    scores = score(scorer, prompts, responses, micro_batch_tokens=budget)
    assert scores.lengths.tolist() == responses.lengths.tolist()
    # Every row that the model computes is a sample's, and no batch is wider than its longest sample.
    assert sum(rows for rows, _ in scorer.shapes) == scorer.seen == count
    assert [rows * width <= budget or rows == 1 for rows, width in scorer.shapes] == [True] * len(scorer.shapes)
    longest = (prompts.lengths + responses.lengths).max(initial=0)
    assert max((width for _, width in scorer.shapes), default=0) == longest


def test_the_output_layer_runs_on_response_positions_only():
    model, rows = tiny_model(), []
    hook = model.lm_head.register_forward_hook(lambda _, __, output: rows.append(tuple(output.shape)))
    # One batch of padded size 2 x 6: 3 + 1 responses of 12 positions.
    score(model, ragged([5, 6, 7], [5]), ragged([8, 9, 10], [6]), micro_batch_tokens=64)
    hook.remove()
    assert rows == [(1, 4, len(VOCABULARY))]


def test_no_attention_mask_is_built():
    """A mask would take attention's slower path, and is not needed: padding stands behind every real position."""
    model, masks = tiny_model(), []
    hook = model.get_submodule("model.layers.0").register_forward_pre_hook(
        lambda _, __, inputs: masks.append(inputs["attention_mask"]), with_kwargs=True
    )
    score(model, *random_sequences(3), micro_batch_tokens=1000)
    hook.remove()
    assert masks == [None]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_response_mask_counts_the_response_tokens(lengths):
    mask = response_mask(ragged(*([2] * length for length in lengths)))
    assert mask.sum(axis=1).tolist() == lengths
    assert mask.shape == (len(lengths), max(lengths))


def test_tiny_policy_is_seeded_untied_and_leaves_the_global_random_state():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = tiny_model(1), tiny_model(1), tiny_model(2)
    assert torch.equal(torch.rand(1), expected)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.state_dict()[name])
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight is not one.get_input_embeddings().weight
    assert one.lm_head.weight.dtype == torch.float32
    tied = tiny_model(1, tied=True)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


def test_tiny_policy_refuses_head_widths_that_the_engine_lacks():
    with pytest.raises(ConfigError, match=r"hidden_size / heads = 64 / 4 must be one of 32, 64"):
        tiny_model(heads=4)


def test_the_gradient_of_a_tied_layer_is_the_sum_of_both_uses():
    """As autograd gives it through the model's own forward pass; and that of an untied twin's two layers, added up."""
    untied, tied = tiny_model(), tiny_model()
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    with torch.no_grad():
        untied.lm_head.weight.copy_(untied.model.embed_tokens.weight)
    sequences = random_sequences(3)

    def own_pass(model) -> torch.Tensor:
        total = torch.zeros(())
        for prompt, response in zip(*sequences, strict=True):
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            total = total + logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(response)), response].sum()
        return total

    gradients = []
    for model, loss in ((tied, own_pass), (tied, lambda one: ResponseScorer(one)(*sequences)[0].sum())):
        model.zero_grad()
        loss(model).backward()
        gradients.append({n: one.grad.clone() for n, one in model.named_parameters() if one.grad is not None})
    expected, found = gradients
    assert expected.keys() == found.keys()
    assert "lm_head.weight" not in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)
    own_pass(untied).backward()
    both = untied.model.embed_tokens.weight.grad + untied.lm_head.weight.grad
    torch.testing.assert_close(found["model.embed_tokens.weight"], both, atol=1e-5, rtol=1e-4)
    assert untied.model.embed_tokens.weight.grad.abs().max() > 1e-2
    assert untied.lm_head.weight.grad.abs().max() > 1e-2
