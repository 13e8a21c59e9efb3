"""WebShop's numbers on this machine: goals, steps, search engines, size: `python -m benchmarks.webshop`.

Real data: the 1,000 products of `webshop/` in the folder that `--data`, else `$OPID_SHARED_DATA`, names. Everything
is built anew in a temporary cache; each part runs in a process of its own. Times are wall clock, with the processor
time in brackets: on a busy machine the two differ.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

import envs
from envs.webshop import WebshopEnvironment
from envs.webshop.catalog import Catalog, find_files
from envs.webshop.generator import CatalogOptions, generated_folder
from envs.webshop.goals import Goals
from envs.webshop.search import SearchEngine, open_index

ENGINES = get_args(SearchEngine)
EPISODES, QUERIES, RESULTS, LIST = 300, 500, 50, 10


class Clock:
    """Times many calls of one kind."""

    def __init__(self) -> None:
        self._wall_ms: list[float] = []
        self._processor_ms = 0.0

    def time(self, call: Callable[[], Any]) -> Any:
        wall_s, processor_s = time.perf_counter(), time.process_time()
        result = call()
        self._wall_ms.append(1000 * (time.perf_counter() - wall_s))
        self._processor_ms += 1000 * (time.process_time() - processor_s)
        return result

    def summary(self) -> str:
        count = len(self._wall_ms)
        mean, p95 = np.mean(self._wall_ms), np.quantile(self._wall_ms, 0.95)
        return f"mean {mean:.2f} ({self._processor_ms / count:.2f}), p95 {p95:.2f}, of {count}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webshop", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("OPID_SHARED_DATA", "../shared/data"))
    parser.add_argument("--products", type=int, default=100_000, help="size of the generated catalog")
    parser.add_argument("--part", nargs="+", help="measure one part, in this process")
    given = parser.parse_args()
    data = str(Path(given.data) / "webshop")
    if given.part:
        PARTS[given.part[0]](data, given.products, *given.part[1:])
        return
    parts = [["shop"], ["restart"], ["agreement"], ["catalog"], *(["engine", engine] for engine in ENGINES)]
    with tempfile.TemporaryDirectory() as cache:
        for part in parts:
            command = [sys.executable, "-m", "benchmarks.webshop", "--data", given.data, "--products"]
            command += [str(given.products), "--part", *part]
            subprocess.run(command, check=True, env={**os.environ, "OPID_CACHE": cache})


def measure_shop(data: str, products: int) -> None:
    """The 1,000 products: what is there, what can be won, what a step and a search cost."""
    _row("1,000 products", "value")
    _row("---", "---")
    environment = _timed("first start (catalog, goals, nouns, index)", lambda: envs.make("webshop", {"data": data}))
    assert isinstance(environment, WebshopEnvironment)
    shop = environment.shop
    every = [shop.goals[index] for index in range(len(shop.goals))]
    _row("goals", f"{len(every)}")
    for matching in ("parity", "fixed"):
        worth = [shop.score(goal.product, goal, goal.options, matching) for goal in every]  # pyright: ignore
        _row(f"bought with its options worth 1 (`{matching}`)", f"{worth.count(1.0)}")
    steps = {False: Clock(), True: Clock()}
    for task in environment.tasks("train")[:EPISODES]:
        expert = environment.expert(environment.reset(task))
        for _ in range(15):
            action = expert.decide(environment.admissible_actions).action
            if action.startswith("search["):
                shop.search.cache_clear()
            result = steps[action.startswith("search[")].time(lambda: environment.step(action))  # noqa: B023
            expert.observe(action, result.observation)
            if result.done:
                break
    for is_search, clock in steps.items():
        _row(f"{'search' if is_search else 'other'} step, ms", clock.summary())
    _timed("another environment of the process", lambda: envs.make("webshop", {"data": data}))
    _row("peak memory, MiB", f"{_peak_mib():.0f}")


def measure_restart(data: str, products: int) -> None:
    """The same shop in a new process, from the cache."""
    _timed("start of another process, from the cache", lambda: envs.make("webshop", {"data": data}))
    _row("its peak memory, MiB", f"{_peak_mib():.0f}")
    print()


def measure_agreement(data: str, products: int) -> None:
    """Top-10 lists of every pair of engines on the goals' instructions (one a product with goals)."""
    catalog = Catalog(find_files(data))
    goals = Goals(catalog, "synthetic", 233)
    queries = list({goals[index].asin: goals[index].instruction.lower() for index in range(len(goals))}.values())
    lists = {
        engine: [index.search(query, LIST) for query in queries]
        for engine in ENGINES
        for index in [open_index(engine, catalog)]
    }
    _row(f"top {LIST} of {len(queries)} instructions", "same list", "same products", "shared products")
    _row("---", "---", "---", "---")
    for first, second in itertools.combinations(ENGINES, 2):
        pairs = list(zip(lists[first], lists[second], strict=True))
        same = np.mean([one == other for one, other in pairs])
        sets = np.mean([set(one) == set(other) for one, other in pairs])
        shared = sum(len(set(one) & set(other)) for one, other in pairs) / sum(len(one) for one, _ in pairs)
        _row(f"{first}, {second}", f"{same:.1%}", f"{sets:.1%}", f"{shared:.1%}")
    print()


def measure_catalog(data: str, products: int) -> None:
    """A generated catalog: what it costs once."""
    _row(f"{products:,} generated products", "value")
    _row("---", "---")
    folder = _timed("write the data files", lambda: generated_folder(CatalogOptions(products=products)))
    catalog = _timed("clean and store the catalog", lambda: Catalog(find_files(folder)))
    goals = _timed("draw and shuffle the goals", lambda: Goals(catalog, "synthetic", 233))
    _row("goals", f"{len(goals):,}")
    _row("peak memory, MiB", f"{_peak_mib():.0f}")
    print()
    _row("engine", "build, s", "peak memory, MiB", "open, ms", "search, ms")
    _row(*["---"] * 5)


def measure_engine(data: str, products: int, engine: str) -> None:
    """One engine over the generated catalog."""
    catalog = Catalog(find_files(generated_folder(CatalogOptions(products=products))))
    goals = Goals(catalog, "synthetic", 233)
    build_s, _ = _clocked(lambda: open_index(engine, catalog))  # pyright: ignore[reportArgumentType]
    peak_mib = _peak_mib()
    started_s = time.perf_counter()
    index = open_index(engine, catalog)  # pyright: ignore[reportArgumentType]
    open_ms = 1000 * (time.perf_counter() - started_s)
    clock = Clock()
    for number in range(QUERIES):
        query = goals[number].instruction.lower()
        clock.time(lambda: index.search(query, RESULTS))  # noqa: B023
    _row(engine, build_s, f"{peak_mib:.0f}", f"{open_ms:.1f}", clock.summary())


PARTS: dict[str, Callable[..., None]] = {
    "shop": measure_shop,
    "restart": measure_restart,
    "agreement": measure_agreement,
    "catalog": measure_catalog,
    "engine": measure_engine,
}


def _timed(name: str, work: Callable[[], Any]) -> Any:
    seconds, result = _clocked(work)
    _row(f"{name}, s", seconds)
    return result


def _clocked(work: Callable[[], Any]) -> tuple[str, Any]:
    wall_s, processor_s = time.perf_counter(), time.process_time()
    result = work()
    return f"{time.perf_counter() - wall_s:.2f} ({time.process_time() - processor_s:.2f})", result


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
