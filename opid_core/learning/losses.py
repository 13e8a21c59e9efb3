"""The objective (ALGORITHM, sections 7 and 8): clipped policy loss, k3 KL, and their aggregation over a mini-batch.

Every loss, a method's own too, is a function of one `LossInput` that returns its value and detached numbers to log. A
micro-batch's loss is its share of the mini-batch's: give every part the mini-batch's `normalizer` and add them up, and
loss and gradient are the same whatever the split over micro-batches or ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opid_core.errors import DataError

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"]

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped here before exp: beyond it every term is clipped anyway, and exp would overflow into NaN
gradients."""
K3_LIMIT = 10.0
TOKEN_SUMS = ("tokens", "clipped", "dual_clipped", "ratio", "kl_k1", "kl_k3", "reference_kl", "entropy")
"""Of the numbers that are logged, those that are sums over tokens; all others are shares of the mini-batch's, as losses
are."""


@dataclass(frozen=True)
class LossInput:
    """What a loss reads of a micro-batch. Log-probs in nats at temperature 1; gradients flow through `log_probs` alone;
    entries outside `response_mask` may hold anything."""

    log_probs: Float[Tensor, "samples tokens"]
    """Of the policy that is trained."""
    old_log_probs: Float[Tensor, "samples tokens"]
    """Of the policy that sampled."""
    advantages: Float[Tensor, "samples tokens"]
    response_mask: Bool[Tensor, "samples tokens"]
    aggregation: Aggregation
    normalizer: float | None = None
    """The mini-batch's denominator (see the function of that name); None: this batch's own."""
    reference_log_probs: Float[Tensor, "samples tokens"] | None = None
    """Of the frozen policy that the KL term pulls to."""
    skill_log_probs: Float[Tensor, "samples tokens"] | None = None
    """Of the policy that sampled, under the routed skill; anything outside `skill_mask`."""
    skill_mask: Bool[Tensor, "samples tokens"] | None = None
    """The response tokens of the samples that have a routed skill."""
    entropy: Float[Tensor, "samples tokens"] | None = None
    """Of the trained policy's distribution at each token, in nats; gradients flow through it where it is trained."""

    def aggregate(self, token_losses: Float[Tensor, "samples tokens"]) -> Float[Tensor, ""]:
        """This batch's share of the aggregated `token_losses`; see the function of that name."""
        return aggregate(token_losses, self.response_mask, self.aggregation, self.normalizer)

    def log_ratio(self, other: Tensor | None, mask: Tensor | None = None) -> Float[Tensor, "samples tokens"]:
        """log pi - `other` where `mask` (None: `response_mask`) holds, else 0; clamped so that its exp is finite."""
        assert other is not None
        mask = self.response_mask if mask is None else mask
        difference = torch.where(mask, self.log_probs - other.detach(), 0.0)
        return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


Loss = Callable[[LossInput], tuple[Tensor, dict[str, Tensor]]]
"""A micro-batch's share of a loss, to be added to the others, and detached numbers to be added up and logged."""


def normalizer(response_lengths: Iterable[int], aggregation: Aggregation) -> float:
    """The denominator of a whole mini-batch: its response tokens (`token-mean`), else its non-empty responses.

    `response_lengths`: valid response tokens of every sample of the mini-batch, over all ranks.
    Raises DataError for an unknown aggregation.
    """
    lengths = [int(n) for n in response_lengths]
    _check(aggregation)
    return float(sum(lengths)) if aggregation == "token-mean" else float(sum(n > 0 for n in lengths))


def aggregate(
    token_losses: Float[Tensor, "samples tokens"],
    response_mask: Tensor,
    aggregation: Aggregation,
    normalizer: float | None = None,
) -> Float[Tensor, ""]:
    """One number of [samples, tokens] losses over the valid tokens; samples without one do not count.

    `normalizer` (see the function of that name) replaces this batch's own denominator. An empty batch gives 0.
    """
    _check(aggregation)
    mask = response_mask.bool()
    lengths = mask.sum(dim=-1)
    losses = torch.where(mask, token_losses, 0.0)
    if aggregation == "token-mean":
        return losses.sum() / ((lengths.sum() if normalizer is None else normalizer) + 1e-8)
    sequences = losses.sum(dim=-1)
    if aggregation == "seq-mean-token-mean":
        sequences = sequences / lengths.clamp(min=1)
    if normalizer is None:
        return sequences.sum() / (lengths > 0).sum().clamp(min=1)
    return sequences.sum() / max(normalizer, 1.0)


def clipped_loss(
    inputs: LossInput, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The PPO loss with clipping to [1 - clip_low, 1 + clip_high] and dual clip: for negative advantages the loss is at
    most dual_clip * |advantage| (None: no dual clip).

    Its numbers are sums over the valid tokens for `policy_metrics`, and `policy_loss`. Source: ALGORITHM, section 7.
    """
    mask = inputs.response_mask
    advantages = torch.where(mask, inputs.advantages.detach(), 0.0)
    log_ratio = inputs.log_ratio(inputs.old_log_probs)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(plain, clipped)
    is_dual = torch.zeros_like(mask)
    if dual_clip is not None:
        bound = -advantages * dual_clip
        is_dual = (advantages < 0) & (losses > bound)
        losses = torch.where(advantages < 0, torch.minimum(losses, bound), losses)
    loss = inputs.aggregate(losses)
    with torch.no_grad():
        sums = {
            "tokens": mask.sum(),
            "clipped": ((clipped > plain) & mask).sum(),
            "dual_clipped": (is_dual & mask).sum(),
            "ratio": torch.where(mask, ratio, 0.0).sum(),
            "kl_k1": -log_ratio.sum(),
            "kl_k3": (ratio - log_ratio - 1).sum(),
            "policy_loss": loss,
        }
    return loss, {name: value.detach() for name, value in sums.items()}


def reference_loss(inputs: LossInput, *, coefficient: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """`coefficient` times the aggregated k3(log pi_ref - log pi), each token clamped to [-10, 10]; k3(x) = exp(x) - x
    - 1. Its number is the sum over the valid tokens, in nats. Source: ALGORITHM, section 7."""
    x = -inputs.log_ratio(inputs.reference_log_probs)
    k3 = (x.exp() - x - 1).clamp(-K3_LIMIT, K3_LIMIT)
    return coefficient * inputs.aggregate(k3), {"reference_kl": k3.detach().sum()}


def entropy_loss(inputs: LossInput, *, coefficient: float) -> tuple[Tensor, dict[str, Tensor]]:
    """-`coefficient` times the aggregated entropy: a bonus. Source: ALGORITHM, section 7."""
    assert inputs.entropy is not None
    return -coefficient * inputs.aggregate(inputs.entropy), {}


def policy_metrics(sums: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Means over tokens of the added-up sums of `clipped_loss`: clip_fraction, dual_clip_fraction, ratio_mean, and the
    KL of the old to the trained policy in nats by the k1 and k3 estimators (kl_k1, kl_k3).

    Raises DataError where there is no token."""
    tokens = float(sums["tokens"])
    if tokens == 0:
        raise DataError("no valid token: the metrics of the policy loss have no value")
    names = {
        "clip_fraction": "clipped",
        "dual_clip_fraction": "dual_clipped",
        "ratio_mean": "ratio",
        "kl_k1": "kl_k1",
        "kl_k3": "kl_k3",
    }
    return {name: float(sums[key]) / tokens for name, key in names.items()}


# --- as functions of arrays ---------------------------------------------------------------------------------------


def policy_loss(
    log_probs: Any,
    old_log_probs: Any,
    advantages: Any,
    response_mask: Any,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    aggregation: Aggregation,
) -> tuple[Any, dict[str, Any]]:
    """`clipped_loss` of tensors or numpy arrays [samples, tokens] (advantages: or [samples]): the loss, of the kind of
    `log_probs`, and its sums over the valid tokens.

    Log-probs in nats; gradients flow through `log_probs` alone. Raises DataError for an unknown aggregation.
    Source: ALGORITHM, section 7.
    """
    mask, given = _tensor(response_mask).bool(), _tensor(advantages)
    spread = given[:, None].expand_as(mask) if given.ndim == 1 else given
    inputs = LossInput(_tensor(log_probs), _tensor(old_log_probs), spread, mask, aggregation)
    loss, sums = clipped_loss(inputs, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return _like(loss, log_probs), {name: _like(value, log_probs) for name, value in sums.items()}


def kl_loss(log_probs: Any, reference_log_probs: Any, response_mask: Any, *, aggregation: Aggregation) -> Any:
    """`reference_loss` of tensors or numpy arrays [samples, tokens], in nats, of the kind of `log_probs`.

    Raises DataError for an unknown aggregation. Source: ALGORITHM, section 7.
    """
    given, mask = _tensor(log_probs), _tensor(response_mask).bool()
    inputs = LossInput(given, given, given, mask, aggregation, reference_log_probs=_tensor(reference_log_probs))
    return _like(reference_loss(inputs)[0], log_probs)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values)


def _like(value: Tensor, source: Any) -> Any:
    return value if isinstance(source, Tensor) else value.numpy()[()]


def _check(aggregation: str) -> None:
    allowed = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
    if aggregation not in allowed:
        raise DataError(f"aggregation: {aggregation!r} is none of {', '.join(allowed)}")
