"""The data path of one iteration: what lies between engine, learner and environment, which here answer at once.

    python -m benchmarks.data_path                                        # the paper's size: 3,800 samples
    python -m benchmarks.data_path --tasks 16 53 105 421 --prompt-tokens 256 --response-tokens 64   # is it linear?
    python -m benchmarks.data_path --profile 40                           # where the time goes

Everything else is the campaign's own: tables, gates, hindsight, routing, advantages, Parquet, manifests, a store in a
folder, the learner's process. Stages are called without Prefect's engine. Two small iterations warm up imports before;
tables read back are counted in the second of them too, with what trackers read after its commit. Each line is measured
in a process of its own.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import multiprocessing
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.stand_ins import InstantWorkers, memory

STAGES = ("rollout", "extract_skills", "route", "rescore", "update", "commit")


class Counters:
    """What is opened for reading below `root`, and CPU seconds of the gates and of Great Expectations in them."""

    def __init__(self) -> None:
        self.root, self.tables, self.bytes = "", 0, 0
        self.gates_s, self.expectations_s = 0.0, 0.0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not self.root or not str(arguments[0]).startswith(self.root):
            return
        path, mode, flags = arguments
        if (mode is None or "r" in mode) and flags & os.O_ACCMODE == os.O_RDONLY and os.path.isfile(path):
            self.bytes += os.path.getsize(path)
            self.tables += str(path).endswith(".parquet")

    def timed(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            began_s = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                setattr(self, name, getattr(self, name) + time.process_time() - began_s)

        return call


def measure(tasks: int, prompt_tokens: int, response_tokens: int, profile: int) -> dict[str, Any]:
    """Numbers of one iteration of `tasks` groups of 8 episodes."""
    from great_expectations.datasource.fluent import interfaces

    from tasks.gates import run as gates

    counters = Counters()
    gates.check = counters.timed("gates_s", gates.check)
    interfaces.Batch.validate = counters.timed("expectations_s", interfaces.Batch.validate)
    second = iterate(2, prompt_tokens, response_tokens, counters, iterations=2)
    numbers = iterate(tasks, prompt_tokens, response_tokens, counters, profile)
    return {**numbers, "tables": numbers["tables"] + second["tables"]}


def iterate(
    tasks: int, prompt_tokens: int, response_tokens: int, counters: Counters, profile: int = 0, iterations: int = 1
) -> dict[str, Any]:
    """Numbers of the last of some iterations, one after the other in one process."""
    from prefect.logging import disable_run_logger

    from infra.store import open_campaign
    from opid_core.config import build_config
    from tasks import commit, extract_skills, progress, rescore, rollout, route, update
    from tasks.iteration import CampaignRun
    from tasks.trackers.commits import committed
    from tests.factories import make_chain

    progress.ARTIFACT_AFTER_S = math.inf  # no Prefect server here to show it
    modules = dict(zip(STAGES, (rollout, extract_skills, route, rescore, update, commit), strict=True))
    with tempfile.TemporaryDirectory() as root, disable_run_logger():
        config = build_config(
            {
                "campaign": "data-path",
                "root": root,
                "environment": {"name": "benchmarks.stand_ins:store_room", "options": {"tasks": tasks}},
                "rollout": {
                    "tasks_per_iteration": tasks,
                    "max_prompt_tokens": prompt_tokens,
                    "max_response_tokens": response_tokens,
                },
                "analyzer": {"backend": "hindsight"},
            }
        )
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        run = CampaignRun(config, store, make_chain(store, Path(root), 1))
        run.workers = workers = InstantWorkers(prompt_tokens, response_tokens)  # pyright: ignore[reportAttributeAccessIssue]
        with run:
            for number in range(1, iterations):
                run.begin(number, 0)
                for name, module in modules.items():
                    result = getattr(module, name).fn(config.campaign, number, 0)
                run.chain.append(result)
            it = run.begin(iterations, 0)
            workers.group.call("memory", True)
            learner = psutil.Process(workers.group.process.pid)

            def cpu_s() -> float:
                there = learner.cpu_times()
                return time.process_time() + there.user + there.system

            counters.tables = counters.bytes = 0
            counters.gates_s = counters.expectations_s = 0.0
            profiler = cProfile.Profile(time.process_time)
            before, counters.root = memory(reset=True), root
            learner_before = workers.group.call("memory", True)
            stages_s = {}
            if profile:
                profiler.enable()
            for name, module in modules.items():
                began_s = cpu_s()
                result = getattr(module, name).fn(config.campaign, iterations, 0)
                stages_s[name] = cpu_s() - began_s
            if profile:
                profiler.disable()
            assert committed(config, store, [*run.chain, result], run.table, print)[-1].skills  # what trackers read
            if profile:
                pstats.Stats(profiler).sort_stats("tottime").print_stats(profile)
            counters.root = ""
            arrow = sum(it.table(name).nbytes for name in it.everything().tables)
            learner_after = workers.group.call("memory", False)
            return {
                "samples": len(it.samples),
                "arrow": arrow,
                "cpu_s": sum(stages_s.values()),
                "stages_s": stages_s,
                "gates_s": counters.gates_s,
                "expectations_s": counters.expectations_s,
                "tables": counters.tables,
                "bytes": counters.bytes,
                "growth": memory()["VmHWM"] - before["VmRSS"],
                "learner_growth": learner_after["VmHWM"] - learner_before["VmRSS"],
            }


def lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """The table, in Markdown."""
    head = (
        "samples",
        "Arrow",
        "CPU s",
        "of it gates",
        "of it Great Expectations",
        *STAGES,
        "tables read",
        "bytes read",
    )
    head = (*head, "peak growth", "of the Arrow size", "learner's growth", "CPU s per 1,000 samples")
    rows = [
        (
            f"{r['samples']:,}",
            f"{r['arrow'] / 1e6:,.0f} MB",
            *(f"{r[name]:.2f}" for name in ("cpu_s", "gates_s", "expectations_s")),
            *(f"{seconds:.2f}" for seconds in r["stages_s"].values()),
            f"{r['tables']}",
            f"{r['bytes']:,}",
            f"{r['growth'] / 1e6:,.0f} MB",
            f"{r['growth'] / r['arrow']:.2f}",
            f"{r['learner_growth'] / 1e6:,.0f} MB",
            f"{1000 * r['cpu_s'] / r['samples']:.2f}",
        )
        for r in results
    ]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[16], help="groups of 8 episodes of at most 30 steps")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--response-tokens", type=int, default=512)
    parser.add_argument("--profile", type=int, default=0, metavar="LINES")
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        given = [(n, options.prompt_tokens, options.response_tokens, options.profile) for n in options.tasks]
        results = pool.starmap(measure, given, chunksize=1)
    print("\n".join(lines(results)))


if __name__ == "__main__":
    main()
