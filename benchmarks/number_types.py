"""What bfloat16 gains a learner on this CPU over float32: `learner.dtype`, and so `dtype: auto`.

    python -m benchmarks.number_types              # 1M, 26M, 135M
    python -m benchmarks.number_types 26M --repetitions 5

Random weights of three shapes, one thread, both types in turns in each repetition: scoring, and one optimizer step with
float32 master weights (DeepSpeed ZeRO 1). Times are CPU seconds, which other load hardly changes. The peak is that of
bare products with the policy's layers in bfloat16, measured in the same run; operations are counted without padding, an
update as three forward passes. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.learning_baselines import forward_operations, layer_shapes
from benchmarks.learning_steps import make_samples
from benchmarks.shared_prefixes import SMOLLM2_135M
from flows.number_type import measured_rates
from infra.scratch import scratch_folder
from opid_core.config import LearnerConfig
from opid_core.learning.learner import Learner
from opid_core.policies import make_tiny_policy
from opid_core.samples import Samples
from tests.factories import make_tokenizer

TYPES = ("float32", "bfloat16")
SAMPLES = {"1M": 64, "26M": 32, "135M": 8}
"""Step samples of a call, by shape: some 690 tokens each."""


def make_policy(shape: str) -> Any:
    """Random weights in the shape of the quickstart's policy, of benchmarks.learning_steps' or of SmolLM2-135M's."""
    if shape == "135M":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=30, **SMOLLM2_135M))
    width, layers, vocabulary = {"1M": (128, 3, 1_280), "26M": (384, 7, 12_288)}[shape]
    return make_tiny_policy(
        vocab_size=vocabulary, hidden_size=width, layers=layers, heads=width // 64, max_positions=2048, seed=0
    )


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    since_s = time.process_time()
    result = call()
    return time.process_time() - since_s, result


def measure(shape: str, repetitions: int) -> list[str]:
    """The table's lines of one shape."""
    policy = make_policy(shape)
    samples = make_samples(SAMPLES[shape], policy.config.vocab_size)
    operations = forward_operations(policy, samples)
    sizes = [(inputs, outputs) for outputs, inputs in layer_shapes(policy)]
    seconds: dict[tuple[str, str], list[float]] = {}
    rates: dict[str, list[float]] = {}
    scores: dict[str, np.ndarray] = {}
    with scratch_folder() as folder:
        policy.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        for _ in range(repetitions):
            for dtype, rate in measured_rates(sizes).items():
                rates.setdefault(dtype, []).append(rate)
            for dtype in TYPES:
                scores[dtype] = time_learner(folder, samples, dtype, seconds)
    peak = median(rates["bfloat16"])
    gap = np.abs(scores["bfloat16"] - scores["float32"])
    lines = []
    for step, factor in (("score", 1), ("update", 3)):
        for dtype in TYPES:
            spent = seconds[step, dtype]
            reached = factor * operations / median(spent)
            ratios = [slow / fast for slow, fast in zip(seconds[step, "float32"], spent, strict=True)]
            faster = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if dtype != "float32" else ""
            differs = f"{gap.mean():.1e}, {gap.max():.1e}" if (step, dtype) == ("score", "bfloat16") else ""
            lines.append(
                f"| {shape} | {step} | {dtype} | {median(spent):.2f} | {reached / 1e9:.0f} | "
                f"{median(rates[dtype]) / 1e9:.0f} | {reached / peak:.0%} | {faster} | {differs} |"
            )
    return lines


def time_learner(folder: Path, samples: Samples, dtype: str, seconds: dict[tuple[str, str], list[float]]) -> np.ndarray:
    """Append the CPU seconds of a score and of an update by a new learner; its log-probs."""
    config = LearnerConfig(
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        learning_rate=1e-6,
        kl_coefficient=0.0,
        mini_batch_samples=len(samples),
        micro_batch_tokens=2048,
    )
    learner = Learner(folder, config, threads=1, seed=0)
    spent_s, old = cpu_seconds(lambda: learner.score(samples.prompt_ids, samples.response_ids))
    seconds.setdefault(("score", dtype), []).append(spent_s)
    known = samples.with_columns(old_log_probs=old)
    spent_s, _ = cpu_seconds(lambda: learner.update(known, seed=0))
    seconds.setdefault(("update", dtype), []).append(spent_s)
    learner.close()
    return old.values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(SAMPLES), metavar="SHAPE", help=", ".join(SAMPLES))
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if unknown := [shape for shape in options.shapes if shape not in SAMPLES]:
        parser.error(f"{unknown[0]}: expected {', '.join(SAMPLES)}")
    torch.set_num_threads(1)
    rows = [line for shape in options.shapes for line in measure(shape, options.repetitions)]
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread, ", end="")
    print(f"n = {options.repetitions}, load average at the end {os.getloadavg()[0]:.0f}.\n")
    print(
        "| parameters | step | type | CPU s | GFLOP/s | bare products | of bfloat16's | faster by | nats: mean, most |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
