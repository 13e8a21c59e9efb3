"""What `learner.shared_prefixes` leaves of a campaign's tokens, and how much faster it is.

    python -m benchmarks.shared_prefixes CAMPAIGN [--root runs] [--policy FOLDER | --layers 10]
    python -m benchmarks.shared_prefixes [--repetitions 5]    # what `auto` measures, for two shapes

The stored prompts of one iteration, as re-scoring and the update take them: re-scoring asks for plain and skill prompts
in one call, the update for a shuffled mini-batch. Both are cut into micro-batches as with sharing, and a few of these,
evenly spread, are computed both ways in turns, forward (and backward, for the update). Times are CPU seconds, which
other load hardly changes; ratios are medians of a repetition's, with the smallest and largest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from flows.prefix_sharing import FASTER, measured
from infra.store import find_campaign, manifests, read_config, read_table
from opid_core.config import build_config
from opid_core.learning.scoring import ResponseScorer, score
from opid_core.learning.shared_prefixes import batches_of, joined, pack, share_prefixes
from opid_core.policies import load_model
from opid_core.policy_check import load_config
from opid_core.samples import Ragged, Samples, stacked

SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""Of its own config.json."""

Sequences = tuple[Ragged, Ragged]
"""Prompts and responses."""


def calls_of(root: str, campaign: str, iteration: int) -> tuple[dict[str, Sequences], int]:
    """What an iteration's re-scoring asks the learner in one call (without the prompts of placebos and of
    `added_skill_id`, which are not stored), and its first mini-batch; and the config's `micro_batch_tokens`."""
    store = find_campaign(root, campaign)
    config = build_config(read_config(store), campaign)
    tables = manifests(store)[iteration].tables
    samples = Samples.from_tables(*(read_table(store, tables[name]) for name in ("steps", "trajectories", "scores")))
    taught = np.flatnonzero(samples.has("skill_prompt_ids"))
    scored = (
        stacked([samples.prompt_ids, samples.tokens("skill_prompt_ids").take(taught)]),
        stacked([samples.response_ids, samples.response_ids.take(taught)]),
    )
    learned = samples.learned()
    order = np.random.default_rng([0, 0]).permutation(len(learned))[: config.learner.mini_batch_samples]
    first = learned.select(order)
    return {"score": scored, "update": (first.prompt_ids, first.response_ids)}, config.learner.micro_batch_tokens


def distinct_tokens(sequences: Sequences, batches: list[list[int]]) -> int:
    """What is computed of `sequences` in these micro-batches."""
    whole = joined(*sequences)
    return sum(len(pack(whole.take(np.array(batch))).ids) for batch in batches)


def update(scorer: ResponseScorer, prompts: Ragged, responses: Ragged, budget: int) -> list[torch.Tensor]:
    """The gradients of the mean log-prob."""
    scorer.train().zero_grad()
    for batch in batches_of(prompts, responses, budget, shares=scorer.shares_prefixes):
        rows = np.array(batch)
        log_probs, _ = scorer(prompts.take(rows), responses.take(rows), entropy=True)
        (log_probs.sum() / len(responses.values)).backward()
    return [p.grad.clone() for p in scorer.policy.parameters() if p.grad is not None]


def make_scorer(folder: Path | None, layers: int, *, shares: bool) -> ResponseScorer:
    """Of the policy in `folder`; None: of a random one of SmolLM2-135M's shape with so many of its 30 layers."""
    if folder is not None:
        policy = load_model(folder, torch.float32)
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        policy = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SMOLLM2_135M))
    if shares:
        share_prefixes(policy)
    return ResponseScorer(policy)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began_s = time.process_time()
    return call(), time.process_time() - began_s


def row(
    name: str, sequences: Sequences, scorers: tuple[ResponseScorer, ResponseScorer], budget: int, given: Any
) -> str:
    """A line of the table."""
    batches = batches_of(*sequences, budget, shares=True)
    parts = min(given.batches, len(batches))
    chosen = [batches[int((n + 0.5) * len(batches) / parts)] for n in range(parts)]
    all_tokens = sum(len(part.values) for part in sequences)
    whole = distinct_tokens(sequences, batches) / all_tokens
    rows = np.array(sorted(index for batch in chosen for index in batch))
    prompts, responses = part = sequences[0].take(rows), sequences[1].take(rows)
    tokens = sum(len(one.values) for one in part)
    left = distinct_tokens(part, batches_of(*part, budget, shares=True)) / tokens

    def once(scorer: ResponseScorer) -> Any:
        if name == "update":
            return update(scorer, prompts, responses, budget)
        return [torch.from_numpy(score(scorer, prompts, responses, micro_batch_tokens=budget).values)]

    times: list[tuple[float, float]] = []
    difference = 0.0
    for _ in range(given.repetitions):
        (apart, apart_s), (shared, shared_s) = (timed(lambda one=one: once(one)) for one in scorers)
        times.append((apart_s, shared_s))
        difference = max(difference, *(float((a - b).abs().max()) for a, b in zip(apart, shared, strict=True)))
    ratios = sorted(apart_s / shared_s for apart_s, shared_s in times)
    apart_s, shared_s = (median(column) for column in zip(*times, strict=True))
    return (
        f"| {name} | {all_tokens:,} | {whole:.1%} | {tokens:,} | {left:.1%} | {apart_s:.2f} | {shared_s:.2f} "
        f"| {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {difference:.1e} |"
    )


def print_auto(repetitions: int) -> None:
    """What `learner.shared_prefixes: auto` measures for the quickstart's policy and for SmolLM2-135M's shape."""
    from transformers import LlamaConfig

    folder = Path(__file__).parents[1] / "configs" / "policies" / "alfworld_tiny"
    shapes = {
        "the quickstart's": load_config(folder),
        "SmolLM2-135M": LlamaConfig(num_hidden_layers=30, **SMOLLM2_135M),
    }
    print(f"float32, torch {torch.__version__}, n = {repetitions}\n")
    print("| policy | faster by | true | CPU s of a measurement |\n|---|---|---|---|")
    for name, config in shapes.items():
        results = [timed(lambda one=config: measured(one).faster) for _ in range(repetitions)]
        ratios = sorted(ratio for ratio, _ in results)
        shares = sum(ratio >= FASTER for ratio in ratios)
        print(
            f"| {name} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {shares} of {repetitions} "
            f"| {median(seconds for _, seconds in results):.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", nargs="?")
    parser.add_argument("--root", default="runs")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--policy", type=Path, help="HF folder; default: random, of SmolLM2-135M's shape")
    parser.add_argument("--layers", type=int, default=10, help="of SmolLM2-135M's 30")
    parser.add_argument("--batches", type=int, default=4, help="micro-batches that are timed")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.campaign is None:
        print_auto(given.repetitions)
        return
    calls, budget = calls_of(given.root, given.campaign, given.iteration)
    scorers = (
        make_scorer(given.policy, given.layers, shares=False),
        make_scorer(given.policy, given.layers, shares=True),
    )
    parameters = sum(p.numel() for p in scorers[0].policy.parameters())
    print(
        f"{parameters / 1e6:.1f}M parameters, float32, {given.threads} threads, torch {torch.__version__}, "
        f"micro-batches of {budget:,} tokens, {given.repetitions} repetitions\n"
    )
    print("| step | tokens | left | timed | left | CPU s, each alone | shared | faster by | largest difference |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name, sequences in calls.items():
        print(row(name, sequences, scorers, budget, given), flush=True)


if __name__ == "__main__":
    main()
