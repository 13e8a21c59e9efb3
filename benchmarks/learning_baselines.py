"""What `benchmarks.learning_steps` is compared with: the naive padded way, TRL's GRPO trainer, bare matrix products."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import linear

from opid_core.learning.losses import LossInput, clipped_loss
from opid_core.samples import Ragged, Samples

NAIVE_BATCH = 8
"""Samples of one padded batch of the naive way in batches and of TRL (its default)."""
LEARNING_RATE = 1e-6
CLIP = 0.2


# --- the naive padded way ---------------------------------------------------------------------------------------


class PaddedBatch(NamedTuple):
    """Prompts padded at the left, responses at the right, as [samples, tokens]."""

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    response_ids: torch.Tensor
    response_mask: torch.Tensor
    old_log_probs: torch.Tensor
    advantages: torch.Tensor


def padded_batches(samples: Samples, size: int) -> list[PaddedBatch]:
    """In the order given, `size` samples each."""

    def pad(rows: Ragged, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        width = int(rows.lengths.max())
        mask = np.arange(width) < rows.lengths[:, None]
        mask = mask[:, ::-1].copy() if left else mask
        values = np.zeros(mask.shape, rows.values.dtype)
        values[mask] = rows.values
        return torch.from_numpy(values), torch.from_numpy(mask.astype(np.int64))

    batches = []
    for start in range(0, len(samples), size):
        part = samples.select(np.arange(start, min(start + size, len(samples))))
        prompts, responses = pad(part.prompt_ids, left=True), pad(part.response_ids)
        old, advantages = (pad(part.tokens(name))[0] for name in ("old_log_probs", "skill_advantages"))
        (prompt_ids, prompt_mask), (response_ids, response_mask) = prompts, responses
        batches.append(PaddedBatch(prompt_ids.long(), prompt_mask, response_ids.long(), response_mask, old, advantages))
    return batches


def naive_log_probs(model: Any, batch: PaddedBatch, *, entropy: bool) -> torch.Tensor:
    """Log-probs of the responses by way of the logits of every position; also computes the entropies if asked to."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.float()
    distribution = logits[:, :-1].log_softmax(dim=-1)
    log_probs = distribution.gather(-1, ids[:, 1:, None]).squeeze(-1)
    if entropy:
        with torch.no_grad():
            _ = -(distribution.exp() * distribution).sum(dim=-1)
    return log_probs[:, -batch.response_ids.shape[1] :]


def naive_score(model: Any, batches: list[PaddedBatch]) -> list[np.ndarray]:
    with torch.no_grad():
        return unpadded([naive_log_probs(model, batch, entropy=False) for batch in batches], batches)


def naive_update(model: Any, optimizer: torch.optim.Optimizer, batches: list[PaddedBatch]) -> float:
    """One optimizer step; returns the gradient norm."""
    tokens = float(sum(batch.response_mask.sum() for batch in batches))
    optimizer.zero_grad()
    for batch in batches:
        log_probs = naive_log_probs(model, batch, entropy=True)
        inputs = LossInput(
            log_probs=log_probs,
            old_log_probs=batch.old_log_probs,
            advantages=batch.advantages,
            response_mask=batch.response_mask.bool(),
            aggregation="token-mean",
            normalizer=tokens,
        )
        loss, _ = clipped_loss(inputs, clip_low=CLIP, clip_high=CLIP, dual_clip=None)
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(norm)


def unpadded(rows: list[torch.Tensor], batches: list[PaddedBatch]) -> list[np.ndarray]:
    return [
        row[mask.bool()].detach().numpy()
        for values, batch in zip(rows, batches, strict=True)
        for row, mask in zip(values, batch.response_mask, strict=True)
    ]


# --- TRL --------------------------------------------------------------------------------------------------------


class TrlWay:
    """GRPOTrainer's own log-probs and loss on the same padded batches; generation and rewards are left out."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, batches: list[PaddedBatch]) -> None:
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        arguments = GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=NAIVE_BATCH,
            gradient_accumulation_steps=len(batches),
            num_generations=NAIVE_BATCH,
            loss_type="dapo",  # the mean over all tokens of the mini-batch, as ours
            epsilon=CLIP,
            beta=0.0,
            max_completion_length=128,
            learning_rate=LEARNING_RATE,
            report_to="none",
        )
        self._trainer = GRPOTrainer(
            model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["go"] * NAIVE_BATCH * len(batches)}),
            processing_class=tokenizer,
        )
        self._trainer.current_gradient_accumulation_steps = len(batches)
        self._batches = batches
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)

    def score(self) -> list[np.ndarray]:
        rows = []
        with torch.no_grad():
            for batch in self._batches:
                ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
                mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1)
                width = batch.response_ids.shape[1]
                output = self._trainer._get_per_token_logps_and_entropies(self._trainer.model, ids, mask, width)
                rows.append(output[0])
        return unpadded(rows, self._batches)

    def update(self) -> float:
        model: Any = self._trainer.model
        model.train()
        self._optimizer.zero_grad()
        tokens = torch.stack([batch.response_mask.sum() for batch in self._batches]).sum()
        for batch in self._batches:
            inputs = {
                "prompt_ids": batch.prompt_ids,
                "prompt_mask": batch.prompt_mask,
                "completion_ids": batch.response_ids,
                "completion_mask": batch.response_mask,
                "old_per_token_logps": batch.old_log_probs,
                "advantages": batch.advantages,
                "num_items_in_batch": tokens,
            }
            self._trainer.compute_loss(model, inputs).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._optimizer.step()
        return float(norm)


# --- matrix products --------------------------------------------------------------------------------------------


def layer_shapes(model: Any) -> list[tuple[int, int]]:
    """(out, in) of every linear layer inside the blocks."""
    return [(m.out_features, m.in_features) for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]


def forward_operations(model: Any, samples: Samples) -> float:
    """Floating point operations of one forward pass' matrix products that the log-probs of the responses need, without
    any padding: the linear layers on all tokens, but for those that only response tokens need (the output layer, and
    the last layer's after its keys and values were used), causal attention's two products (half of the square)."""
    lengths = (samples.prompt_ids.lengths + samples.response_ids.lengths).tolist()
    responses = len(samples.response_ids.values)
    config, last = model.config, model.base_model.layers[-1]
    linears = sum(out * inner for out, inner in layer_shapes(model))
    read = last.self_attn.o_proj.weight.numel() + sum(p.numel() for p in last.mlp.parameters())
    attention = config.num_hidden_layers * config.hidden_size * sum(n * (n + 1) for n in lengths)
    output = model.lm_head.weight.numel()
    return 2.0 * ((linears - read) * sum(lengths) + (read + output) * responses + attention)


def product_operands(model: Any, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(input [tokens, in], weight [out, in], output gradient [tokens, out]) of every linear layer of the model."""
    shapes = [*layer_shapes(model), tuple(model.lm_head.weight.shape)]
    operands = {
        (out, inner): (torch.randn(tokens, inner), torch.randn(out, inner), torch.randn(tokens, out))
        for out, inner in shapes
    }
    return [operands[shape] for shape in shapes]


def products(operands: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], backward: bool) -> None:
    for inputs, weight, gradient in operands:
        linear(inputs, weight)
        if backward:
            torch.matmul(gradient, weight)
            torch.matmul(gradient.T, inputs)
