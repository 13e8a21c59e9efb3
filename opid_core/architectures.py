"""Which model architectures can be trained: those whose scores are the log-probs of the model's own forward pass; and
which of their parameters are one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opid_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

_NAMES = """
afmoe apertus arcee aria_text axk1 axk2 bamba biogpt bitnet bloom codegen cohere cohere2 cohere2_moe ctrl cwm
deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon
falcon_h1 falcon_mamba flex_olmo gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe
glm4_moe_lite glm_moe_dsa gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa
granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4
hyperclovax inkling_text jais2 jamba jetmoe kimi_linear laguna lfm2 lfm2_moe llama llama4_text longcat_flash mamba
mamba2 mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral
modernbert-decoder moshi mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon
phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp_text recurrent_gemma
rwkv seed_oss smollm3 solar_open stablelm starcoder2 trocr vaultgemma xglm xlm xlstm youtu zamba zaya
"""
SCORED = frozenset(_NAMES.split())
"""By `model_type`, in transformers 5.19: within 1e-4 nats of the model's own forward pass (docs/measurements/
architectures.md). An architecture that is not here may see ahead, or not be known: `python -m benchmarks.architectures
NAME` tells."""

_SHARING_NAMES = """
apertus arcee aria_text axk1 biogpt bitnet cohere ctrl deepseek_v2 deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe
flex_olmo gemma glm glm4 glm4_moe glm4_moe_lite gpt-sw3 gpt2 gpt_bigcode gpt_neox granite granitemoe granitemoeshared
helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe laguna lfm2 llama longcat_flash mellum
minimax_m2 minimax_m3_vl_text ministral3 mistral mixtral nanochat olmo olmo2 olmoe opt persimmon phi phi3 phimoe qwen2
qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open starcoder2 youtu
"""
SHARING = frozenset(_SHARING_NAMES.split())
"""Of the scored ones, those in which, where all `layer_types` are full_attention, nothing but attention looks at other
positions, and attention is looked up by its name and takes no mask of the layer's own: `learner.shared_prefixes`
computes them within 1e-5 nats of their own forward pass (docs/measurements/shared_prefixes.md)."""

PLAYED_TIED = frozenset(("cohere", "cohere2", "cohere2_moe", "gemma2", "gemma3n_text"))
"""vLLM takes the embeddings of these as their output layer, and skips an output layer in the weights: a live engine
keeps the one that it began with (its CPU build), or plays what was not trained (an untied model)."""


def check_architecture(config: PreTrainedConfig, folder: Path) -> None:
    """Raise ConfigError, with the reason, for a model that engine and learner would not compute alike, or whose scores
    would depend on what shares their batch."""
    reason = _why_not(config)
    if reason is not None:
        raise ConfigError(f"policy: {folder}: the architecture {config.model_type!r} cannot be trained: {reason}")


def _why_not(config: PreTrainedConfig) -> str | None:
    if config.model_type not in SCORED:
        if not config.is_encoder_decoder and config.get_text_config() is not config:
            return "it wraps a language model with others; give a folder that holds the language model alone"
        return (
            "it is none of those whose scores are known to equal the model's own forward pass "
            "(docs/measurements/architectures.md)"
        )
    if config.model_type in PLAYED_TIED:
        return (
            "vLLM gives it no output layer but its embeddings, and new weights do not reach that in a live engine: "
            "what is trained would not be what is played"
        )
    if changing := sorted(_rope_types(getattr(config, "rope_parameters", None)) & {"dynamic", "longrope"}):
        return (
            f"its rotary embeddings (config.json: rope_type {changing[0]!r}) change with the longest sequence of a "
            "batch, so a response's log-probs would depend on the batch; use a model, or a rope_type, without that"
        )
    if random := random_in_training(config):
        settings = ", ".join(f"{name}: {getattr(config, name)}" for name in random)
        return f"an update would not compute what scoring does; set to 0 in config.json: {settings}"
    return None


def check_sharing(config: PreTrainedConfig) -> None:
    """Raise ConfigError for a model that cannot be trained with `learner.shared_prefixes`."""
    if reason := why_no_sharing(config):
        raise ConfigError(f"learner.shared_prefixes: true: {reason}; set it to false")


def why_no_sharing(config: PreTrainedConfig) -> str | None:
    """Why a model cannot be trained with `learner.shared_prefixes`; None where it can."""
    if config.model_type not in SHARING:
        return (
            f"the architecture {config.model_type!r} is none of those that share prefixes: {', '.join(sorted(SHARING))}"
        )
    if windows := _windows(config):
        return f"not all layers of this {config.model_type} are full attention (config.json: {windows})"
    return None


def _windows(config: PreTrainedConfig) -> str:
    other = sorted({*(getattr(config, "layer_types", None) or ())} - {"full_attention"})
    if other:
        return f"layer_types {', '.join(other)}"
    window = getattr(config, "sliding_window", None)
    return f"sliding_window {window}" if window is not None and getattr(config, "use_sliding_window", True) else ""


def _rope_types(parameters: Any) -> set[str]:
    """Of a config's `rope_parameters`, or of those of each layer type in them."""
    if not isinstance(parameters, dict):
        return set()
    types = {str(parameters["rope_type"])} if parameters.get("rope_type") else set()
    return types.union(*(_rope_types(value) for value in parameters.values()))


def random_in_training(config: PreTrainedConfig) -> list[str]:
    """The settings of `config` that make a forward pass in training a random one: dropout, skipped layers, noise."""
    return [
        name
        for name, value in config.to_dict().items()
        if any(word in name for word in ("dropout", "pdrop", "layerdrop", "jitter"))
        and not name.startswith(("classifier", "summary"))  # of heads that a causal language model has not
        and isinstance(value, float)
        and value > 0
    ]


def tied_weights(config: PreTrainedConfig) -> tuple[str, ...]:
    """Names of the one parameter that is both embeddings and output layer in a model of `config`; empty where each has
    its own. Allocates no weights."""
    return names_of_tied(without_values(config))


def without_values(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model of `config`, without memory for its weights (on PyTorch's meta device). Raises
    ConfigError for one that cannot be built."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the architecture's own code raises for a value
        raise ConfigError(
            f"policy: {Path(config.name_or_path) / 'config.json'}: no {config.model_type} model has these values: "
            f"{type(error).__name__}: {error}"
        ) from None


def names_of_tied(model: PreTrainedModel) -> tuple[str, ...]:
    """See `tied_weights`."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or outputs.weight is not inputs.weight:
        return ()
    return tuple(name for name, one in model.named_parameters(remove_duplicate=False) if one is outputs.weight)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of `model` by their names, all but the output layer."""
    from torch import nn

    outputs = model.get_output_embeddings()
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not outputs}


def is_one_of(name: str, tied: Sequence[str]) -> bool:
    """Whether a stored weight is one of the `tied` parameters; some files leave out the first part of a name."""
    return any(one == name or one.endswith("." + name) for one in tied)
