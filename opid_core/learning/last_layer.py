"""The log-probs at the positions that are read: the output layer, and what can be of the last decoder layer, for them
alone.

It is the model's own forward pass, whatever its architecture does around the output layer (scales, caps), whole or in
its two halves: its body, and what comes after it. Of the last decoder layer keys and values are needed everywhere, but
the projection after attention and the feed-forward network work position by position: on all others they are skipped.
Values and gradients at the read positions stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.generic import ModelOutput

LOGITS_AT_ONCE = 2**26
"""0.25 GiB in float32, and several times that with what the log-softmax and the backward pass keep; with a vocabulary
of 150,000 they are those of 440 positions, enough to keep a GPU's matrix units busy."""

_WITHOUT_HALVES = ("llama4_text", "opt", "trocr")
"""By `model_type`: their forward pass does not call their body as a whole. Their logits are made at once."""


def log_probs_at(
    policy: PreTrainedModel,
    ids: Int[Tensor, "batch tokens"],
    rows: Int[Tensor, " reads"],
    columns: Int[Tensor, " reads"],
    targets: Int[Tensor, " reads"],
    *,
    entropy: bool = False,
    train_entropy: bool = False,
    **inputs: Tensor,
) -> tuple[Float[Tensor, " reads"], Float[Tensor, " reads"] | None]:
    """The log-probs that `policy`, having read `ids`, gives to the tokens `targets` after [rows, columns]: nats,
    float32, temperature 1; and the entropies there if asked for, through which gradients flow only if they are trained.
    `inputs`: what else its forward pass takes.

    A last layer is run whole unless it is made of a `self_attn.o_proj` and an `mlp` of one input, with nothing but
    norms between (those of Llama and Qwen are): a convolution, say, would look at positions beside the read ones. From
    then on the last layer's activations are kept, whatever gradient checkpointing does with the others.

    The logits of many positions are made part by part, and again in the backward pass, so that a vocabulary of 150,000
    does not decide how much memory a micro-batch takes.
    """
    parts = -(-len(rows) * policy.config.get_text_config().vocab_size // LOGITS_AT_ONCE)
    # Two parts save nothing: the gradient of the output layer is there once for each until both are added.
    if parts <= 2 or policy.config.model_type in _WITHOUT_HALVES:
        with _only_at(policy, rows, columns, ids.shape[1], output_layer=True):
            logits = policy(input_ids=ids, use_cache=False, **inputs).logits[0]
        return _read(logits, targets, entropy, train_entropy)
    with _only_at(policy, rows, columns, ids.shape[1], output_layer=False):
        body = policy.base_model(input_ids=ids, use_cache=False, **inputs)
    hidden = _at(body.last_hidden_state, rows, columns)

    def read(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        with _body_answers(policy, type(body)(**{**body, "last_hidden_state": hidden[None]})):
            logits = policy(input_ids=ids, use_cache=False, **inputs).logits[0]
        return _read(logits, targets, entropy, train_entropy)

    pairs = zip(hidden.tensor_split(parts), targets.tensor_split(parts), strict=True)
    results = [
        checkpoint(read, *pair, use_reentrant=False) if torch.is_grad_enabled() else read(*pair) for pair in pairs
    ]
    entropies = [of_part for _, of_part in results if of_part is not None]
    return torch.cat([of_part for of_part, _ in results]), torch.cat(entropies) if entropy else None


def _at(
    states: Float[Tensor, "batch tokens features"], rows: Int[Tensor, " reads"], columns: Int[Tensor, " reads"]
) -> Float[Tensor, "reads features"]:
    # states[rows, columns] adds the gradients of a position that is read often in the order in which threads come.
    return states.flatten(0, 1).index_select(0, rows * states.shape[1] + columns)


def _read(
    logits: Float[Tensor, "reads vocabulary"], targets: Int[Tensor, " reads"], entropy: bool, train_entropy: bool
) -> tuple[Float[Tensor, " reads"], Float[Tensor, " reads"] | None]:
    distribution = logits.float().log_softmax(dim=-1)
    log_probs = distribution.gather(-1, targets[:, None]).squeeze(-1)
    if not entropy:
        return log_probs, None
    with torch.set_grad_enabled(train_entropy and torch.is_grad_enabled()):
        return log_probs, -(distribution.exp() * distribution).sum(dim=-1)


class _Answer(nn.Module):
    """Stands in for a model's body, and has its attributes, but answers what it is given."""

    def __init__(self, body: nn.Module, output: ModelOutput) -> None:
        super().__init__()
        self._given = body, output  # a tuple: nothing that looks for modules or parameters finds them here twice

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_given"][0], name)

    def forward(self, *_: object, **__: object) -> ModelOutput:
        return self._given[1]


@contextmanager
def _body_answers(policy: PreTrainedModel, output: ModelOutput) -> Iterator[None]:
    """In the block the body of `policy` computes nothing and answers `output`."""
    name = policy.base_model_prefix
    body = policy.base_model
    policy._modules[name] = _Answer(body, output)
    try:
        yield
    finally:
        policy._modules[name] = body


@contextmanager
def _only_at(
    policy: PreTrainedModel, rows: Tensor, columns: Tensor, width: int, *, output_layer: bool
) -> Iterator[None]:
    # A position that is read twice is computed once: written twice, each would get the gradient of both.
    once = torch.unique(rows * width + columns)
    places = once // width, once % width

    def pick_reads(module: nn.Module, inputs: tuple[Float[Tensor, "batch tokens features"]]) -> tuple[Tensor]:
        return (_at(inputs[0], rows, columns)[None],)

    def pick(module: nn.Module, inputs: tuple[Float[Tensor, "batch tokens features"]]) -> tuple[Tensor]:
        nonlocal shape
        shape = inputs[0].shape[:2]
        return (inputs[0][places][None],)

    def put(module: nn.Module, inputs: tuple[Tensor], output: Tensor | tuple) -> Tensor | tuple:
        read, *more = output if isinstance(output, tuple) else (output,)  # experts may tell of their routing too
        whole = read.new_zeros(*shape, read.shape[-1]).index_put(places, read[0])
        return (whole, *more) if isinstance(output, tuple) else whole

    shape = (0, 0)
    handles = []
    if output_layer:
        last = policy.get_output_embeddings()
        assert last is not None
        handles.append(last.register_forward_pre_hook(pick_reads))
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
