"""The learner on one GPU: every ZeRO stage, resume, and out of memory met by smaller micro-batches.

    python -m benchmarks.learner_gpu

A random policy of 334M parameters in bfloat16; sequences of 1,500 prompt and 300 response tokens. Times are of the
second call. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.hosting import HostedGroup
from infra.scratch import scratch_folder
from opid_core.config import LearnerConfig
from opid_core.errors import OutOfMemory
from opid_core.policies import make_tiny_policy
from opid_core.samples import Ragged, Samples
from tests.factories import make_tokenizer

VOCABULARY = 32_000
CONFIG = LearnerConfig(
    dtype="bfloat16", kl_coefficient=0.0, mini_batch_samples=16, micro_batch_tokens=16_384, learning_rate=1e-5
)


def make_samples(
    count: int, prompts: tuple[int, int] = (1500, 1500), responses: tuple[int, int] = (300, 300)
) -> Samples:
    """Random tokens; of lengths between these, both included."""
    generator, of_lengths = np.random.default_rng(0), np.random.default_rng(1)
    prompt_lengths, lengths = (of_lengths.integers(*bounds, count, endpoint=True) for bounds in (prompts, responses))

    def tokens(lengths: np.ndarray) -> Ragged:
        return Ragged.from_lengths(generator.integers(5, VOCABULARY, lengths.sum()).astype(np.int32), lengths)

    return Samples.from_columns(
        prompt_ids=tokens(prompt_lengths),
        response_ids=tokens(lengths),
        old_log_probs=Ragged.from_lengths(np.full(lengths.sum(), -10.0, np.float32), lengths),
        outcome_advantage=np.zeros(count, np.float32),
        step_advantage=np.zeros(count, np.float32),
        skill_advantages=Ragged.from_lengths(generator.normal(size=lengths.sum()).astype(np.float32), lengths),
    )


def hosted(folder: Path, config: LearnerConfig, state: Path | None = None) -> HostedGroup:
    return HostedGroup("learner", "opid_core.learning.learner:Learner", folder, config, threads=8, seed=0, state=state)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started_s = time.monotonic()
    result = call()
    return result, time.monotonic() - started_s


def stage_row(folder: Path, stage: int, samples: Samples) -> str:
    """Scores, updates, saves, exports; a second learner continues from that and must score the same."""
    config = CONFIG.model_copy(update={"zero_stage": stage})
    sequences = samples.prompt_ids, samples.response_ids
    with scratch_folder() as out:
        group = hosted(folder, config)
        group.call("score", *sequences)
        _, score_s = timed(lambda: group.call("score", *sequences))
        group.call("update", samples, seed=0)
        metrics, update_s = timed(lambda: group.call("update", samples, seed=1))
        group.call("save", out / "state")
        group.call("export", out / "policy")
        scored = group.call("score", *sequences)
        group.kill()
        again = hosted(out / "policy", config, out / "state")
        resumed = again.call("score", *sequences)
        again.kill()
    gap = float(np.abs(scored.values - resumed.values).max())
    tokens = sum(len(part.values) for part in sequences)
    return (
        f"| {stage} | {tokens / score_s:,.0f} | {tokens / update_s:,.0f} | {metrics['loss']:.5f} "
        f"| {metrics['gradient_norm']:.4f} | {gap:g} |"
    )


def out_of_memory_rows(folder: Path, samples: Samples) -> list[str]:
    """Halves the micro-batch until one mini-batch of all samples fits."""
    rows, tokens = [], 400_000
    while True:
        config = CONFIG.model_copy(update={"micro_batch_tokens": tokens, "mini_batch_samples": len(samples)})
        group = hosted(folder, config)
        try:
            loss = group.call("update", samples, seed=0)["loss"]
        except OutOfMemory:
            rows.append(f"| {tokens:,} | out of memory |")
            tokens //= 2
        else:
            return [*rows, f"| {tokens:,} | fits, loss {loss:.5f} |"]
        finally:
            group.kill()


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("needs a GPU")
    with scratch_folder() as folder:
        policy = make_tiny_policy(
            vocab_size=VOCABULARY, hidden_size=1024, layers=16, heads=16, max_positions=2048, seed=0
        )
        millions = sum(parameter.numel() for parameter in policy.parameters()) / 1e6
        policy.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportCallIssue, reportArgumentType]
        make_tokenizer().save_pretrained(folder)
        print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, {millions:.0f}M parameters, bfloat16\n")
        print("| ZeRO stage | tokens/s scored | tokens/s updated | loss | gradient norm | gap after resume |")
        print("|---|---|---|---|---|---|", flush=True)
        samples = make_samples(32)
        for stage in (1, 2, 3):
            print(stage_row(folder, stage, samples), flush=True)
        print("\n| micro-batch tokens, 300 samples | |\n|---|---|")
        print("\n".join(out_of_memory_rows(folder, make_samples(300))), flush=True)


if __name__ == "__main__":
    main()
