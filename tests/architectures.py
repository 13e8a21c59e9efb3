"""Tiny random models of the causal architectures of the installed transformers, and whether scoring is right for them.

`benchmarks/architectures.py` goes through all of them; the suite has a few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from opid_core.architectures import random_in_training
from opid_core.learning import last_layer
from opid_core.learning.scoring import ResponseScorer, score
from opid_core.learning.shared_prefixes import share_prefixes
from opid_core.samples import Ragged

WIDTHS = ("hidden_size", "n_embd", "d_model", "lru_width")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
HEADS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"),
    *("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"),
)
INNER = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "inner_dim")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EIGHTS = (
    *("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "linear_key_head_dim"),
    *("linear_value_head_dim", "state_size", "mamba_d_state", "hidden_size_per_layer_input"),
)
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDTHS, 32),
    **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(INNER, 48),
    **dict.fromkeys(EXPERTS, 4),
    **dict.fromkeys(EIGHTS, 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "mamba_expand", "expand"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_shared_experts", "n_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **{"num_key_value_heads": 2, "linear_num_key_heads": 2, "sliding_window": 64},
}
"""By the names that configs give them; each config has some."""

LATENT = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu"
OWN_SIZES: dict[str, dict[str, Any]] = {
    # attention to a latent vector: no keys shared among heads
    **{name: {"num_key_value_heads": 4} for name in (*LATENT.split(), "nemotron")},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "num_key_value_heads": 4},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron_h": {
        "num_key_value_heads": 4,
        "n_groups": 1,
        "num_hidden_layers": None,
        "layers_block_type": ["mamba", "attention"],
    },
    "xlstm": {"v_head_dim": None, "qk_head_dim": None, "hidden_size": 64, "embedding_dim": 64},
    "zamba": {"layer_types": ["mamba", "hybrid"], "n_mamba_heads": 2},
    "zamba2": {
        "layer_types": ["hybrid", "hybrid"],
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "num_mem_blocks": 1,
        "mamba_ngroups": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture needs otherwise; None leaves a size as its config has it."""

PROMPTS, RESPONSES = (
    Ragged.from_rows([np.random.default_rng([seed, n]).integers(3, 60, n) for n in lengths], np.int32)
    for seed, lengths in enumerate([(5, 9, 3, 17), (4, 2, 6, 3)])
)


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A config of 2 layers of width 32; untied, and without dropout, where it has any."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    sizes: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    for name, value in SIZES.items():
        try:
            known = getattr(default, name, None) is not None
        except Exception:  # some raise where layers differ
            known = False
        if known:
            sizes[name] = value
    sizes = {name: value for name, value in {**sizes, **OWN_SIZES.get(model_type, {})}.items() if value is not None}
    dropout = dict.fromkeys(random_in_training(default), 0.0)
    return config_class(**{**sizes, **dropout, **changes})


def tiny_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Random float32 weights, large enough that log-probs differ by nats."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4.0)
    return model


def gap(model: PreTrainedModel, *, in_parts: bool = False) -> float:
    """The largest difference in nats between scoring, as in the update and as before it, and the model's own forward
    pass of one sequence at a time; `in_parts`: where the logits are made two positions at a time."""
    with pytest.MonkeyPatch.context() as patch:
        if in_parts:
            patch.setattr(last_layer, "LOGITS_AT_ONCE", 2 * model.config.get_text_config().vocab_size)
        return _gap(model)


def sharing_gap(model: PreTrainedModel) -> float:
    """As `gap`, of sequences with common prefixes that are computed once; from then on `model` works so."""
    longer, shorter = [*PROMPTS[3], 7, 8], PROMPTS[3][:9]
    prompts = Ragged.from_rows([*PROMPTS, longer, shorter, PROMPTS[3], PROMPTS[0]], np.int32)
    return _gap(model, prompts, RESPONSES.take(np.array([0, 1, 2, 3, 3, 0, 3, 2])), shares=True)


def _gap(
    model: PreTrainedModel, prompts: Ragged = PROMPTS, responses: Ragged = RESPONSES, *, shares: bool = False
) -> float:
    model.eval()
    own = []
    with torch.no_grad():
        for prompt, response in zip(prompts, responses, strict=True):
            ids = torch.from_numpy(np.concatenate([prompt, response])).long()
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
            read = logits[len(prompt) - 1 : -1].log_softmax(-1)
            own.append(read[torch.arange(len(response)), ids[len(prompt) :]].numpy())
    expected = np.concatenate(own)
    assert np.ptp(expected) > 1e-3
    if shares:
        share_prefixes(model)
    scored = score(model, prompts, responses, micro_batch_tokens=1000).values
    updated, _ = ResponseScorer(model.train())(prompts, responses)
    in_update = [row[:length] for row, length in zip(updated.detach().numpy(), responses.lengths, strict=True)]
    return float(max(np.abs(values - expected).max() for values in (scored, np.concatenate(in_update))))
