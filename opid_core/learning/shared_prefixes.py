"""Prefixes that several sequences of a micro-batch share, computed once (`learner.shared_prefixes`).

A step's prompts with and without its skill begin alike, and so do those of a group's first steps. The sequences of a
micro-batch are packed into one row that holds each distinct prefix once; everything that works position by position
(projections, feed-forward networks, norms: nearly all of the time) runs on that row. Attention alone is computed
sequence by sequence, as it is without sharing, so nothing is approximated and no mask is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from opid_core.architectures import check_sharing
from opid_core.errors import DataError
from opid_core.samples import Ragged, micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "opid_shared_prefixes"
"""The name of the attention function among those of transformers."""


@dataclass(frozen=True)
class PackedRow:
    """Sequences as one row of tokens in which a prefix that a sequence shares with the one before it stands once."""

    ids: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, " tokens"]
    """In the sequence that the token is of."""
    paths: Int[np.ndarray, "sequences longest"]
    """Where in `ids` the tokens of each sequence stand; 0 behind its end."""
    places: Int[np.ndarray, " tokens"]
    """Where in `paths`, flat, each token stands first."""


def pack(sequences: Ragged) -> PackedRow:
    """`sequences` packed. In lexicographic order, as `batches_of` gives them, each distinct prefix stands once."""
    width = int(sequences.lengths.max(initial=0))
    shared = _shared_with_the_one_before(sequences)
    columns = np.arange(width)
    is_new = (columns >= shared[:, None]) & (columns < sequences.lengths[:, None])
    places = np.flatnonzero(is_new)
    paths = np.zeros(is_new.shape, np.int64)
    paths.flat[places] = np.arange(len(places))
    for row in range(1, len(sequences)):
        paths[row, : shared[row]] = paths[row - 1, : shared[row]]
    return PackedRow(sequences.padded().ravel()[places], places % max(1, width), paths, places)


def batches_of(prompts: Ragged, responses: Ragged, micro_batch_tokens: int, *, shares: bool) -> list[list[int]]:
    """Indices of the sequences (a prompt and its response each) in micro-batches; without sharing see `micro_batches`.

    With it they come in lexicographic order, and a micro-batch holds up to `micro_batch_tokens` tokens of distinct
    prefixes, and no more than twice as many in its sequences padded to their longest, which is what attention sees. A
    sequence longer than the budget is a micro-batch of its own.
    """
    if not shares:
        return micro_batches(prompts.lengths + responses.lengths, micro_batch_tokens)
    sequences = joined(prompts, responses)
    # Of big-endian numbers without signs the order of the bytes is that of the numbers.
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(keys)), key=lambda row: (keys[row], row))
    lengths = sequences.lengths[order]
    shared = _shared_with_the_one_before(sequences.take(np.array(order, np.int64)))
    batches: list[list[int]] = []
    tokens = longest = 0
    for row, length, known in zip(order, lengths.tolist(), shared.tolist(), strict=True):
        tokens, longest = tokens + length - known, max(longest, length)
        fits = tokens <= micro_batch_tokens and (
            not batches or (len(batches[-1]) + 1) * longest <= 2 * micro_batch_tokens
        )
        if batches and fits:
            batches[-1].append(row)
        else:
            batches.append([row])
            tokens = longest = length
    return batches


def joined(prompts: Ragged, responses: Ragged) -> Ragged:
    """Each prompt with its response behind it."""
    rows = [part for pair in zip(prompts, responses, strict=True) for part in pair]
    values = np.concatenate(rows) if rows else prompts.values
    return Ragged.from_lengths(values, prompts.lengths + responses.lengths)


def share_prefixes(policy: PreTrainedModel) -> None:
    """From now on `policy` is asked with `inputs_for` a packed row alone. Raises ConfigError for an architecture that
    cannot be."""
    from transformers import AttentionInterface

    check_sharing(policy.config)
    AttentionInterface.register(ATTENTION, _attention)
    policy.set_attn_implementation(ATTENTION)


def inputs_for(packed: PackedRow, device: torch.device) -> dict[str, Tensor]:
    """What the forward pass of a policy that shares prefixes takes beside `input_ids`."""
    return {
        "position_ids": torch.from_numpy(packed.positions)[None].to(device),
        "paths": torch.from_numpy(packed.paths).to(device),
        "places": torch.from_numpy(packed.places).to(device),
    }


def _shared_with_the_one_before(sequences: Ragged) -> Int[np.ndarray, " sequences"]:
    shared = np.zeros(len(sequences), np.int64)
    for row in range(1, len(sequences)):
        before, sequence = sequences[row - 1], sequences[row]
        both = min(len(before), len(sequence))
        differ = np.flatnonzero(before[:both] != sequence[:both])
        shared[row] = differ[0] if len(differ) else both
    return shared


def _attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads tokens features"],
    key: Float[Tensor, "1 key_heads tokens features"],
    value: Float[Tensor, "1 key_heads tokens features"],
    attention_mask: Tensor | None,
    *,
    paths: Int[Tensor, "sequences longest"],
    places: Int[Tensor, " tokens"],
    **settings: Any,
) -> tuple[Float[Tensor, "1 tokens heads features"], None]:
    if attention_mask is not None:
        raise DataError(
            f"learner.shared_prefixes: true: {type(module).__name__} of this policy gives its attention a mask, which "
            "has no meaning for packed sequences; set it to false"
        )
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def spread(states: Tensor) -> Float[Tensor, "sequences heads longest features"]:
        by_token = states[0].transpose(0, 1)
        return by_token.index_select(0, paths.flatten()).unflatten(0, paths.shape).transpose(1, 2)

    output, _ = sdpa_attention_forward(module, spread(query), spread(key), spread(value), None, **settings)
    return output.flatten(0, 1).index_select(0, places)[None], None
