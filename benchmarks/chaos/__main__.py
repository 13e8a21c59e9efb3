"""`python -m benchmarks.chaos --rounds N --store file|s3|both`: kill tiny campaigns until N kills are done."""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.chaos.campaign import clear_environment
from benchmarks.chaos.play import Mode, Outcome, Reference, Shape, Storage, open_storage, play, undisturbed
from benchmarks.chaos.table import to_markdown

KILLS = (3, 6)
"""Fewest and most kills that a campaign is to meet."""


def main() -> int:
    """0 when every round held, 1 when one did not: its folder is then kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="kills in all, at least (default 10)")
    parser.add_argument("--store", choices=("file", "s3", "both"), default="both")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed and when")
    parser.add_argument("--start-up", action="store_true", help="kill only while the driver starts")
    parser.add_argument("--upload", action="store_true", help="slow uploads, and kill only while there is one")
    parser.add_argument("--ranks", type=int, choices=(1, 2), help="only campaigns with so many (default: in turns)")
    parser.add_argument("--no-serve", action="store_true", help="leave out campaigns that `opid serve` runs")
    parser.add_argument("--out", type=Path, help="write the result there, as Markdown")
    arguments = parser.parse_args()
    if arguments.start_up and arguments.ranks == 2:
        parser.error("--ranks 2: campaigns that are killed at --start-up have 1")
    clear_environment()
    folder = Path(tempfile.mkdtemp(prefix="opid-chaos-"))
    stores = ["file", "s3"] if arguments.store == "both" else [arguments.store]
    only: Mode | None = "start-up" if arguments.start_up else "upload" if arguments.upload else None
    shapes = [
        shape for shape in _shapes(stores, only, not arguments.no_serve) if arguments.ranks in (None, shape.ranks)
    ]
    generator = random.Random(arguments.seed)
    killed: dict[str, Counter[str]] = {store: Counter() for store in stores}
    storages: dict[str, Storage] = {}
    references: dict[tuple[str, int], Reference] = {}
    outcomes: list[Outcome] = []
    began_s = time.monotonic()
    try:
        for store in stores:
            storages[store] = open_storage(store, folder, arguments.seed)
        while sum(len(outcome.kills) for outcome in outcomes) < arguments.rounds:
            shape = shapes[len(outcomes) % len(shapes)]
            storage, key = storages[shape.store], (shape.store, shape.ranks)
            if key not in references:
                _say(f"undisturbed: {shape.store}, {shape.ranks} rank(s)")
                references[key] = undisturbed(storage, folder, f"undisturbed-{shape.store}-{shape.ranks}", shape)
                _check_alike(references)
            name, kills = f"round-{len(outcomes):03d}", generator.randint(*KILLS)
            _say(f"{name}: {shape.store}, {shape.ranks} rank(s), {shape.mode}, {kills} kills")
            count = killed[shape.store]

            def choose(candidates: list[str], count: Counter[str] = count) -> str:
                fewest = min(count[victim] for victim in candidates)
                victim = generator.choice([victim for victim in candidates if count[victim] == fewest])
                count[victim] += 1
                return victim

            outcome = play(storage, folder, name, shape, references[key], kills, generator, choose, _say)
            outcomes.append(outcome)
            _say(f"{name}: {len(outcome.kills)} kills in {outcome.seconds:.0f} s: {outcome.failure or 'all holds'}")
    finally:
        for storage in storages.values():
            storage.close()
    text = to_markdown(
        shlex.join(["python", "-m", "benchmarks.chaos", *sys.argv[1:]]),
        outcomes,
        references,
        time.monotonic() - began_s,
    )
    print("\n" + text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    if any(outcome.failure for outcome in outcomes):
        return 1
    shutil.rmtree(folder)
    return 0


def _shapes(stores: list[str], only: Mode | None, serve: bool) -> list[Shape]:
    """The kinds of rounds, in the order in which they take turns."""
    if only:
        return [Shape(store, ranks, only) for ranks in ((1,) if only == "start-up" else (1, 2)) for store in stores]
    modes: list[tuple[Mode, int]] = [
        ("command", 2),
        ("command", 1),
        *([("served", 2)] if serve else []),
        ("command", 2),
        ("start-up", 1),
    ]
    return [Shape(store, ranks, mode) for mode, ranks in modes for store in stores]


def _check_alike(references: dict[tuple[str, int], Reference]) -> None:
    """Where the store lies changes nothing of what a campaign makes."""
    for (store, ranks), reference in references.items():
        if reference.result != next(other.result for (_, r), other in references.items() if r == ranks):
            raise SystemExit(f"undisturbed campaigns of {ranks} rank(s) differ between {store} and the other store")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
