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

from opid_core.learning.last_layer import logits_at

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


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).train()


def read(model: PreTrainedModel, *, whole: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits at the read positions, and the gradients of a loss of them."""
    model.zero_grad()
    if whole:
        logits = model(input_ids=IDS, use_cache=False).logits[ROWS, COLUMNS]
    else:
        logits = logits_at(model, IDS, ROWS, COLUMNS)
    logits.log_softmax(-1)[:, 3].sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_at_the_read_positions_are_those_of_the_whole_model(name, checkpointing):
    model = model_of(name)
    expected, gradients = read(model, whole=True)
    if checkpointing:
        model.gradient_checkpointing_enable()
    for _ in range(2):  # a second pass finds nothing left of the first
        logits, found = read(model, whole=False)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        assert found.keys() == gradients.keys()
        for parameter, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[parameter], rtol=1e-4, atol=1e-5)


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
    assert logits_at(model, IDS, ROWS[:0], COLUMNS[:0]).shape == (0, 40)
