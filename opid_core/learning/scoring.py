"""Log-probs of given tokens under a policy: for old, skill and reference log-probs, and inside the update.

One path for all of them (ALGORITHM, sections 1 and 5): sequences sorted by length, right-padded, no attention mask
(with causal attention no position sees the padding after it), the output layer, and what can be of the last layer, on
response positions only. With `learner.shared_prefixes` they are packed instead, each common prefix once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from opid_core.config import LearnerConfig
from opid_core.errors import DataError
from opid_core.learning.last_layer import log_probs_at
from opid_core.learning.shared_prefixes import ATTENTION, batches_of, inputs_for, joined, pack, share_prefixes
from opid_core.policies import load_model
from opid_core.samples import Ragged

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ResponseScorer(torch.nn.Module):
    """A causal language model of transformers as a function of prompts and responses: what DeepSpeed wraps."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy

    @property
    def shares_prefixes(self) -> bool:
        """Whether prefixes that sequences share are computed once (`shared_prefixes.share_prefixes`)."""
        return self.policy.config._attn_implementation == ATTENTION

    def forward(
        self, prompts: Ragged, responses: Ragged, entropy: bool = False, train_entropy: bool = False
    ) -> tuple[Float[Tensor, "samples tokens"], Float[Tensor, "samples tokens"] | None]:
        """Log-probs and, if asked for, entropies of the response tokens: nats, float32, temperature 1. Gradients flow
        through the entropies only if they are trained.

        Rows are padded with 0 at the right to the longest response. Raises DataError for an empty prompt: the first
        response token would have no distribution.
        """
        if not prompts.lengths.all():
            raise DataError("a prompt without tokens cannot be scored")
        device = self.policy.device
        mask = response_mask(responses)
        sequences = joined(prompts, responses)
        rows, columns = np.nonzero(mask)
        # A token is predicted one position before its own.
        positions = prompts.lengths[rows] + columns - 1
        inputs: dict[str, Tensor] = {}
        if self.shares_prefixes:
            packed = pack(sequences)
            ids, rows, positions = packed.ids[None], np.zeros_like(rows), packed.paths[rows, positions]
            inputs = inputs_for(packed, device)
        else:
            ids = sequences.padded()
        targets = torch.from_numpy(responses.values.astype(np.int64)).to(device)
        reads = torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device)
        # 22% of the CPU time of scoring with the quickstart's policy (2 layers, 330 to 470 prompt tokens, 30 read)
        whole = torch.from_numpy(ids.astype(np.int64)).to(device)
        log_probs, entropies = log_probs_at(
            self.policy, whole, *reads, targets, entropy=entropy, train_entropy=train_entropy, **inputs
        )
        at = torch.from_numpy(mask).to(device)
        empty = torch.zeros(mask.shape, dtype=torch.float32, device=device)
        padded = empty.masked_scatter(at, log_probs)
        return padded, None if entropies is None else empty.masked_scatter(at, entropies)


def response_mask(responses: Ragged) -> Bool[np.ndarray, "samples tokens"]:
    """Which entries of [samples, tokens], as wide as the longest response, belong to a response."""
    return np.arange(responses.lengths.max(initial=0)) < responses.lengths[:, None]


def score(
    model: PreTrainedModel | ResponseScorer, prompts: Ragged, responses: Ragged, *, micro_batch_tokens: int
) -> Ragged:
    """Log-probs (float32, nats, temperature 1) of the tokens of `responses`, row by row.

    `model`: a causal language model, or what wraps one in `ResponseScorer`'s form. Values do not depend on the
    micro-batches beyond float error. Raises DataError for an empty prompt.
    """
    scorer = model if hasattr(model, "module") or isinstance(model, ResponseScorer) else ResponseScorer(model)
    was_training = model.training  # a new wrapper's own says nothing of the model's
    scorer.eval()
    scores = Ragged(np.zeros(len(responses.values), np.float32), responses.offsets)
    with torch.no_grad():
        shares = getattr(scorer, "module", scorer).shares_prefixes  # DeepSpeed's engine wraps it
        for batch in batches_of(prompts, responses, micro_batch_tokens, shares=shares):
            rows = np.array(batch)
            log_probs, _ = scorer(prompts.take(rows), responses.take(rows))
            for index, values in zip(batch, log_probs.cpu().numpy(), strict=True):
                scores[index][:] = values[: responses.lengths[index]]
    scorer.train(was_training)
    return scores


def frozen_policy(folder: str | Path, config: LearnerConfig) -> PreTrainedModel:
    """The policy in an HF folder, on this process's device, for scoring alone: the reference of the KL term."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_model(folder, getattr(torch, config.dtype), use_safetensors=True).to(device)
    if config.shared_prefixes:
        share_prefixes(policy)
    return policy.requires_grad_(False)
