"""The shape of a policy: what its memory, its seconds and its bytes follow from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opid_core.architectures import linear_layers, names_of_tied, without_values
from opid_core.config import WarmStartConfig
from opid_core.policies import TINY_VOCABULARY, make_tiny_policy
from opid_core.policy_check import load_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN_EXPERTS = ("num_experts_per_tok", "moe_topk", "moe_k")


@dataclass(frozen=True)
class PolicyShape:
    """What a policy's size follows from."""

    parameters: int
    layers: int
    hidden_size: int
    vocab_size: int
    key_value_size: int
    """Width of a layer's keys (and of its values), all heads together."""
    tied_parameters: int = 0
    """Of the output layer that is the embeddings too: the engine has a copy of its own."""
    heads: int = 0
    """Attention heads of a layer; 0, as the next two, where there are none or it is not known."""
    key_value_heads: int = 0
    intermediate_size: int = 0
    """Inner width of a layer's perceptron."""
    linear: tuple[Linear, ...] = ()
    """Its linear layers but the output layer, sorted."""
    idle_parameters: int = 0
    """Of the experts that are not a token's own; 0 where there are none, or the config does not say how many are."""

    @property
    def active_parameters(self) -> int:
        """Those that a token meets."""
        return self.parameters - self.idle_parameters


class Linear(NamedTuple):
    """Linear layers of one name (the last part of it) and size."""

    name: str
    inputs: int
    outputs: int
    count: int


def _published(
    parameters: int,
    layers: int,
    hidden: int,
    vocab: int,
    key_value_size: int,
    inner: int,
    queries: int = 0,
    *,
    tied: bool = True,
) -> PolicyShape:
    """`queries`: width of all heads together, where it is not `hidden`."""
    queries = queries or hidden
    sizes = [("down_proj", inner, hidden), ("gate_proj", hidden, inner), ("k_proj", hidden, key_value_size)]
    sizes += [("o_proj", queries, hidden), ("q_proj", hidden, queries), ("up_proj", hidden, inner)]
    linear = tuple(Linear(*size, layers) for size in [*sizes, ("v_proj", hidden, key_value_size)])
    return PolicyShape(parameters, layers, hidden, vocab, key_value_size, vocab * hidden if tied else 0, linear=linear)


KNOWN_SHAPES = {
    "qwen2.5-0.5b": _published(494_032_768, 24, 896, 151_936, 2 * 64, 4864),
    "qwen2.5-1.5b": _published(1_543_714_304, 28, 1536, 151_936, 2 * 128, 8960),
    "qwen2.5-3b": _published(3_085_938_688, 36, 2048, 151_936, 2 * 128, 11_008),
    "qwen2.5-7b": _published(7_615_616_512, 28, 3584, 152_064, 4 * 128, 18_944, tied=False),
    "qwen3-1.7b": _published(1_720_574_976, 28, 2048, 151_936, 8 * 128, 6144),
    "qwen3-4b": _published(4_022_468_096, 36, 2560, 151_936, 8 * 128, 9728, 32 * 128),
    "qwen3-8b": _published(8_190_735_360, 36, 4096, 151_936, 8 * 128, 12_288, tied=False),
    "smollm2-135m": _published(134_515_008, 30, 576, 49_152, 3 * 64, 1536),
}
"""Of models as they are published, for plans on a machine that does not have them."""


def known_shape(policy: str) -> PolicyShape | None:
    """The shape of the published model that the end of a path or of a hub's id names, whatever stands behind the size
    (`-Instruct`); None for an unknown one."""
    name = policy.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((shape for known, shape in KNOWN_SHAPES.items() if f"{name}-".startswith(f"{known}-")), None)


def count_parameters(folder: Path | None, warm_start: WarmStartConfig) -> PolicyShape:
    """The shape of the policy in `folder`, or (None) of the one that a warm start would make. Allocates no weights.
    Raises ConfigError for a folder whose config is of no causal language model."""
    return shape_of(without_values(policy_config(folder, warm_start)))


def policy_config(folder: Path | None, warm_start: WarmStartConfig) -> PreTrainedConfig:
    """The model config of the policy in `folder`, or (None) of the one that a warm start would make."""
    import torch

    if folder is not None:
        return load_config(folder)
    with torch.device("meta"):
        tiny = make_tiny_policy(
            vocab_size=TINY_VOCABULARY,
            hidden_size=warm_start.hidden_size,
            layers=warm_start.layers,
            heads=warm_start.heads,
            max_positions=1,
            seed=0,
            tied=warm_start.tied_embeddings,
        )
    return tiny.config


def shape_of(model: PreTrainedModel) -> PolicyShape:
    """The shape of a model, with or without values in its weights. Architectures name their sizes differently."""
    config: Any = model.config
    heads = getattr(config, "num_attention_heads", 0)  # none where there is no attention
    key_value_heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    head_size = config.to_dict().get("head_dim") or (config.hidden_size // heads if heads else 0)
    tied = names_of_tied(model)
    tied_parameters = model.get_parameter(tied[0]).numel() if tied else 0
    layers = linear_layers(model).items()
    sizes = Counter((name.rsplit(".", 1)[-1], one.in_features, one.out_features) for name, one in layers)
    return PolicyShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        key_value_size=head_size * key_value_heads,
        heads=heads,
        key_value_heads=key_value_heads,
        intermediate_size=getattr(config, "intermediate_size", None) or 0,
        tied_parameters=tied_parameters,
        linear=tuple(Linear(*size, count) for size, count in sorted(sizes.items())),
        idle_parameters=_idle_parameters(model),
    )


def _idle_parameters(model: PreTrainedModel) -> int:
    def said(names: Sequence[str]) -> int:
        values = (getattr(model.config, name, None) for name in names)
        return next((value for value in values if isinstance(value, int)), 0)

    experts, chosen = said(_EXPERTS), said(_CHOSEN_EXPERTS)
    if not 0 < chosen < experts:
        return 0
    routed = sum(one.numel() for name, one in model.named_parameters() if "experts" in name.split("."))
    return routed * (experts - chosen) // experts
