from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from opid_core.learning import last_layer
from opid_core.learning.last_layer import log_probs_at

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mixture of experts": Qwen3MoeConfig(**SIZES, **EXPERTS),
    "experts that tell of their routing": GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "other layers": GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}
IDS = torch.arange(24).reshape(2, 12) % 40
ROWS, COLUMNS = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([9, 10, 5, 6, 7])
TARGETS = torch.tensor([3, 0, 39, 7, 7])


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).train()


def read(model: PreTrainedModel, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The log-probs and entropies at the read positions, and the gradients of a loss of both."""
    model.zero_grad()
    if whole:
        logits = model(input_ids=IDS, use_cache=False).logits[ROWS, COLUMNS]
        distribution = logits.log_softmax(-1)
        log_probs, entropies = distribution[torch.arange(5), TARGETS], -(distribution.exp() * distribution).sum(-1)
    else:
        log_probs, entropies = log_probs_at(model, IDS, ROWS, COLUMNS, TARGETS, entropy=True, train_entropy=True)
        assert entropies is not None
    (log_probs.sum() + 0.5 * entropies.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return log_probs.detach(), entropies.detach(), gradients


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("logits_at_once", [100, 80, 40], ids=["at once", "3 parts", "5 parts"])
def test_values_and_gradients_at_the_read_positions_are_those_of_the_whole_model(
    name, checkpointing, logits_at_once, monkeypatch
):
    """Five positions, a vocabulary of 40."""
    model = model_of(name)
    *expected, gradients = read(model, whole=True)
    if checkpointing:
        model.gradient_checkpointing_enable()
    monkeypatch.setattr(last_layer, "LOGITS_AT_ONCE", logits_at_once)
    for _ in range(2):  # a second pass finds nothing left of the first
        *values, found = read(model, whole=False)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        assert found.keys() == gradients.keys()
        for parameter, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[parameter], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_no_more_logits_are_made_at_once_than_allowed(with_gradients, monkeypatch):
    model, rows = model_of("qwen2"), []
    model.lm_head.register_forward_hook(lambda _, __, output: rows.append(output.shape[1]))
    monkeypatch.setattr(last_layer, "LOGITS_AT_ONCE", 80)
    with torch.set_grad_enabled(with_gradients):
        log_probs, nothing = log_probs_at(model, IDS, ROWS, COLUMNS, TARGETS)
    assert (rows, nothing) == ([2, 2, 1], None)
    if with_gradients:
        log_probs.sum().backward()
        assert sorted(rows) == [1, 1, 2, 2, 2, 2]  # made again


def test_the_last_layer_computes_the_read_positions_alone_and_the_others_everything():
    model, shapes = model_of("qwen2"), []
    names = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.o_proj", "mlp.down_proj")]
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[:2])))
        for name in names
    ]
    read(model, whole=False)
    assert shapes == [(2, 12), (2, 12), (1, 5), (1, 5)]
    shapes.clear()
    read(model, whole=True)
    assert shapes == [(2, 12)] * 4
    for hook in hooks:
        hook.remove()


def test_without_reads_nothing_of_it_is_computed():
    model = model_of("llama")
    log_probs, _ = log_probs_at(model, IDS, ROWS[:0], COLUMNS[:0], TARGETS[:0])
    assert log_probs.shape == (0,)
