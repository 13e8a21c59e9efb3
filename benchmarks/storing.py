"""What storing in the background saves: the same campaign with and without, one after the other, on a slow store.

    python -m benchmarks.storing --upload-s 10 --iterations 4 --rounds 2 --out storing.md

An optimizer state is on its way for so many seconds more than this machine's disk takes (`benchmarks.slow_upload`);
engine, learner, gates and flow are the campaign's own. The last iteration, with no rollout to wait beside, is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from infra.manifest import Manifest
from infra.store import find_campaign, manifests, read_table
from tests.integration.campaigns import CONFIG, REPOSITORY

CHANGES = {
    "environment.max_steps": 8,
    "rollout.tasks_per_iteration": 4,
    "rollout.group_size": 4,
    "evaluation.tasks": 1,
    "warm_start.episodes": 10,
}
SHOWN = ("seconds/iteration_s", "seconds/rollout_s", "seconds/update_s", "seconds/store_policy_s")


def played(
    folder: Path, background: bool, iterations: int, upload_s: float
) -> tuple[list[Manifest], list[list[float]]]:
    """The chain of a campaign, and the numbers `SHOWN` of each of its iterations but the last."""
    (config := folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    values = {**CHANGES, "iterations": iterations, "root": folder, "storage.background": str(background).lower()}
    options = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "benchmarks.slow_upload", str(upload_s), "train", str(config), *options]
    with open(folder / "output.txt", "ab") as output:
        subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
    store = find_campaign(folder, yaml.safe_load(CONFIG)["campaign"])
    chain, rows = manifests(store), []
    for manifest in chain[1:-1]:
        of = {row["name"]: row["value"] for row in read_table(store, manifest.tables["metrics"]).to_pylist()}
        rows.append([of[name] for name in SHOWN])
    return chain, rows


def main() -> None:
    """Play and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storing", description=__doc__)
    parser.add_argument("--upload-s", type=float, default=10.0, help="seconds that a state takes more (default 10)")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="campaigns of each kind, in turns (default 2)")
    parser.add_argument("--out", type=Path, help="write the result there, as Markdown")
    arguments = parser.parse_args()
    seconds: dict[bool, list[list[float]]] = {False: [], True: []}
    contents = set()
    for number in range(arguments.rounds):
        for background in seconds:
            with tempfile.TemporaryDirectory(prefix=f"opid-storing-{number}-") as folder:
                chain, rows = played(Path(folder), background, arguments.iterations, arguments.upload_s)
            seconds[background] += rows
            contents.add(chain[-1].content)
            print(f"background {background}: {[[round(value, 1) for value in row] for row in rows]}", flush=True)
    names = [name.removeprefix("seconds/").removesuffix("_s") for name in SHOWN]
    lines = [f"| background | iterations | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for background, rows in seconds.items():
        spread = [f"{statistics.mean(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in zip(*rows, strict=True)]
        lines.append(f"| {'on' if background else 'off'} | {len(rows)} | {' | '.join(spread)} |")
    lines += ["", f"Seconds, means (least to most). Contents of all campaigns equal: {len(contents) == 1}.", ""]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
