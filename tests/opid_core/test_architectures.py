"""Scores are the log-probs of the model's own forward pass, or the architecture is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from opid_core.architectures import PLAYED_TIED, SCORED, check_architecture, is_one_of, tied_weights
from opid_core.errors import ConfigError
from tests.architectures import gap, tiny_config, tiny_model

CHANGED = {"granite": {"logits_scaling": 8.0, "residual_multiplier": 0.5}, "gemma2": {"final_logit_softcapping": 2.0}}


@pytest.mark.parametrize(
    "model_type",
    [
        *("llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "phi3", "gemma3_text"),
        *("granite", "gemma2", "cohere", "gpt2", "gpt_neox", "falcon", "deepseek_v3", "gpt_oss"),
        "inkling_text",  # convolutions after the attention and the feed-forward network
        "falcon_h1",  # asks its body for a number after it
        "opt",  # does not call its body as a whole
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_scores_equal_the_models_own_forward_pass(model_type, in_parts):
    assert gap(tiny_model(tiny_config(model_type, **CHANGED.get(model_type, {}))), in_parts=in_parts) < 1e-4
    assert model_type in SCORED


def test_a_model_that_sees_ahead_would_be_found():
    assert gap(tiny_model(tiny_config("bert"))) > 1e-4


def test_what_is_listed_is_what_transformers_has():
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) >= SCORED
    assert set(SCORED) >= PLAYED_TIED


LONG_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("bert", {}, "none of those whose scores are known"),
        ("gemma3", {}, "wraps a language model with others"),
        ("bart", {}, "none of those whose scores are known"),
        ("gemma2", {}, "vLLM gives it no output layer but its embeddings"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG_FACTORS}}, "'longrope'"),
        ("gpt2", {}, r"set to 0 in config.json: resid_pdrop: 0.1, embd_pdrop: 0.1, attn_pdrop: 0.1"),
    ],
)
def test_an_architecture_is_refused_by_name_and_reason(model_type, changes, reason):
    config = CONFIG_MAPPING[model_type](**changes)
    with pytest.raises(ConfigError, match=f"folder: the architecture '{model_type}' cannot be trained: .*{reason}"):
        check_architecture(config, Path("folder"))


def test_a_plain_architecture_passes():
    check_architecture(tiny_config("llama"), Path("folder"))


def test_the_names_of_one_parameter():
    names = tied_weights(tiny_config("qwen2", tie_word_embeddings=True))
    assert names == ("model.embed_tokens.weight", "lm_head.weight")
    assert tied_weights(tiny_config("qwen2")) == ()
    names = tied_weights(tiny_config("gpt2", tie_word_embeddings=True))
    assert names == ("transformer.wte.weight", "lm_head.weight")
    stored = (
        "wte.weight",
        "transformer.wte.weight",
        "lm_head.weight",
        "wpe.weight",
        "te.weight",
    )  # as published, and as saved
    assert [is_one_of(name, names) for name in stored] == [True, True, True, False, False]
