"""The last decoder layer on the positions that are read alone.

Of the last layer only the hidden states at response positions are ever used. Keys and values are needed everywhere, but
the projection after attention and the feed-forward network work position by position: on all others they are skipped.
Values and gradients at the read positions stay what they are; elsewhere the layer's output is not meant to be read.
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


@contextmanager
def last_layer_only_at(
    policy: PreTrainedModel, rows: Int[Tensor, " reads"], columns: Int[Tensor, " reads"]
) -> Iterator[None]:
    """Forward passes of `policy` within the block compute what they can of the last layer at [rows, columns] only.

    Models whose last layer has no `self_attn.o_proj` and `mlp` of one input (those of Llama and Qwen have) run whole.
    From then on the last layer's activations are kept, whatever gradient checkpointing does with the others.
    """

    def pick(module: nn.Module, inputs: tuple[Float[Tensor, "batch tokens features"]]) -> tuple[Tensor]:
        nonlocal shape
        shape = inputs[0].shape[:2]
        return (inputs[0][rows, columns][None],)

    def put(module: nn.Module, inputs: tuple[Tensor], output: Tensor | tuple) -> Tensor | tuple:
        read, *more = output if isinstance(output, tuple) else (output,)  # experts may tell of their routing too
        whole = read.new_zeros(*shape, read.shape[-1]).index_put((rows, columns), read[0])
        return (whole, *more) if isinstance(output, tuple) else whole

    shape = (0, 0)
    handles = []
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
    if len(modules) < len(found):
        return []
    if isinstance(last, GradientCheckpointingLayer):
        # It would be computed again, without the hooks, right at the start of the backward pass: that saves no memory.
        last.gradient_checkpointing = False
    return modules
