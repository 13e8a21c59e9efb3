"""The logits of the positions that are read, and what can be of the last decoder layer for them alone.

It is the model's own forward pass, whatever its architecture does around the output layer (scales, caps); only the
output layer gets the read positions and no others. Of the last decoder layer keys and values are needed everywhere, but
the projection after attention and the feed-forward network work position by position: on all others they are skipped.
Values and gradients at the read positions stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def logits_at(
    policy: PreTrainedModel,
    ids: Int[Tensor, "batch tokens"],
    rows: Int[Tensor, " reads"],
    columns: Int[Tensor, " reads"],
) -> Float[Tensor, "reads vocabulary"]:
    """The logits that `policy` gives to `ids` at [rows, columns].

    A last layer is run whole unless it is made of a `self_attn.o_proj` and an `mlp` of one input, with nothing but
    norms between (those of Llama and Qwen are): a convolution, say, would look at positions beside the read ones. From
    then on the last layer's activations are kept, whatever gradient checkpointing does with the others.
    """
    with _only_at(policy, rows, columns):
        return policy(input_ids=ids, use_cache=False).logits[0]


@contextmanager
def _only_at(policy: PreTrainedModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    def pick(module: nn.Module, inputs: tuple[Float[Tensor, "batch tokens features"]]) -> tuple[Tensor]:
        nonlocal shape
        shape = inputs[0].shape[:2]
        return (inputs[0][rows, columns][None],)

    def put(module: nn.Module, inputs: tuple[Tensor], output: Tensor | tuple) -> Tensor | tuple:
        read, *more = output if isinstance(output, tuple) else (output,)  # experts may tell of their routing too
        whole = read.new_zeros(*shape, read.shape[-1]).index_put((rows, columns), read[0])
        return (whole, *more) if isinstance(output, tuple) else whole

    shape = (0, 0)
    output_layer = policy.get_output_embeddings()
    assert output_layer is not None
    handles = [output_layer.register_forward_pre_hook(pick)]
    for module in _position_wise(policy):
        handles += [module.register_forward_pre_hook(pick), module.register_forward_hook(put)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _position_wise(policy: PreTrainedModel) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = getattr(policy.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    last = layers[-1]
    found = [getattr(getattr(last, "self_attn", None), "o_proj", None), getattr(last, "mlp", None)]
    modules = [m for m in found if isinstance(m, nn.Module) and len(signature(m.forward).parameters) == 1]
    others = [name for name, _ in last.named_children() if name not in ("self_attn", "mlp") and "norm" not in name]
    if len(modules) < len(found) or others:
        return []
    if isinstance(last, GradientCheckpointingLayer):
        # It would be computed again, without the hooks, right at the start of the backward pass: that saves no memory.
        last.gradient_checkpointing = False
    return modules
