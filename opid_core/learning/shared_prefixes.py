"""Prefixes that several sequences of a micro-batch share, computed once (`learner.shared_prefixes`).

A step's prompts with and without its skill begin alike, and so do those of a group's first steps. The sequences of a
micro-batch are packed into one row that holds each distinct prefix once; everything that works position by position
(projections, feed-forward networks, norms: nearly all of the time) runs on that row. Attention alone is computed
sequence by sequence, as it is without sharing, so nothing is approximated and no mask is needed: padded to the longest
(sdpa), or, where `is_unpadded` says so, one behind the other without padding (torch's variable-length attention).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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

FLASH_TYPES = (torch.bfloat16, torch.float16)
WIDEST_HEAD, HEAD_STEP = 256, 8
"""What the kernels behind `varlen_attn` take (torch 2.13): these types, heads of 8, 16, ..., 256 features, keys and
values of one width. They check that themselves, but end in an error."""


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
    lengths: Int[np.ndarray, " sequences"]


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
    ids = sequences.padded().ravel()[places]
    return PackedRow(ids, places % max(1, width), paths, places, sequences.lengths)


def batches_of(prompts: Ragged, responses: Ragged, micro_batch_tokens: int, *, shares: bool) -> list[list[int]]:
    """Indices of the sequences (a prompt and its response each) in micro-batches; without sharing see `micro_batches`.

    With it they come in lexicographic order, and a micro-batch holds up to `micro_batch_tokens` tokens of distinct
    prefixes, and no more than twice as many in its sequences padded to their longest, which is what attention sees
    where it pads (elsewhere it sees less; all devices make the same micro-batches). A sequence longer than the budget
    is a micro-batch of its own.
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
    inside = np.arange(packed.paths.shape[1]) < packed.lengths[:, None]
    arrays = {
        "position_ids": packed.positions[None],
        "paths": packed.paths,
        "places": packed.places,
        # the same two without padding, and where each sequence begins and ends
        "joined_paths": packed.paths[inside],
        "joined_places": np.cumsum(inside)[packed.places] - 1,
        "ends": np.concatenate([[0], np.cumsum(packed.lengths)]).astype(np.int32),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def is_unpadded(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether attention to these [..., features] can be torch's variable-length one, which pads nothing: on a GPU that
    has its kernels, in 16 bits, for heads that they take. Elsewhere the sequences are padded."""
    width = query.shape[-1]
    return (
        all(one.dtype in FLASH_TYPES and one.dtype == query.dtype for one in (key, value))
        and width == key.shape[-1] == value.shape[-1] <= WIDEST_HEAD
        and width % HEAD_STEP == 0
        and has_flash(query.device)
    )


@cache
def has_flash(device: torch.device) -> bool:
    """Whether `device` is a GPU with FlashAttention: compute capability 8.0 (A100), and this torch is built with it."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


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
    joined_paths: Int[Tensor, " all_tokens"],
    joined_places: Int[Tensor, " tokens"],
    ends: Int[Tensor, " sequences+1"],
    **settings: Any,
) -> tuple[Float[Tensor, "1 tokens heads features"], None]:
    if attention_mask is not None:
        raise DataError(
            f"learner.shared_prefixes: true: {type(module).__name__} of this policy gives its attention a mask, which "
            "has no meaning for packed sequences; set it to false"
        )

    def by_token(states: Tensor) -> Float[Tensor, "tokens heads features"]:
        return states[0].transpose(0, 1)

    if is_unpadded(query, key, value):
        from torch.nn.attention.varlen import varlen_attn

        queries, keys, values = (by_token(states).index_select(0, joined_paths) for states in (query, key, value))
        longest = paths.shape[1]
        output = varlen_attn(
            queries,
            keys,
            values,
            ends,
            ends,
            longest,
            longest,
            scale=settings.get("scaling"),
            window_size=(-1, 0),  # causal
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(output, Tensor)
        return output.index_select(0, joined_places)[None], None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def padded(states: Tensor) -> Float[Tensor, "sequences heads longest features"]:
        return by_token(states).index_select(0, paths.flatten()).unflatten(0, paths.shape).transpose(1, 2)

    output, _ = sdpa_attention_forward(module, padded(query), padded(key), padded(value), None, **settings)
    return output.flatten(0, 1).index_select(0, places)[None], None
