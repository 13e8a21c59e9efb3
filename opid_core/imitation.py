"""Supervised training of a policy on (prompt, response) pairs: the inner loop of the warm start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opid_core.config import WarmStartConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Demonstration:
    """One decision to imitate: token ids of the prompt and of the response, its end token included."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]


def train(
    model: torch.nn.Module,
    demonstrations: Sequence[Demonstration],
    config: WarmStartConfig,
    *,
    seed: int,
    pad_id: int,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> float:
    """Train `model` in place with AdamW (linear warm-up, cosine decay) and return the last running loss (nats a token).

    Loss: cross-entropy of response tokens plus `prompt_loss_weight` times that of prompt tokens, each averaged over its
    own tokens of the batch. `on_step(step, steps, loss)` reports progress.
    """
    import numpy as np
    import torch

    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    generator = np.random.default_rng(seed)
    steps = config.epochs * math.ceil(len(demonstrations) / config.batch_size)
    warm_up = max(1, min(200, steps // 20))
    started_s, running, step = time.monotonic(), math.nan, 0
    model.train()
    for _ in range(config.epochs):
        for indices in _batches(demonstrations, config.batch_size, generator):
            progress = step / steps
            if config.seconds is not None:
                progress = max(progress, (time.monotonic() - started_s) / config.seconds)
            if progress >= 1:
                return running
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (step + 1) / warm_up) * decay
            loss = _loss(model, [demonstrations[i] for i in indices], config.prompt_loss_weight, pad_id, device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == steps:
                value = loss.item()
                running = value if math.isnan(running) else 0.8 * running + 0.2 * value
                on_step(step, steps, running)
    return running


def _batches(demonstrations: Sequence[Demonstration], batch_size: int, generator):
    """Shuffled batches of similar length: shuffled, sorted inside pools of 50 batches, batches shuffled again."""
    order = generator.permutation(len(demonstrations))
    pool_size = 50 * batch_size
    for start in range(0, len(order), pool_size):
        pool = sorted(
            order[start : start + pool_size],
            key=lambda i: len(demonstrations[i].prompt_ids) + len(demonstrations[i].response_ids),
        )
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        generator.shuffle(batches)
        yield from batches


def _loss(model, batch: Sequence[Demonstration], prompt_weight: float, pad_id: int, device) -> torch.Tensor:
    import torch
    import torch.nn.functional as functional

    length = max(len(d.prompt_ids) + len(d.response_ids) for d in batch)
    ids = torch.full((len(batch), length), pad_id)
    response_mask, prompt_mask = torch.zeros(2, len(batch), length)
    for row, demonstration in enumerate(batch):
        prompt, total = len(demonstration.prompt_ids), len(demonstration.prompt_ids) + len(demonstration.response_ids)
        ids[row, :total] = torch.tensor([*demonstration.prompt_ids, *demonstration.response_ids])
        prompt_mask[row, 1:prompt] = 1
        response_mask[row, prompt:total] = 1
    ids, response_mask, prompt_mask = (t.to(device) for t in (ids, response_mask, prompt_mask))
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(batch), -1)
    weights = (response_mask / response_mask.sum() + prompt_weight * prompt_mask / prompt_mask.sum())[:, 1:]
    return (losses * weights).sum()
