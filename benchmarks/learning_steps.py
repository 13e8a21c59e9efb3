"""Speed of the learning steps beside the naive padded way, TRL's GRPO trainer and the machine's matrix products.

    pip install --no-deps trl==1.16.0 accelerate datasets dill multiprocess xxhash
    python -m benchmarks.learning_steps --out table.md

One batch and one set of random weights (about 25M parameters, float32, untied) for everybody; each repetition times
every way once, one after the other, so that other load on the machine meets all of them. Ratios are medians over the
repetitions of that repetition's ratio. Writes a Markdown table. TRL is used by nothing else.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import linear

from infra.scratch import scratch_folder
from opid_core.advantages import outcome_advantages, skill_advantages, state_advantages
from opid_core.config import LearnerConfig
from opid_core.learner import Learner, TrainingSample
from opid_core.losses import policy_loss
from opid_core.models import make_tiny_policy
from opid_core.routing import critical_steps
from opid_core.scoring import TokenSequence, score
from tests.tiny_policy import make_tokenizer

NAIVE_BATCH = 8
"""Samples of one padded batch of the naive way and of TRL (its default)."""
LEARNING_RATE = 1e-6
CLIP = 0.2


class Timing(NamedTuple):
    """Of one call: seconds by the clock, and of the processor over all threads (which other load hardly changes)."""

    wall_s: float
    cpu_s: float


Timings = dict[str, list[Timing]]


def make_samples(count: int, vocabulary: int) -> list[TrainingSample]:
    """Agent-like lengths: prompts of 330 to 930 tokens, responses of 20 to 100."""
    generator = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return generator.integers(5, vocabulary, int(generator.integers(low, high + 1))).tolist()

    pairs = [(tokens(330, 930), tokens(20, 100)) for _ in range(count)]
    return [
        TrainingSample(
            prompt, response, np.zeros(len(response), np.float32), None, generator.normal(size=len(response))
        )
        for prompt, response in pairs
    ]


# --- the naive padded way ---------------------------------------------------------------------------------------


class PaddedBatch(NamedTuple):
    """Prompts padded at the left, responses at the right, as [samples, tokens]."""

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    response_ids: torch.Tensor
    response_mask: torch.Tensor
    old_log_probs: torch.Tensor
    advantages: torch.Tensor


def padded_batches(samples: list[TrainingSample]) -> list[PaddedBatch]:
    """In the order given, `NAIVE_BATCH` samples each."""

    def pad(rows: list[Any], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        values = np.zeros((len(rows), width), np.asarray(rows[0]).dtype)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            where = slice(width - len(row), None) if left else slice(len(row))
            values[i, where], mask[i, where] = row, 1
        return torch.from_numpy(values), torch.from_numpy(mask)

    batches = []
    for start in range(0, len(samples), NAIVE_BATCH):
        part = samples[start : start + NAIVE_BATCH]
        prompts, responses = pad([s.prompt_ids for s in part], left=True), pad([s.response_ids for s in part])
        old, _ = pad([s.old_log_probs for s in part])
        advantages, _ = pad([s.advantages for s in part])
        batches.append(PaddedBatch(*prompts, *responses, old.float(), advantages.float()))
    return batches


def naive_log_probs(model: Any, batch: PaddedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the responses by way of the logits of every position."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.float()
    distribution = logits[:, :-1].log_softmax(dim=-1)
    log_probs = distribution.gather(-1, ids[:, 1:, None]).squeeze(-1)
    with torch.no_grad():
        entropies = -(distribution.exp() * distribution).sum(dim=-1)
    width = batch.response_ids.shape[1]
    return log_probs[:, -width:], entropies[:, -width:]


def naive_score(model: Any, batches: list[PaddedBatch]) -> list[np.ndarray]:
    with torch.no_grad():
        return unpadded([naive_log_probs(model, batch)[0] for batch in batches], batches)


def naive_update(model: Any, optimizer: torch.optim.Optimizer, batches: list[PaddedBatch]) -> float:
    """One optimizer step; returns the gradient norm."""
    tokens = float(sum(batch.response_mask.sum() for batch in batches))
    optimizer.zero_grad()
    for batch in batches:
        log_probs, _ = naive_log_probs(model, batch)
        loss, _ = policy_loss(
            log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.response_mask,
            clip_low=CLIP,
            clip_high=CLIP,
            dual_clip=None,
            aggregation="token-mean",
            normalizer=tokens,
        )
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
        from datasets import Dataset  # pyright: ignore[reportMissingImports]
        from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

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
                found = self._trainer._get_per_token_logps_and_entropies(self._trainer.model, ids, mask, width)
                rows.append(found[0])
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


def forward_operations(model: Any, samples: list[TrainingSample]) -> float:
    """Floating point operations of one forward pass' matrix products without any padding: the linear layers on all
    tokens, the output layer on response tokens, causal attention's two products (half of the square)."""
    lengths = [len(s.prompt_ids) + len(s.response_ids) for s in samples]
    linears = sum(out * inner for out, inner in layer_shapes(model))
    output = model.lm_head.weight.numel() * sum(len(s.response_ids) for s in samples)
    config = model.config
    attention = config.num_hidden_layers * config.hidden_size * sum(n * (n + 1) for n in lengths)
    return 2.0 * (linears * sum(lengths) + output + attention)


def product_operands(model: Any, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(input [tokens, in], weight [out, in], output gradient [tokens, out]) of every linear layer of the model."""
    shapes = [*layer_shapes(model), tuple(model.lm_head.weight.shape)]
    made = {
        (out, inner): (torch.randn(tokens, inner), torch.randn(out, inner), torch.randn(tokens, out))
        for out, inner in shapes
    }
    return [made[shape] for shape in shapes]


def products(operands: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], backward: bool) -> None:
    for inputs, weight, gradient in operands:
        linear(inputs, weight)
        if backward:
            torch.matmul(gradient, weight)
            torch.matmul(gradient.T, inputs)


# --- advantages -------------------------------------------------------------------------------------------------


def advantage_calls(count: int) -> dict[str, Callable[[], Any]]:
    """Each advantage on `count` step samples: groups of 8 trajectories of up to 30 steps, states of some 300 letters
    that recur, responses of up to 40 tokens."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(5, 31, count)
    trajectories = np.repeat(np.arange(count), lengths)[:count].tolist()
    group_ids = [f"group-{trajectory // 8}" for trajectory in trajectories]
    trajectory_ids = [f"trajectory-{trajectory}" for trajectory in trajectories]
    states = [
        f"{group_id}: you are in room {room}. ".ljust(300, "x")
        for group_id, room in zip(group_ids, generator.integers(0, 40, count), strict=True)
    ]
    returns = generator.random(count).astype(np.float32)
    scores = generator.integers(0, 2, count).astype(np.float32) * 10
    old, skill = generator.normal(size=(2, count, 40)).astype(np.float32)
    mask = np.arange(40) < generator.integers(5, 41, count)[:, None]
    routed = generator.random(count) < 0.8
    return {
        "outcome": lambda: outcome_advantages(
            scores, group_ids, trajectory_ids, baseline="trajectory", normalize="mean_std"
        ),
        "state (GiGPO)": lambda: state_advantages(returns, group_ids, states, normalize="mean_std"),
        "skill": lambda: skill_advantages(skill, old, mask, routed, normalize=True, clip=2.0),
        "critical steps": lambda: critical_steps(returns, states, group_ids, trajectory_ids),
    }


# --- measuring --------------------------------------------------------------------------------------------------


def timed(timings: Timings, name: str, call: Callable[[], Any]) -> Any:
    gc.collect()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = call()
    timing = Timing(time.perf_counter() - wall_s, time.process_time() - cpu_s)
    timings.setdefault(name, []).append(timing)
    print(f"{name}: {timing.wall_s:.3f} s, {timing.cpu_s:.3f} CPU s", flush=True)
    return result


def ratio(timings: Timings, slower: str, faster: str, clock: str) -> float:
    """Median over the repetitions of one way's time over another's of the same repetition."""
    pairs = zip(timings[slower], timings[faster], strict=True)
    return median(getattr(slow, clock) / getattr(fast, clock) for slow, fast in pairs)


def gap(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


def measure(arguments: argparse.Namespace) -> list[str]:
    """The tables' lines."""
    policy: Any = make_tiny_policy(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden_size,
        layers=arguments.layers,
        heads=arguments.hidden_size // 64,
        max_positions=2048,
        seed=0,
    )
    parameters = sum(p.numel() for p in policy.parameters())
    samples = make_samples(arguments.samples, arguments.vocabulary)
    sequences = [TokenSequence(s.prompt_ids, s.response_ids) for s in samples]
    old = score(policy, sequences, micro_batch_tokens=arguments.micro_batch_tokens)
    samples = [
        TrainingSample(s.prompt_ids, s.response_ids, o, None, s.advantages) for s, o in zip(samples, old, strict=True)
    ]
    batches = padded_batches(samples)
    config = LearnerConfig(
        learning_rate=LEARNING_RATE,
        kl_coefficient=0.0,
        dual_clip=None,
        mini_batch_samples=len(samples),
        micro_batch_tokens=arguments.micro_batch_tokens,
    )
    timings: Timings = {}
    with scratch_folder() as folder:
        policy.save_pretrained(folder / "policy")
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(folder / "policy")
        from transformers import AutoModelForCausalLM

        naive: Any = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        optimizer = torch.optim.AdamW(naive.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        other: Any = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        trl = TrlWay(other, tokenizer, folder / "trl", batches)
        learner = Learner(folder / "policy", config, threads=arguments.threads, seed=0)
        operands = product_operands(policy, arguments.micro_batch_tokens)
        for repetition in range(arguments.repetitions):
            ours = timed(timings, "score", lambda: learner.score(sequences))
            padded = timed(timings, "naive score", lambda: naive_score(naive, batches))
            theirs = timed(timings, "TRL score", trl.score)
            timed(timings, "products", lambda: products(operands, backward=False))
            if repetition == 0:
                gaps = gap(ours, padded), gap(ours, theirs)
            updated = timed(timings, "update", lambda: learner.update(samples, seed=0))
            norm = timed(timings, "naive update", lambda: naive_update(naive, optimizer, batches))
            trl_norm = timed(timings, "TRL update", trl.update)
            timed(timings, "products and gradients", lambda: products(operands, backward=True))
            if repetition == 0:
                norms = updated["gradient_norm"], norm, trl_norm
        learner.close()
    operations = forward_operations(policy, samples)
    peak_operations = 2.0 * sum(w.numel() * x.shape[0] for x, w, _ in operands)
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads, torch "
        f"{torch.__version__}; {parameters / 1e6:.1f}M parameters (width {arguments.hidden_size}, {arguments.layers} "
        f"layers, vocabulary {arguments.vocabulary:,}), float32; {len(samples)} samples, "
        f"{sum(map(len, sequences)):,} tokens of which {sum(len(s.response_ids) for s in samples):,} in responses; "
        f"{arguments.repetitions} repetitions, load average at the end {os.getloadavg()[0]:.0f}.",
        "",
        "| step | way | seconds | tokens/s | CPU seconds | ours is faster by | by CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    tokens = sum(map(len, sequences))
    for step in ("score", "update"):
        for way, name in (("ours", step), ("naive padded", f"naive {step}"), ("TRL", f"TRL {step}")):
            wall_s, cpu_s = (median(t) for t in zip(*timings[name], strict=True))
            factors = [f"{ratio(timings, name, step, clock):.2f}" for clock in Timing._fields]
            lines.append(
                f"| {step} | {way} | {wall_s:.2f} | {tokens / wall_s:,.0f} | {cpu_s:.2f} | "
                + " | ".join(["1", "1"] if way == "ours" else factors)
                + " |"
            )
    lines += [
        "",
        f"Largest difference of a log-prob: {gaps[0]:.1e} (naive), {gaps[1]:.1e} (TRL). Gradient norm: "
        + ", ".join(f"{n:.5f} ({way})" for n, way in zip(norms, ("ours", "naive", "TRL"), strict=True))
        + ".",
        "",
        "| step | GFLOP of its matrix products | GFLOP/s reached | GFLOP/s of bare products | share | by CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for step, bare, factor in (("score", "products", 1.0), ("update", "products and gradients", 3.0)):
        shares = [ratio(timings, bare, step, clock) * operations / peak_operations for clock in Timing._fields]
        reached, peak = (
            work * factor / median(t.wall_s for t in timings[name]) / 1e9
            for name, work in ((step, operations), (bare, peak_operations))
        )
        lines.append(
            f"| {step} | {operations * factor / 1e9:,.0f} | {reached:.0f} | {peak:.0f} | {shares[0]:.0%} | "
            f"{shares[1]:.0%} |"
        )
    return lines


def measure_advantages(repetitions: int) -> list[str]:
    counts = (4_000, 100_000)
    timings: Timings = {}
    for count in counts:
        for name, call in advantage_calls(count).items():
            for _ in range(repetitions):
                timed(timings, f"{name} {count}", call)
    lines = [
        "",
        "| advantages | seconds, 4,000 samples | 100,000 samples | CPU seconds, 4,000 | 100,000 |",
        "|---|---|---|---|---|",
    ]
    rows = []
    for name in advantage_calls(8):
        found = [timings[f"{name} {count}"] for count in counts]
        rows.append([median(getattr(t, clock) for t in times) for clock in Timing._fields for times in found])
        lines.append(f"| {name} | " + " | ".join(f"{seconds:.3f}" for seconds in rows[-1]) + " |")
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return [*lines, "| together | " + " | ".join(f"{seconds:.3f}" for seconds in sums) + " |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--samples", type=int, default=64, help=f"step samples, a multiple of {NAIVE_BATCH}")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="of our way")
    parser.add_argument("--vocabulary", type=int, default=12_288)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = measure_advantages(arguments.repetitions)
    lines = [*measure(arguments), *lines]
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
