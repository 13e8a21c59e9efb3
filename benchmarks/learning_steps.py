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
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.learning_baselines import (
    LEARNING_RATE,
    NAIVE_BATCH,
    TrlWay,
    forward_operations,
    naive_score,
    naive_update,
    padded_batches,
    product_operands,
    products,
)
from infra.scratch import scratch_folder
from opid_core.config import LearnerConfig
from opid_core.learning.advantages import outcome_advantages, skill_advantages, state_advantages
from opid_core.learning.learner import Learner
from opid_core.learning.scoring import score
from opid_core.policies import make_tiny_policy
from opid_core.samples import Ragged, Samples
from opid_core.skills.selector import critical_steps
from tests.factories import make_tokenizer


class Timing(NamedTuple):
    """Of one call: seconds by the clock, and of the processor over all threads (which other load hardly changes)."""

    wall_s: float
    cpu_s: float


Timings = dict[str, list[Timing]]


def make_samples(count: int, vocabulary: int) -> Samples:
    """Agent-like lengths: prompts of 330 to 930 tokens, responses of 20 to 100."""
    generator = np.random.default_rng(0)

    def tokens(low: int, high: int) -> Ragged:
        lengths = generator.integers(low, high + 1, count)
        return Ragged.from_lengths(generator.integers(5, vocabulary, lengths.sum()).astype(np.int32), lengths)

    prompts, responses = tokens(330, 930), tokens(20, 100)
    advantages = generator.normal(size=len(responses.values)).astype(np.float32)
    return Samples.from_columns(
        prompt_ids=prompts,
        response_ids=responses,
        outcome_advantage=np.zeros(count, np.float32),
        step_advantage=np.zeros(count, np.float32),
        skill_advantages=Ragged(advantages, responses.offsets),
    )


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


def gap(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))


def measure(arguments: argparse.Namespace) -> list[str]:
    """The tables' lines."""
    policy: Any = make_tiny_policy(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden_size,
        layers=arguments.layers,
        heads=max(1, arguments.hidden_size // 64),
        max_positions=2048,
        seed=0,
    )
    parameters = sum(p.numel() for p in policy.parameters())
    samples = make_samples(arguments.samples, arguments.vocabulary)
    sequences = samples.prompt_ids, samples.response_ids
    old = score(policy, *sequences, micro_batch_tokens=arguments.micro_batch_tokens)
    samples = samples.with_columns(old_log_probs=old)
    batches, whole = padded_batches(samples, NAIVE_BATCH), padded_batches(samples, len(samples))
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
            ours = timed(timings, "score", lambda: learner.score(*sequences))
            padded = timed(timings, "naive score", lambda: naive_score(naive, batches))
            timed(timings, "naive score at once", lambda: naive_score(naive, whole))
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
    tokens = sum(len(part.values) for part in sequences)
    peak_operations = 2.0 * sum(w.numel() * x.shape[0] for x, w, _ in operands)
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads, torch "
        f"{torch.__version__}; {parameters / 1e6:.1f}M parameters (width {arguments.hidden_size}, {arguments.layers} "
        f"layers, vocabulary {arguments.vocabulary:,}), float32; {len(samples)} samples, "
        f"{tokens:,} tokens of which {len(samples.response_ids.values):,} in responses; "
        f"{arguments.repetitions} repetitions, load average at the end {os.getloadavg()[0]:.0f}.",
        "",
        "| step | way | seconds | tokens/s | CPU seconds | ours is faster by | by CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in ("score", "update"):
        ways = {
            "ours": step,
            "naive padded, all at once": f"naive {step} at once",
            f"naive padded, batches of {NAIVE_BATCH}": f"naive {step}",
            "TRL": f"TRL {step}",
        }
        for way, name in ways.items():
            if name not in timings:  # the activations of an update of all at once need too much memory
                continue
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
        of_name = [timings[f"{name} {count}"] for count in counts]
        rows.append([median(getattr(t, clock) for t in times) for clock in Timing._fields for times in of_name])
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
