"""What a call and an array take over each hosting: this machine's sockets, and Ray on the same machine.

    python -m benchmarks.hosting --rounds 5 --mib 16

The hostings are asked in turns. An empty call tells what hosting costs by itself; an array goes there (an argument) or
comes back (a result), whole, in the time of its call.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

from infra.groups import Group
from infra.hosting import HostedGroup
from infra.ray_hosting import RayPlaces
from infra.ray_nodes import connect
from tests.clusters import START_TIMEOUT_S, raylets

FACTORY = "benchmarks.hosting:Echo"


class Echo:
    """The hosted object."""

    def take(self, array: np.ndarray) -> int:
        """The size of what came."""
        return len(array)

    def give(self, size: int) -> np.ndarray:
        """An array of so many bytes."""
        return np.zeros(size, np.uint8)

    def nothing(self) -> None:
        """An empty call."""


@contextmanager
def on_ray() -> Iterator[Group]:
    """A group on the one node of a cluster that runs for it."""
    with raylets(1) as cluster:
        connect(cluster.address)
        places = RayPlaces([{"CPU": 1.0}], START_TIMEOUT_S)
        try:
            yield places.group("echo", FACTORY, seats=[0], envs=[{}])
        finally:
            places.close()


@contextmanager
def on_sockets() -> Iterator[Group]:
    """A group of this machine."""
    group = HostedGroup("echo", FACTORY)
    try:
        yield group
    finally:
        group.kill()


def measured(group: Group, calls: int, mib: int) -> dict[str, float]:
    """Calls a second, and MiB/s of an array to the object and back from it."""
    size = mib * 2**20
    array = np.zeros(size, np.uint8)
    rates = {}
    start_s = time.perf_counter()
    for _ in range(calls):
        group.call("nothing")
    rates["empty calls/s"] = calls / (time.perf_counter() - start_s)
    start_s = time.perf_counter()
    if group.call("take", array) != size:
        raise AssertionError("the array did not arrive")
    rates[f"{mib} MiB there, MiB/s"] = mib / (time.perf_counter() - start_s)
    start_s = time.perf_counter()
    if len(group.call("give", size)) != size:
        raise AssertionError("the array did not come back")
    rates[f"{mib} MiB back, MiB/s"] = mib / (time.perf_counter() - start_s)
    return rates


def table(rounds: Mapping[str, list[dict[str, float]]]) -> str:
    """Medians and ranges of the rounds of each hosting."""
    names = list(next(iter(rounds.values()))[0])
    lines = [["hosting", *names], ["---"] * (1 + len(names))]
    for hosting, repeats in rounds.items():
        values = [[one[name] for one in repeats] for name in names]
        lines.append([hosting, *(f"{statistics.median(v):,.0f} ({min(v):,.0f} to {max(v):,.0f})" for v in values)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=500, help="empty calls of a round")
    parser.add_argument("--mib", type=int, default=16, help="size of the array; Ray's store here holds 76 MiB")
    given = parser.parse_args()
    with ExitStack() as open_groups:
        groups = {"sockets": open_groups.enter_context(on_sockets()), "Ray": open_groups.enter_context(on_ray())}
        for group in groups.values():
            measured(group, 20, given.mib)  # what is only done once
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in groups}
        for _ in range(given.rounds):
            for name, group in groups.items():
                rounds[name].append(measured(group, given.calls, given.mib))
    print(table(rounds), end="")


if __name__ == "__main__":
    main()
