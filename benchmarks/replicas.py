"""One engine against several replicas, one CPU core each, on a tiny policy: `python -m benchmarks.replicas`.

Where there is a GPU all of them are on the first one, with a quarter of its memory each, in bfloat16; `--large` gives
them a random policy as deep and as wide as Qwen2.5-0.5B, without its vocabulary.

The same episodes are played by fleets of each size in turn, `--repeat` times after one to warm up. Printed are medians
and ranges of the seconds, and of the processor seconds of the busiest replica and of the loop, which other work on the
machine changes little: with a core each nothing takes longer than the busiest. And whether the episodes are equal,
tokens and log-probs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import cast

import psutil
import torch

from benchmarks.episode_loop import alfworld_requests, settings
from infra.groups import Folder, Group
from infra.hosting import HostedGroup
from opid_core.config import CampaignConfig, build_config
from opid_core.policies import make_tiny_policy
from opid_core.rollout.episodes import Episode, run_episodes
from tasks.engines import Engine, start_engine
from tasks.places import LocalPlaces, engine_factory, engine_options, visible_gpus
from tests.factories import EOS_ID, VOCABULARY, make_tiny_policy_folder, make_tokenizer


class OneCard(LocalPlaces):
    """All replicas on the first GPU. They start one after the other: where another process gives memory back while it
    starts, vLLM refuses to."""

    def __init__(self, config: CampaignConfig) -> None:
        super().__init__(config)
        self._one_card = config

    def engine(self, replica: int, name: str, policy_dir: Folder, *, trained: bool) -> Group:
        env, options = {"CUDA_VISIBLE_DEVICES": visible_gpus()[0]}, engine_options(self._one_card, trained)
        group = HostedGroup(name, *engine_factory(self._one_card, policy_dir), env=env, **options)
        group.call("advance", [])  # waits for the start
        return group


def start(replicas: int, policy: Path) -> Engine:
    """A fleet whose replicas have one thread each."""
    on_gpu = torch.cuda.is_available()
    engine = {"replicas": replicas, "kv_cache_mib": 128, "gpu_memory_fraction": 0.25}
    config = build_config(
        {
            "campaign": "replicas",
            "threads": replicas,
            "engine": {**engine, "dtype": "bfloat16" if on_gpu else "float32"},
            "rollout": {"max_prompt_tokens": 900, "max_response_tokens": 32},
        }
    )
    return start_engine(config, policy, trained=True, places=OneCard(config) if on_gpu else None)


def make_large_policy_folder(folder: Path) -> Path:
    """Write a random policy of 24 layers of width 896, and its tokenizer."""
    policy = make_tiny_policy(
        vocab_size=len(VOCABULARY), hidden_size=896, layers=24, heads=14, max_positions=1024, seed=0
    )
    policy.config.eos_token_id = EOS_ID
    policy.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def record(episodes: list[Episode]) -> list[tuple[list[int], list[float]]]:
    """What was sampled, turn by turn."""
    return [([*turn.response_ids], [*turn.log_probs]) for episode in episodes for turn in episode.turns]


def processor_s(fleet: Engine) -> list[float]:
    """Processor seconds that each replica has used, and this process."""
    groups = [cast(HostedGroup, replica.group) for replica in fleet.replicas]
    processes = [psutil.Process(group.process.pid) for group in groups]
    return [sum(process.cpu_times()[:2]) for process in (*processes, psutil.Process())]


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    given = parser.parse_args()
    tokenizer = make_tokenizer()
    maker, requests = alfworld_requests(given.episodes)
    rules = settings(given.turns, 900)
    taken: dict[int, list[tuple[float, float, float]]] = {replicas: [] for replicas in given.replicas}
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder)
        (make_large_policy_folder if given.large else partial(make_tiny_policy_folder, max_positions=1024))(policy)
        fleets = {replicas: start(replicas, policy) for replicas in given.replicas}
        try:
            for turn in range(given.repeat + 1):
                for replicas, fleet in fleets.items():
                    fleet.load_policy(policy)  # an empty prefix cache
                    since_s, before_s = time.monotonic(), processor_s(fleet)
                    episodes = run_episodes(fleet, tokenizer, maker, requests, rules)
                    *engines_s, loop_s = (b - a for a, b in zip(before_s, processor_s(fleet), strict=True))
                    if turn:
                        taken[replicas].append((time.monotonic() - since_s, max(engines_s), loop_s))
                    records[replicas] = record(episodes)
        finally:
            for fleet in fleets.values():
                fleet.kill()
    first, *others = records.values()
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"{given.episodes} episodes in groups of 8, {len(first)} turns, n = {given.repeat}; load averages {load}")
    where = f"{torch.cuda.get_device_name(0)}, bfloat16" if torch.cuda.is_available() else "CPU, float32"
    tokens = sum(len(ids) for ids, _ in first)
    print(f"{where}; {tokens:,} tokens")
    print("| replicas | seconds | busiest replica, processor seconds | loop, processor seconds |\n|---|---|---|---|")
    for replicas, times in taken.items():
        print(f"| {replicas} | {' | '.join(shown([*column]) for column in zip(*times, strict=True))} |")
    ids = [[tokens for tokens, _ in one] == [tokens for tokens, _ in first] for one in others]
    print(f"tokens equal: {all(ids)}; log-probs equal bit for bit: {all(one == first for one in others)}")


if __name__ == "__main__":
    main()
