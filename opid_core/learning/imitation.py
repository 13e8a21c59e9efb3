"""Imitation of demonstrations, with what they share computed once.

The prompts of one moment differ in little: a step skill stands near the end, and without one there are still several
responses to the same prompt. Such demonstrations become one sequence: the beginning that they share, then a branch for
each, which sees the beginning and itself. The loss of a response is what it is alone (positions included); the tokens
that are shared count once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int

from opid_core.config import WarmStartConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

SHARED = 0.75
"""A demonstration joins the one before it if so much of that one's prompt is its own beginning too."""


@dataclass(frozen=True)
class Demonstration:
    """One decision to imitate: token ids of the prompt and of the response, its end token included."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]


@dataclass(frozen=True)
class Packed:
    """A batch of sequences with branches; `predicted` lists the tokens whose loss counts by (row, column before)."""

    ids: Int[Tensor, "sequences tokens"]
    positions: Int[Tensor, "sequences tokens"]
    mask: Bool[Tensor, "sequences 1 tokens tokens"]
    """Whether the token of the third axis sees that of the fourth."""
    predicted: Int[Tensor, "2 predictions"]
    targets: Int[Tensor, " predictions"]
    is_response: Bool[Tensor, " predictions"]


def branches(demonstrations: Sequence[Demonstration]) -> list[list[Demonstration]]:
    """Neighbours whose prompts begin alike together, in their order."""
    together: list[list[Demonstration]] = []
    for one in demonstrations:
        first = together[-1][0].prompt_ids if together else []
        if first and _shared([first, one.prompt_ids]) >= SHARED * len(first):
            together[-1].append(one)
        else:
            together.append([one])
    return together


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    return sum(1 for _ in itertools.takewhile(lambda tokens: len({*tokens}) == 1, zip(*prompts, strict=False)))


def pack(batch: Sequence[Sequence[Demonstration]], pad_id: int, *, prompts: bool = True) -> Packed:
    """The sequences of `batch`, each a list of demonstrations that begin alike; tokens of `prompts` are predicted too,
    or only those of responses."""
    import torch

    ids, positions, segments = [], [], []
    rows, columns, targets, is_response = [], [], [], []
    for row, together in enumerate(batch):
        # The last prompt token stays in the branch: it predicts the response's first.
        most = min(len(one.prompt_ids) for one in together) - 1
        begin = _shared([one.prompt_ids[:most] for one in together])
        of_row = list(together[0].prompt_ids[:begin])
        at, branch = list(range(begin)), [0] * begin
        rows += [row] * max(0, begin - 1)
        columns += range(begin - 1)
        targets += of_row[1:]
        is_response += [False] * max(0, begin - 1)
        for number, one in enumerate(together, start=1):
            tokens = [*one.prompt_ids[begin:], *one.response_ids]
            before = [begin - 1] if begin else []
            before += range(len(of_row), len(of_row) + len(tokens) - 1)
            rows += [row] * len(before)
            columns += before
            targets += tokens[-len(before) :]
            is_response += [False] * (len(before) - len(one.response_ids)) + [True] * len(one.response_ids)
            of_row += tokens
            at += range(begin, begin + len(tokens))
            branch += [number] * len(tokens)
        ids.append(of_row)
        positions.append(at)
        segments.append(branch)
    length = max(map(len, ids))
    if not prompts:
        rows, columns, targets = (list(itertools.compress(one, is_response)) for one in (rows, columns, targets))
        is_response = [True] * len(rows)

    def padded(values: Sequence[Sequence[int]], filler: int) -> Tensor:
        return torch.tensor([[*row, *[filler] * (length - len(row))] for row in values])

    segment = padded(segments, -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    sees = causal & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    return Packed(
        ids=padded(ids, pad_id),
        positions=padded(positions, 0),
        mask=sees[:, None],
        predicted=torch.tensor([rows, columns]),
        targets=torch.tensor(targets),
        is_response=torch.tensor(is_response),
    )


def imitate(
    model: torch.nn.Module,
    demonstrations: Sequence[Demonstration],
    config: WarmStartConfig,
    *,
    seed: int,
    pad_id: int,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float:
    """Train `model` in place with AdamW (linear warm-up, cosine decay) and return the last running loss (nats a token).

    A step takes `batch_size` sequences, each of neighbouring demonstrations that begin alike. Loss: cross-entropy of
    response tokens plus `prompt_loss_weight` times that of prompt tokens, each averaged over its own tokens of the
    batch. `on_step(step, steps, loss)` reports progress.
    """
    import numpy as np
    import torch

    sequences = branches(demonstrations)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    generator = np.random.default_rng(seed)
    steps = config.epochs * math.ceil(len(sequences) / config.batch_size)
    warm_up, reported = max(1, min(200, steps // 20)), max(1, min(50, steps // 20))
    started_s, running, step = time.monotonic(), math.nan, 0
    model.train()
    for _ in range(config.epochs):
        for indices in _batches(sequences, config.batch_size, generator):
            progress = step / steps
            if config.seconds is not None:
                progress = max(progress, (time.monotonic() - started_s) / config.seconds)
            if progress >= 1:
                return running
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (step + 1) / warm_up) * decay
            weight = config.prompt_loss_weight
            packed = pack([sequences[i] for i in indices], pad_id, prompts=weight > 0)
            losses, is_response = _losses(model, packed, device)
            loss = losses[is_response].mean()
            if weight > 0:
                loss = loss + weight * losses[~is_response].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % reported == 0 or step == steps:
                value = loss.item()
                running = value if math.isnan(running) else 0.8 * running + 0.2 * value
                on_step(step, steps, running)
    return running


def _batches(
    sequences: Sequence[Sequence[Demonstration]], batch_size: int, generator: np.random.Generator
) -> Iterator[Sequence[int]]:
    """Shuffled batches of similar length: shuffled, sorted inside pools of 50 batches, batches shuffled again."""
    order = generator.permutation(len(sequences))
    pool_size = 50 * batch_size
    lengths = [sum(len(one.prompt_ids) + len(one.response_ids) for one in together) for together in sequences]
    for start in range(0, len(order), pool_size):
        pool = sorted(order[start : start + pool_size], key=lengths.__getitem__)
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        generator.shuffle(batches)
        yield from batches


def _losses(
    model: torch.nn.Module, packed: Packed, device: torch.device
) -> tuple[Float[Tensor, " predictions"], Bool[Tensor, " predictions"]]:
    """Cross-entropy (nats) of each predicted token, and whether it is a response's."""
    import torch.nn.functional as functional

    ids, positions, mask = (t.to(device) for t in (packed.ids, packed.positions, packed.mask))
    row, column = packed.predicted.to(device)
    kept = {}
    if packed.is_response.all():  # a pretrained model's vocabulary takes longer than its layers
        at, column = column.unique(return_inverse=True)
        kept = {"logits_to_keep": at}
    logits = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, **kept).logits.float()
    # logits[row, column] adds the gradients of a token that several branches follow in the order in which threads come.
    read = logits.flatten(0, 1).index_select(0, row * logits.shape[1] + column)
    losses = functional.cross_entropy(read, packed.targets.to(device), reduction="none")
    return losses, packed.is_response.to(device)
