"""The objective (ALGORITHM, sections 7 and 8): clipped policy loss, k3 KL, distillation losses, and their aggregation
over a mini-batch.

A micro-batch's loss is its share of the mini-batch's: give every part the mini-batch's `normalizer` and add them up,
and loss and gradient are the same whatever the split over micro-batches or ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opid_core.errors import DataError

Aggregation = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"]

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped here before exp: beyond it every term is clipped anyway, and exp would overflow into NaN
gradients."""
K3_LIMIT = 10.0


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


def policy_loss(
    log_probs: Float[Tensor, "samples tokens"],
    old_log_probs: Float[Tensor, "samples tokens"],
    advantages: Float[Tensor, "samples tokens"] | Float[Tensor, " samples"],
    response_mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    aggregation: Aggregation,
    normalizer: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The PPO loss with clipping to [1 - clip_low, 1 + clip_high] and dual clip, and sums for its metrics.

    Log-probs in nats; gradients flow through `log_probs` alone. For negative advantages the loss is at most
    dual_clip * |advantage| (None: no dual clip). The metrics are detached sums over the valid tokens, to be added up
    over micro-batches and ranks and given to `policy_metrics`. Source: ALGORITHM, section 7.
    """
    mask = response_mask.bool()
    advantages = advantages.detach()
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand_as(log_probs)
    advantages = torch.where(mask, advantages, 0.0)
    log_ratio = torch.where(mask, log_probs - old_log_probs.detach(), 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(plain, clipped)
    is_dual = torch.zeros_like(mask)
    if dual_clip is not None:
        bound = -advantages * dual_clip
        is_dual = (advantages < 0) & (losses > bound)
        losses = torch.where(advantages < 0, torch.minimum(losses, bound), losses)
    with torch.no_grad():
        sums = {
            "tokens": mask.sum(),
            "clipped": ((clipped > plain) & mask).sum(),
            "dual_clipped": (is_dual & mask).sum(),
            "ratio": torch.where(mask, ratio, 0.0).sum(),
            "kl_k1": -log_ratio.sum(),
            "kl_k3": (ratio - log_ratio - 1).sum(),
        }
    return aggregate(losses, mask, aggregation, normalizer), {k: v.detach() for k, v in sums.items()}


def policy_metrics(sums: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Means over tokens of the added-up sums of `policy_loss`: clip_fraction, dual_clip_fraction, ratio_mean, and the
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


def kl_loss(
    log_probs: Float[Tensor, "samples tokens"],
    reference_log_probs: Float[Tensor, "samples tokens"],
    response_mask: Tensor,
    *,
    aggregation: Aggregation,
    normalizer: float | None = None,
) -> Float[Tensor, ""]:
    """Aggregated k3(log pi_ref - log pi) in nats, each token clamped to [-10, 10]; k3(x) = exp(x) - x - 1.

    Source: ALGORITHM, section 7.
    """
    mask = response_mask.bool()
    x = torch.where(mask, reference_log_probs.detach() - log_probs, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    k3 = (x.exp() - x - 1).clamp(-K3_LIMIT, K3_LIMIT)
    return aggregate(k3, mask, aggregation, normalizer)


def gated_distillation_loss(
    log_probs: Float[Tensor, "samples tokens"],
    skill_log_probs: Float[Tensor, "samples tokens"],
    response_mask: Tensor,
    with_skill: Bool[Tensor, " samples"],
    *,
    gate_beta: float,
    aggregation: Aggregation,
    normalizer: float | None = None,
) -> Float[Tensor, ""]:
    """Aggregated stop_gradient(sigmoid(gate_beta * d)) * d, d = log pi_T - log pi in nats: its gradient raises the
    sampled tokens, those most that the skill favours.

    A sample without a skill adds 0, whatever `skill_log_probs` holds there, and counts in the denominator as in the
    policy loss. Source: ALGORITHM, section 8 (opsd, grpo_opsd, sdar).
    """
    carries = response_mask.bool() & with_skill[:, None]
    difference = torch.where(carries, skill_log_probs.detach() - log_probs, 0.0)
    gate = torch.sigmoid(gate_beta * difference.detach())
    return aggregate(gate * difference, response_mask, aggregation, normalizer)


def ratio_k3_distillation_loss(
    log_probs: Float[Tensor, "samples tokens"],
    old_log_probs: Float[Tensor, "samples tokens"],
    skill_log_probs: Float[Tensor, "samples tokens"],
    response_mask: Tensor,
    with_skill: Bool[Tensor, " samples"],
    *,
    aggregation: Aggregation,
    normalizer: float | None = None,
) -> Float[Tensor, ""]:
    """Aggregated ratio * k3 in nats, ratio = pi / pi_old, k3 = exp(-l) - 1 + l, l = log pi - log pi_T.

    Gradients flow through both factors: in expectation over the old policy's tokens, value and gradient are those of
    KL(pi || pi_T). Samples without a skill as in `gated_distillation_loss`. Source: ALGORITHM, section 8 (skill_sd).
    """
    carries = response_mask.bool() & with_skill[:, None]

    def difference(other: Tensor) -> Tensor:
        return torch.where(carries, log_probs - other.detach(), 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    away = difference(skill_log_probs)
    losses = difference(old_log_probs).exp() * ((-away).exp() - 1 + away)
    return aggregate(losses, response_mask, aggregation, normalizer)


def _check(aggregation: str) -> None:
    allowed = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
    if aggregation not in allowed:
        raise DataError(f"aggregation: {aggregation!r} is none of {', '.join(allowed)}")
