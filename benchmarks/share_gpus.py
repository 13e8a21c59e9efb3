"""Engine and learner with a GPU in turns (`engine.share_gpus`): what each frees and keeps, and how long it takes.

    python -m benchmarks.share_gpus              # 0.5B and 3B, on a GPU
    python -m benchmarks.share_gpus tiny         # also on a CPU, which frees nothing: to try the script

Random weights in bfloat16, all of them trained. The engine starts, samples and sleeps; the learner starts beside it,
scores what was sampled, updates, and leaves; the engine takes the policy again and samples, sleeps, the learner comes
back and scores. Seconds are of the second time: the first one locks the machine's memory. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch

from benchmarks.learner_gpu import CONFIG, make_samples, timed
from benchmarks.learner_shapes import used_mib, write_policy
from infra.hosting import HostedGroup
from infra.scratch import scratch_folder
from opid_core.config import EngineConfig
from opid_core.rollout.engines.vllm import canary_gap
from opid_core.samples import Ragged
from tasks.places import ENGINE, LEARNER
from tasks.remote_engine import RemoteEngine

PROMPTS = [[5, 6, 7, 8] * 20, [9, 10, 11] * 30]
ENGINE_CONFIG = EngineConfig(dtype="bfloat16", gpu_memory_fraction=0.8, share_gpus=True, max_concurrent=64)
CANARY_TOLERANCE = 1.0
"""Nats: the gap is printed. Sampled by other weights, tokens differ by several."""
HEADINGS = (
    *("policy", "engine MiB", "asleep", "sleep s", "wake s"),
    *("learner MiB", "away", "leave s", "come back s", "canary gap before", "after"),
)


def row(name: str, samples_count: int) -> str:
    """A line of the table. Larger models are trained with gradient checkpointing, as their configs are."""
    config = CONFIG.model_copy(update={"gradient_checkpointing": name != "tiny"})
    samples = make_samples(samples_count)
    with scratch_folder() as folder:
        write_policy(folder, name)
        nothing = used_mib()
        group = HostedGroup("engine", ENGINE, folder, ENGINE_CONFIG, max_model_len=2048, threads=2, seed=0)
        engine = RemoteEngine("engine", group, folder)
        learner = HostedGroup("learner", LEARNER, folder, config, threads=2, seed=0)
        try:
            group.call("advance", [])  # waits for the start
            engine_mib = used_mib() - nothing

            def score(prompts: Ragged, responses: Ragged) -> Ragged:
                group.call("sleep")
                learner.call("reload")  # starts it, the first time
                return learner.call("score", prompts, responses)

            gap_before = canary_gap([engine], score, PROMPTS, CANARY_TOLERANCE)
            learner.call("update", samples, seed=0)
            learner_mib = used_mib() - nothing
            seconds = []
            for _ in range(2):
                _, leave_s = timed(lambda: learner.call("offload"))
                both_away_mib = used_mib() - nothing
                _, wake_s = timed(lambda: group.call("wake"))
                engine_and_away_mib = used_mib() - nothing
                _, sleep_s = timed(lambda: group.call("sleep"))
                _, come_back_s = timed(lambda: learner.call("reload"))
                seconds = [sleep_s, wake_s, leave_s, come_back_s]
            learner.call("export", folder / "next")
            learner.call("offload")
            group.call("wake")
            engine.begin_load(folder / "next")
            engine.finish()
            gap_after = canary_gap([engine], score, PROMPTS, CANARY_TOLERANCE)
        finally:
            engine.kill()
            learner.kill()
    away_mib = engine_and_away_mib - engine_mib
    asleep_mib = both_away_mib - away_mib
    mib = [f"{value:,.0f}" for value in (engine_mib, asleep_mib, learner_mib - asleep_mib, away_mib)]
    if not torch.cuda.is_available():
        mib = ["no GPU"] * 4
    sleep_s, wake_s, leave_s, come_back_s = (f"{value:.2f}" for value in seconds)
    cells = (name, *mib[:2], sleep_s, wake_s, *mib[2:], leave_s, come_back_s, f"{gap_before:.2g}", f"{gap_after:.2g}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["0.5B", "3B"], metavar="SIZE", help="0.5B, 3B, 7B or tiny")
    parser.add_argument("--samples", type=int, default=32)
    given = parser.parse_args()
    if unknown := {*given.shapes} - {"0.5B", "3B", "7B", "tiny"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: 0.5B, 3B, 7B, tiny")
    if not torch.cuda.is_available() and {*given.shapes} != {"tiny"}:
        parser.error("these need a GPU; on a CPU there is tiny")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or "CPU"
    print(f"{device}, torch {torch.__version__}, bfloat16, {given.samples} sequences\n")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}", flush=True)
    for name in given.shapes:
        since_s = time.monotonic()
        print(f"{row(name, given.samples)}  <!-- {time.monotonic() - since_s:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
