"""What is lost on a cluster, what is said of it, and after how many seconds: a table in Markdown.

    python -m benchmarks.cluster_faults --out docs/measurements/cluster_faults.md

Three local raylets (one of them the head), objects that count instead of engines and learners. Takes about five minutes
and needs the extra `ray`; Linux, one user's processes alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import psutil

from infra import ray_nodes
from infra.ray_hosting import RayGroup, RayPlaces
from opid_core.errors import InfrastructureError
from tasks.version import code_version
from tests.clusters import Cluster, raylets

START_S = 300.0
SHOWN = 400
"""Characters of an error: Ray's own text goes on for long."""
AFTER_S = 2.0
"""A fault comes so long after the call began: then the driver has heard the first log lines."""
ROOT = Path(__file__).parents[1]
DRIVER = """
import psutil, sys
from infra import ray_nodes
from infra.ray_hosting import RayPlaces
def tell(*what):
    print("told", *what, flush=True)
ray_nodes.connect(sys.argv[1], tell)
places = RayPlaces([{"CPU": 1}] * 2, 300.0)
group = places.group("counter", "tests.hosted:Counter", 5, seats=[0, 1], envs=[{}, {}])
group.call("add", 1)
tell(*places.process_ids, *(c.pid for p in places.process_ids for c in psutil.Process(p).children()))
group.call("say_and_hang", on_progress=tell)
"""


@contextmanager
def counting(places: RayPlaces) -> Iterator[RayGroup]:
    """A group with a rank in each place."""
    count = len(places.process_ids)
    group = places.group("counter", "tests.hosted:Counter", 5, seats=[*range(count)], envs=[{}] * count)
    try:
        yield group
    finally:
        group.kill()


def is_running(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def seconds_until_gone(process_ids: list[int], limit_s: float = 60.0) -> str:
    """How long until none of them runs; which do after `limit_s` seconds."""
    began_s = time.monotonic()
    while left := [one for one in process_ids if is_running(one)]:
        if time.monotonic() > began_s + limit_s:
            return f"still there after {limit_s:.0f} s: {len(left)}"
        time.sleep(0.05)
    return f"{time.monotonic() - began_s:.1f} s"


def below(process_ids: list[int]) -> list[int]:
    """They, and all that they started."""
    ids = [*process_ids]
    for one in process_ids:
        with suppress(psutil.NoSuchProcess):
            ids += [child.pid for child in psutil.Process(one).children(recursive=True)]
    return ids


def struck(places: RayPlaces, strike: Callable[[], None]) -> tuple[str, str]:
    """The seconds from a fault in a call to its error, and the error."""
    at_s = [0.0]

    def fault() -> None:
        at_s[0] = time.monotonic()
        strike()

    with counting(places) as group:
        group.call("add", 1)
        threading.Timer(AFTER_S, fault).start()
        try:
            group.call("say_and_hang", on_progress=lambda *_: None)
        except InfrastructureError as error:
            return f"{time.monotonic() - at_s[0]:.1f} s", f"InfrastructureError: {error}"
    raise AssertionError("no error came")


def raylet_of(place: int) -> int:
    """The raylet whose actor a place is."""
    return psutil.Process(place).ppid()


def row(what: str, seconds: str, gone: str, text: str) -> str:
    """A line of the page."""
    named = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)
    shown = " ".join(named.replace("|", "\\|").split())
    return f"| {what} | {seconds} | {gone} | {shown[:SHOWN] + ' ...' * (len(shown) > SHOWN)} |"


def lost_actors(cluster: Cluster) -> Iterator[str]:
    """A hosted process, then its actor, by SIGKILL; then an actor while its raylet goes on."""
    for what in ("the hosted process", "the actor"):
        places = RayPlaces([{"CPU": 1}] * 2, START_S)
        processes = below(places.process_ids)
        victim = places.process_ids[1]

        def strike(victim: int = victim, what: str = what) -> None:
            target = psutil.Process(victim).children()[0].pid if what == "the hosted process" else victim
            os.kill(target, signal.SIGKILL)

        seconds, text = struck(places, strike)
        places.close()
        yield row(f"SIGKILL of {what}", seconds, seconds_until_gone(processes), text)


def lost_raylets(cluster: Cluster) -> Iterator[str]:
    """A raylet frozen, then another one killed; neither is the head's."""
    head = {child.pid for child in psutil.Process(cluster.raylets[0].pid).children(recursive=True)}
    for what, number in (("SIGSTOP (frozen)", signal.SIGSTOP), ("SIGKILL", signal.SIGKILL)):
        places = RayPlaces([{"CPU": 2}] * len(ray_nodes.nodes()), START_S)
        victim = next(one for one in places.process_ids if raylet_of(one) not in head)
        raylet, processes = raylet_of(victim), below(places.process_ids)
        seconds, text = struck(places, lambda raylet=raylet, number=number: os.kill(raylet, number))
        places.close()
        others = [one for one in processes if one not in below([victim])]
        gone = f"others {seconds_until_gone(others)}"
        if number == signal.SIGSTOP:
            os.kill(raylet, signal.SIGCONT)
            gone += ", its own once it thawed"
        yield row(f"{what} of a raylet", seconds, f"{gone} {seconds_until_gone(processes)}", text)
        again = RayPlaces([{"CPU": 1}], START_S)
        with counting(again) as group:
            assert group.call("add", 1) == 6
        again.close()


def told_by(driver: subprocess.Popen[str]) -> Iterator[str]:
    """What `DRIVER` tells, between what Ray prints there of nodes that were lost before."""
    assert driver.stdout is not None
    return (line.removeprefix("told").strip() for line in driver.stdout if line.startswith("told "))


def lost_drivers(cluster: Cluster) -> Iterator[str]:
    """The driver, then the head, whose loss ends the driver."""
    for what in ("the driver", "the head (its GCS)"):
        command = [sys.executable, "-c", DRIVER, cluster.address]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        notes = told_by(driver)
        processes = [int(one) for one in next(notes).split()]
        next(notes)  # it hangs now
        began_s = time.monotonic()
        if what == "the driver":
            driver.kill()
        else:
            ray_nodes.disconnect()
            (head,) = cluster.raylets[:1]
            children = psutil.Process(head.pid).children(recursive=True)
            next(child for child in children if "gcs_server" in child.name()).kill()
        code = driver.wait(timeout=180)
        seconds = f"{time.monotonic() - began_s:.1f} s to the driver's end"
        answer = "; ".join(notes) or "nothing"
        yield row(
            f"SIGKILL of {what}", seconds, seconds_until_gone(processes), f"{answer}; the driver ends with code {code}"
        )


PAGE = """# Faults on a cluster

Made by `python -m benchmarks.cluster_faults --out docs/measurements/cluster_faults.md` on a machine with {cores} cores
and a load of {load:.0f} at the start, so the seconds are upper bounds: three local raylets, Ray {ray} with its default
health check, a group with a rank in each place that hangs in a call when the fault comes. One run of each, OPID
{version}. HOST stands for the name of the machine.

| lost | seconds to the error | processes gone after | what is said |
|---|---|---|---|"""
FOOT = """
After the frozen raylet and after the killed one a new group was made on the nodes that were left, and answered. The
head's loss ends the driver by Ray's own hand, past every `except` ([what is lost](../cluster.md#what-is-lost))."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write; Ray itself writes to the terminal")
    out: Path = parser.parse_args().out
    version = code_version()  # before the page itself is a change
    with out.open("w", encoding="utf-8") as page, raylets(3, cpus=2) as cluster:
        ray = importlib.metadata.version("ray")
        print(PAGE.format(cores=os.cpu_count(), load=os.getloadavg()[0], ray=ray, version=version), file=page)
        ray_nodes.connect(cluster.address)
        try:
            for line in chain(lost_actors(cluster), lost_raylets(cluster), lost_drivers(cluster)):
                print(line, file=page, flush=True)
        finally:
            ray_nodes.disconnect()  # else Ray ends this process before an error of it is printed
        print(FOOT, file=page)


if __name__ == "__main__":
    main()
