"""Log-probs of given tokens under a policy: for old, skill and reference log-probs, and inside the update.

One path for all of them (ALGORITHM, sections 1 and 5): sequences sorted by length, right-padded, no attention mask
(with causal attention no position sees the padding after it), the output layer, and what can be of the last layer, on
response positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opid_core.config import LearnerConfig
from opid_core.errors import DataError
from opid_core.learning.last_layer import last_layer_only_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and the response to be scored, as token ids."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def micro_batches(lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """Indices of `lengths`, longest first, in batches whose padded size (sequences x longest) fits the token budget.

    A sequence longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= micro_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class ResponseScorer(torch.nn.Module):
    """A causal language model of transformers as a function of token sequences: what DeepSpeed wraps."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, sequences: Sequence[TokenSequence], entropy: bool = False
    ) -> tuple[Float[Tensor, "samples tokens"], Float[Tensor, "samples tokens"] | None]:
        """Log-probs and, if asked for, entropies (no gradient) of the response tokens: nats, float32, temperature 1.

        Rows are padded with 0 at the right to the longest response. Raises DataError for an empty prompt: the first
        response token would have no distribution.
        """
        if any(len(sequence.prompt_ids) == 0 for sequence in sequences):
            raise DataError("a prompt without tokens cannot be scored")
        device = self.policy.device
        longest = max(len(sequence) for sequence in sequences)
        width = max(len(sequence.response_ids) for sequence in sequences)
        ids = np.zeros((len(sequences), longest), np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence.prompt_ids)] = sequence.prompt_ids
            ids[row, len(sequence.prompt_ids) : len(sequence)] = sequence.response_ids
        mask = response_mask(sequences)
        rows, columns = np.nonzero(mask)
        # A token is predicted one position before its own.
        positions = np.array([len(sequence.prompt_ids) for sequence in sequences])[rows] + columns - 1
        targets = torch.from_numpy(ids[rows, positions + 1]).to(device)
        reads = torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device)
        with last_layer_only_at(self.policy, *reads):
            output = self.policy.base_model(input_ids=torch.from_numpy(ids).to(device), use_cache=False)
        output_layer = self.policy.get_output_embeddings()
        assert output_layer is not None
        logits = output_layer(output.last_hidden_state[reads]).float()
        distribution = logits.log_softmax(dim=-1)
        at = torch.from_numpy(mask).to(device)
        empty = torch.zeros((len(sequences), width), dtype=torch.float32, device=device)
        log_probs = empty.masked_scatter(at, distribution.gather(-1, targets[:, None]).squeeze(-1))
        if not entropy:
            return log_probs, None
        with torch.no_grad():
            return log_probs, empty.masked_scatter(at, -(distribution.exp() * distribution).sum(dim=-1))


def response_mask(sequences: Sequence[TokenSequence]) -> np.ndarray:
    """Which entries of [samples, tokens] belong to a response."""
    lengths = np.array([len(sequence.response_ids) for sequence in sequences])
    return np.arange(lengths.max()) < lengths[:, None]


def score(
    model: PreTrainedModel | ResponseScorer, sequences: Sequence[TokenSequence], *, micro_batch_tokens: int
) -> list[np.ndarray]:
    """Log-probs (float32, nats, temperature 1) of each sequence's response tokens, in the order given.

    `model`: a causal language model, or what wraps one in `ResponseScorer`'s form. Values do not depend on the
    micro-batches beyond float error. Raises DataError for an empty prompt.
    """
    scorer = model if hasattr(model, "module") or isinstance(model, ResponseScorer) else ResponseScorer(model)
    was_training = scorer.training
    scorer.eval()
    scores = [np.zeros(0, np.float32)] * len(sequences)
    with torch.no_grad():
        for batch in micro_batches([len(sequence) for sequence in sequences], micro_batch_tokens):
            log_probs, _ = scorer([sequences[index] for index in batch])
            values = log_probs.cpu().numpy()
            for row, index in enumerate(batch):
                scores[index] = values[row, : len(sequences[index].response_ids)].copy()
    scorer.train(was_training)
    return scores


def frozen_policy(folder: str | Path, config: LearnerConfig) -> PreTrainedModel:
    """The policy in an HF folder, on this process's device, for scoring alone: the reference of the KL term."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, config.dtype))
    policy.to(device)  # pyright: ignore[reportArgumentType]
    return policy.requires_grad_(False)
