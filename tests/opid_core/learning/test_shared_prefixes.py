from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.architectures import shares_prefixes
from opid_core.architectures import SCORED, SHARING, check_sharing
from opid_core.errors import ConfigError, DataError
from opid_core.learning import last_layer, shared_prefixes
from opid_core.learning.scoring import ResponseScorer, score
from opid_core.learning.shared_prefixes import (
    batches_of,
    has_flash,
    inputs_for,
    is_unpadded,
    joined,
    pack,
    share_prefixes,
)
from opid_core.samples import Ragged
from tests.architectures import sharing_gap, tiny_config, tiny_model


def ragged(*rows: list[int]) -> Ragged:
    return Ragged.from_rows(rows, np.int32)


# Two whole sequences are the same, one is the beginning of another, two part within their responses.
PROMPTS = ragged([5, 6, 7], [9, 8], [5, 6, 7], [5, 6, 4, 4, 4], [5, 6], [5, 6, 7], [9, 8])
RESPONSES = ragged([10, 11, 12], [3], [10, 11, 12], [6, 6], [7, 10], [10, 4, 4], [3, 30])


def test_packed_by_hand():
    packed = pack(ragged([5, 6, 7], [5, 6, 8, 9], [5, 6, 8], [5, 4]))
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert packed.positions.tolist() == [0, 1, 2, 2, 3, 1]
    assert packed.paths.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [0, 1, 3, 0], [0, 5, 0, 0]]
    assert packed.places.tolist() == [0, 1, 2, 6, 7, 13]
    assert packed.lengths.tolist() == [3, 4, 3, 2]
    inputs = inputs_for(packed, torch.device("cpu"))
    assert inputs["joined_paths"].tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 3, 0, 5]
    assert inputs["joined_places"].tolist() == [0, 1, 2, 5, 6, 11]
    assert inputs["ends"].tolist() == [0, 3, 7, 10, 12]
    assert inputs["ends"].dtype == torch.int32


def test_micro_batches_with_common_prefixes_by_hand():
    prompts, responses = ragged([1, 2, 3], [7], [1, 2, 4], [1, 2]), ragged([9], [7], [9, 9], [3])
    # In lexicographic order 1 2 3, 1 2 3 9, 1 2 4 9 9, 7 7, of which 3, 1, 3 and 2 tokens are new.
    assert batches_of(prompts, responses, 10, shares=True) == [[3, 0, 2, 1]]
    assert batches_of(prompts, responses, 9, shares=True) == [[3, 0, 2], [1]]  # padded: 4 x 5 > 2 x 9
    assert batches_of(prompts, responses, 8, shares=True) == [[3, 0, 2], [1]]
    assert batches_of(prompts, responses, 7, shares=True) == [[3, 0], [2, 1]]  # padded: 3 x 5 > 2 x 7
    assert batches_of(prompts, responses, 5, shares=True) == [[3, 0], [2], [1]]
    assert batches_of(prompts, responses, 1, shares=True) == [[3], [0], [2], [1]]
    assert batches_of(prompts, responses, 8, shares=False) == [[2], [0, 3], [1]]


SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.lists(st.integers(0, 2), max_size=4)), max_size=14
)


@settings(deadline=None)
@given(SEQUENCES, st.integers(1, 40))
def test_each_distinct_prefix_of_a_micro_batch_is_there_once_and_each_sequence_can_be_read_from_it(pairs, budget):
    prompts, responses = (ragged(*rows) for rows in (zip(*pairs, strict=True) if pairs else ((), ())))
    whole = joined(prompts, responses)
    batches = batches_of(prompts, responses, budget, shares=True)
    assert sorted(row for batch in batches for row in batch) == list(range(len(pairs)))
    for batch in batches:
        sequences = [whole[row].tolist() for row in batch]
        packed = pack(ragged(*sequences))
        assert len(packed.ids) == len({tuple(one[:end]) for one in sequences for end in range(1, len(one) + 1)})
        for sequence, path in zip(sequences, packed.paths, strict=True):
            assert packed.ids[path[: len(sequence)]].tolist() == sequence
            assert packed.positions[path[: len(sequence)]].tolist() == list(range(len(sequence)))
        assert packed.paths.flat[packed.places].tolist() == list(range(len(packed.ids)))
        padded = len(batch) * max(map(len, sequences))
        assert len(batch) == 1 or (len(packed.ids) <= budget and padded <= 2 * budget)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "qwen3_moe", "olmo2", "phi3", "gpt2", "deepseek_v3"])
def test_scores_are_those_of_the_models_own_forward_pass(model_type):
    assert sharing_gap(tiny_model(tiny_config(model_type))) < 1e-5


def both_ways(**changes) -> list[ResponseScorer]:
    """Of one model: each sequence alone, and prefixes shared."""
    found = []
    for shares in (False, True):
        model = tiny_model(tiny_config("llama", **changes)).train()
        if shares:
            share_prefixes(model)
        found.append(ResponseScorer(model))
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("in_parts", [False, True])
def test_log_probs_entropies_and_gradients_are_those_without_sharing(checkpointing, in_parts, monkeypatch):
    if in_parts:
        monkeypatch.setattr(last_layer, "LOGITS_AT_ONCE", 2 * 64)
    values, gradients = [], []
    for scorer in both_ways():
        if checkpointing:
            scorer.policy.gradient_checkpointing_enable()
        log_probs, entropies = scorer(PROMPTS, RESPONSES, entropy=True, train_entropy=True)
        (log_probs.sum() + 0.5 * entropies.sum()).backward()
        values.append((log_probs.detach(), entropies.detach()))
        gradients.append({name: one.grad for name, one in scorer.policy.named_parameters() if one.grad is not None})
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-5)
    assert gradients[1].keys() == gradients[0].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-4)
    assert max(float(one.abs().max()) for one in gradients[0].values()) > 1


TORCHS_OWN = varlen.varlen_attn


class Attention:
    """In place of torch's variable-length attention, which runs on a GPU alone: softmax(q k / sqrt(d)) v of each token
    by itself; keeps what it was asked for. Torch's own is asked for the shape, which needs no GPU."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
        (tokens, heads, width), key_heads = query.shape, key.shape[1]
        assert key.shape == value.shape == (tokens, key_heads, width)
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert cu_seq_q.tolist() == cu_seq_k.tolist()
        assert (max_q, window_size, enable_gqa) == (max_k, (-1, 0), heads > key_heads)
        self.asked.append((cu_seq_q.tolist(), max_q))
        named = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        q, k, v, ends = (one.to("meta") for one in (query, key, value, cu_seq_q))
        of_torch = TORCHS_OWN(q, k, v, ends, ends, max_q, max_k, **named)
        assert isinstance(of_torch, torch.Tensor)
        assert of_torch.shape == query.shape
        results = []
        for first, end in pairwise(cu_seq_q.tolist()):
            for token in range(first, end):
                of_heads = []
                for head in range(heads):
                    keys, values = (one[first : token + 1, head * key_heads // heads] for one in (key, value))
                    weights = (keys @ query[token, head] * (width**-0.5 if scale is None else scale)).softmax(0)
                    of_heads.append(weights @ values)
                results.append(torch.stack(of_heads))
        return torch.stack(results)


@pytest.fixture
def attention(monkeypatch):
    found = Attention()
    monkeypatch.setattr(varlen, "varlen_attn", found)
    monkeypatch.setattr(shared_prefixes, "has_flash", lambda device: True)
    return found


def scores_and_gradients(scorer: ResponseScorer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, and gradients of their mean; of the same sequences each time."""
    scorer.zero_grad()
    log_probs, _ = scorer(PROMPTS, RESPONSES)
    (log_probs.sum() / len(RESPONSES.values)).backward()
    return log_probs.detach(), {
        name: one.grad for name, one in scorer.policy.named_parameters() if one.grad is not None
    }


@pytest.mark.parametrize(("heads", "key_heads", "checkpointing"), [(4, 4, False), (4, 2, False), (4, 1, True)])
def test_without_padding_scores_and_gradients_are_those_with_it(
    attention, monkeypatch, heads, key_heads, checkpointing
):
    scorer = both_ways(num_attention_heads=heads, num_key_value_heads=key_heads)[1]
    if checkpointing:
        scorer.policy.gradient_checkpointing_enable()
    padded, gradients = scores_and_gradients(scorer)
    assert not attention.asked  # float32: no kernel has it
    monkeypatch.setattr(shared_prefixes, "FLASH_TYPES", (torch.float32,))
    unpadded, again = scores_and_gradients(scorer)
    ends = [0, *(PROMPTS.lengths + RESPONSES.lengths).cumsum().tolist()]
    assert attention.asked[:2] == [(ends, 7)] * 2  # each layer
    torch.testing.assert_close(unpadded, padded, rtol=0, atol=1e-5)
    assert again.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(again[name], expected, rtol=0, atol=1e-5)
    assert max(float(one.abs().max()) for one in gradients.values()) > 0.1


@pytest.mark.parametrize(
    ("dtype", "widths", "unpadded"),
    [
        (torch.bfloat16, (64, 64), True),
        (torch.float16, (256, 256), True),
        (torch.float32, (64, 64), False),
        (torch.bfloat16, (264, 264), False),
        (torch.bfloat16, (68, 68), False),
        (torch.bfloat16, (64, 32), False),  # as of latent attention
    ],
)
def test_attention_pads_nothing_where_the_gpu_has_a_kernel_for_it(attention, monkeypatch, dtype, widths, unpadded):
    of_keys, of_values = (torch.zeros(1, 2, 3, width, dtype=dtype) for width in widths)
    assert is_unpadded(of_keys, of_keys, of_values) == unpadded
    assert not is_unpadded(of_keys, of_keys.double(), of_values)
    monkeypatch.setattr(shared_prefixes, "has_flash", lambda device: False)
    assert not is_unpadded(of_keys, of_keys, of_values)


def test_a_cpu_has_no_such_kernel():
    assert not has_flash(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_in_bfloat16_it_rounds_no_more_than_each_sequence_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *given, **named: asked.append(1) or TORCHS_OWN(*given, **named))
    exact, exact_gradients = scores_and_gradients(both_ways()[0])

    def errors(scorer: ResponseScorer) -> tuple[float, float]:
        scorer.policy.to("cuda", torch.bfloat16)
        scores, gradients = scores_and_gradients(scorer)
        distances = [(gradients[name].float().cpu() - one).norm() for name, one in exact_gradients.items()]
        return float((scores.cpu() - exact).norm()), float(torch.stack(distances).norm())

    apart, packed = (errors(scorer) for scorer in both_ways())
    assert len(asked) == 2
    assert packed[0] < 2 * apart[0] + 0.01
    assert packed[1] < 2 * apart[1] + 0.01


def test_a_common_prefix_goes_through_the_model_once():
    scorer, seen = both_ways()[1], []
    scorer.policy.base_model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    scores = score(scorer, PROMPTS, RESPONSES, micro_batch_tokens=1000)
    # 5 6 4 4 4 6 6, and of 5 6 7 10, of 5 6 7 10 4 4 and of 5 6 7 10 11 12 two, two and two; 9 8 3 30.
    assert seen == [(1, 7 + 2 + 2 + 2 + 4)]
    assert scores.lengths.tolist() == RESPONSES.lengths.tolist()
    assert scores[0].tolist() == scores[2].tolist()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("in_parts", [False, True])
def test_all_runs_give_the_same_bytes(in_parts, two_threads, monkeypatch):
    """In more than one thread: PyTorch adds up little in one alone, so each position is read eight times, and wide."""
    if in_parts:
        monkeypatch.setattr(last_layer, "LOGITS_AT_ONCE", 50 * 64)
    scorer = both_ways(
        hidden_size=576, intermediate_size=64, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=1
    )[1]
    prompts, responses = ragged(*[[5, 6, 7]] * 8), ragged(*[list(range(8, 28))] * 8)

    def run() -> bytes:
        scorer.zero_grad()
        log_probs, _ = scorer(prompts, responses)
        (log_probs * torch.arange(1, 9)[:, None]).sum().backward()
        gradients = [one.grad.numpy().tobytes() for one in scorer.policy.parameters() if one.grad is not None]
        return b"".join([log_probs.detach().numpy().tobytes(), *gradients])

    assert len({run() for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny_config("mamba"), "'mamba' is none of"),
        (tiny_config("bloom"), "'bloom' is none of"),
        (tiny_config("mistral", sliding_window=64), "sliding_window 64"),
        (tiny_config("qwen2", layer_types=["full_attention", "sliding_attention"]), "layer_types sliding_attention"),
    ],
)
def test_an_architecture_that_cannot_share_is_refused_by_name_and_reason(config, reason):
    with pytest.raises(ConfigError, match=f"learner.shared_prefixes: true: .*{reason}"):
        check_sharing(config)
    with pytest.raises(ConfigError, match=reason):
        share_prefixes(AutoModelForCausalLM.from_config(config))


def test_a_policy_that_masks_its_attention_is_refused_rather_than_computed_wrong(monkeypatch):
    model = tiny_model(tiny_config("doge"))
    with pytest.raises(ConfigError, match="'doge' is none of"):
        share_prefixes(model)
    monkeypatch.setattr(shared_prefixes, "check_sharing", lambda config: None)
    with pytest.raises(DataError, match=r"learner\.shared_prefixes: true: DogeAttention"):
        sharing_gap(model)
    assert not shares_prefixes("doge")
    assert shares_prefixes("llama")


@pytest.mark.parametrize(
    ("model_type", "other"),
    [("lfm2", "conv"), ("qwen2", "sliding_attention"), ("minimax_m3_vl_text", "minimax_m3_sparse")],
)
def test_layers_that_are_not_full_attention_are_refused(model_type, other):
    check_sharing(tiny_config(model_type, layer_types=["full_attention"] * 2))
    with pytest.raises(ConfigError, match=rf"not all layers .* full attention \(config\.json: layer_types {other}\)"):
        check_sharing(tiny_config(model_type, layer_types=["full_attention", other]))


def test_what_can_share_can_be_scored():
    assert SCORED > SHARING
    check_sharing(LlamaConfig())
    check_sharing(tiny_config("mistral", sliding_window=None))
