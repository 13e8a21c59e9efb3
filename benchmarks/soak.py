"""One campaign of very many very small iterations: what grows with the length of its chain?

    python -m benchmarks.soak --iterations 1000 --folder soak --out soak.md
    python -m benchmarks.soak --iterations 20 --lengthen 1000 --folder chain --out chain.md

Flow, tasks, Prefect's server, store, gates, manifests, tracking and reports are the campaign's own; engine, tokenizer
and learner answer at once, in the driver's process. The gates take most of such an iteration's time, whatever the rows:
after `--gates-until` commits they give each table the result that its last one got. At the end the commands run on the
long chain, and one more iteration after it. With `--lengthen` the iterations are then copied under new names and
committed one after the other until the chain has that many: for the commands it is a long one, made in a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stand_ins import ACTIONS, InstantCompletion, InstantTokenizer, memory, store_policy
from infra.manifest import FolderRecord
from infra.store import CampaignStore, weights_only
from opid_core.config import CampaignConfig
from opid_core.hub import policy_folder
from opid_core.samples import Ragged, Samples

NAME = "soak"
PROMPT_TOKENS, RESPONSE_TOKENS = 64, 8
COMMANDS = (["status", NAME], ["verify", NAME], ["audit", NAME])
CONFIG = f"""
campaign: {NAME}
root: {{root}}
policy: {{policy}}
iterations: {{iterations}}
environment: {{{{name: "benchmarks.stand_ins:store_room", max_steps: 3}}}}
rollout: {{{{tasks_per_iteration: 2, group_size: 2, max_prompt_tokens: {PROMPT_TOKENS},
  max_response_tokens: {RESPONSE_TOKENS}}}}}
analyzer: {{{{backend: hindsight}}}}
evaluation: {{{{tasks: 2, every: 50}}}}
storage: {{{{optimizer_states: 2}}}}
"""


class SeededEngine:
    """Answers at once with tokens that are a function of the request's seed alone; a third of them open the door."""

    def __init__(self) -> None:
        self.tokens_generated = 0
        self._waiting: list[InstantCompletion] = []

    def submit(self, request_id: str, prompt_ids: Sequence[int], *, seed: int, **sampling: Any) -> None:
        generator = np.random.default_rng(seed)
        ids = generator.integers(0, 150_000, RESPONSE_TOKENS).tolist()
        ids[0] = 0 if ids[0] % 3 == 0 else 1 + ids[0] % (len(ACTIONS) - 1)
        log_probs = -generator.exponential(0.5, RESPONSE_TOKENS)
        self._waiting.append(InstantCompletion(request_id, ids, log_probs.tolist()))

    def begin(self) -> None:
        """Nothing to work ahead on."""

    def step(self) -> list[InstantCompletion]:
        done, self._waiting = self._waiting, []
        self.tokens_generated += sum(len(completion.token_ids) for completion in done)
        return done


class InProcessWorkers:
    """In place of `tasks.workers.Workers`: engine and learner without processes of their own."""

    micro_batch_tokens, has_engine, is_storing = 16384, True, False

    def __init__(self, config: CampaignConfig, store: CampaignStore) -> None:
        self._base = policy_folder(config.policy or "")
        self._tokenizer, self._engine = InstantTokenizer(PROMPT_TOKENS), SeededEngine()

    def tokenizer(self, policy: Any) -> InstantTokenizer:
        return self._tokenizer

    def engine(self, policy: Any) -> SeededEngine:
        return self._engine

    def learner(self, policy: Any) -> InProcessWorkers:
        return self

    def score(self, prompts: Ragged, responses: Ragged, reference: Path | None = None) -> Ragged:
        shift = np.repeat(0.01 * prompts.values[prompts.offsets[:-1]], responses.lengths)  # 2 under a skill, else 1
        return Ragged((-0.1 - responses.values % 7 / 10 - shift).astype(np.float32), responses.offsets)

    def reference_score(self, policy: Any, reference: Any) -> Callable[[Ragged, Ragged], Ragged]:
        return self.score

    @contextmanager
    def updating(self, policy: Any):
        yield self

    def updated(self, policy: Any) -> None:
        self.is_storing = True

    def stored(self) -> FolderRecord:
        self.is_storing = False
        return self._stored

    def update(self, samples: Samples, *, seed: int, **options: Any) -> dict[str, float]:
        self._seed = seed
        return {"optimizer_steps": 1.0, "tokens": float(len(samples.response_ids.values)), "kl_k3": 0.0}

    def export(self, folder: Path) -> None:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(self._base / name, folder / name)
        (folder / "model.safetensors").write_bytes(b"weights after %d" % self._seed)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "state.pt").write_bytes(b"state")

    def store(self, store: CampaignStore, uri: str) -> FolderRecord:
        self._stored = store_policy(self, store, uri)
        return weights_only(self._stored)

    def shrink_micro_batches(self) -> None:
        """Nothing to shrink."""

    def close_engine(self) -> None:
        """None is to be killed."""

    def close(self) -> None:
        self.is_storing = False


@dataclass(frozen=True)
class Sample:
    """What a campaign holds after `iteration` commits; sizes in bytes, memory resident."""

    iteration: int
    seconds: float
    """Wall clock of one iteration, the mean since the sample before."""
    cpu_seconds: float
    """Of the driver and Prefect's server together, likewise."""
    driver: int
    server: int
    database: int
    """Prefect's, with its write-ahead log."""
    runs: int
    """Flow runs in it."""
    files: int
    """Of the store."""
    stored: int


def drive(folder: Path, iterations: int, every: int, gates_until: int) -> None:
    """Run or resume the campaign in this process; appends a line of JSON to `samples.jsonl` every so many commits."""
    from flows import settings

    settings.apply(folder / "runs")
    import tasks.iteration
    from flows.campaign import run_campaign
    from flows.prefect_api import prefect_api
    from opid_core.config import load_config
    from tasks import progress

    tasks.iteration.Workers = InProcessWorkers  # pyright: ignore[reportAttributeAccessIssue]
    check, results = tasks.iteration.gates.check, {}

    def checked(name: str, *given: Any, **limits: Any) -> Any:
        if committed[0] < gates_until or name not in results:
            results[name] = check(name, *given, **limits)
        return results[name]

    tasks.iteration.gates.check = checked
    config = load_config(folder / "soak.yaml", [f"iterations={iterations}"])
    last, committed = [0, time.monotonic(), cpu_s()], [0]

    def on_event(event: progress.Progress) -> None:
        if event.event == "progress":
            return
        if event.event != "committed" or event.iteration is None:
            print(event.note, flush=True)
            return
        committed[0] = event.iteration
        if event.iteration % every and event.iteration != iterations:
            return
        now_s, used_s, count = time.monotonic(), cpu_s(), max(1, event.iteration - last[0])
        sample = measure(folder, event.iteration, (now_s - last[1]) / count, (used_s - last[2]) / count)
        last[:] = event.iteration, time.monotonic(), cpu_s()
        with open(folder / "samples.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(sample)) + "\n")
        print(sample, flush=True)

    progress.listen(on_event)
    with prefect_api():
        run_campaign(config)


def measure(folder: Path, iteration: int, seconds: float, cpu_seconds: float) -> Sample:
    """The sample of this moment."""
    home = folder / "runs" / ".prefect" / "home"
    with closing(sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True)) as database:
        ((runs,),) = database.execute("SELECT count(*) FROM flow_run")
    files = [path for path in (folder / "runs" / NAME).rglob("*") if path.is_file()]
    return Sample(
        iteration=iteration,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        driver=memory()["VmRSS"],
        server=sum(process.memory_info().rss for process in servers()),
        database=sum(path.stat().st_size for path in home.glob("prefect.db*")),
        runs=runs,
        files=len(files),
        stored=sum(path.stat().st_size for path in files),
    )


def servers() -> list[Any]:
    """Prefect's server of this process."""
    import psutil

    return [child for child in psutil.Process().children(recursive=True) if "flows.prefect_api" in child.cmdline()]


def cpu_s() -> float:
    """CPU seconds that this process and its server have used."""
    there = [process.cpu_times() for process in servers()]
    return time.process_time() + sum(times.user + times.system for times in there)


def lengthen(folder: Path, iterations: int) -> None:
    """Commit copies of the campaign's iterations, with the newest policy, until it has so many."""
    from infra.manifest import Manifest, new_manifest
    from infra.store import (
        commit,
        create_object,
        find_campaign,
        key_of,
        list_objects,
        manifests,
        new_attempt,
        read_file,
        read_object,
    )

    store = find_campaign(folder / "runs", NAME)
    chain = manifests(store)
    committed, policy, previous = chain[1:], chain[-1].policy, chain[-1]

    def moved(record: Any, path: str) -> Any:
        create_object(store, path, read_file(store, record))
        return record.model_copy(update={"path": path})

    for number in range(len(chain), iterations + 1):
        source, attempt = committed[(number - 1) % len(committed)], new_attempt()
        for info in list_objects(store, f"_stages/{key_of(source.iteration)}"):
            data = read_object(store, info.path) or b""
            create_object(store, info.path.replace(key_of(source.iteration), key_of(number), 1), data)
        tables = {
            name: moved(record, f"{name}/iteration={key_of(number)}/{attempt}/part-0.parquet")
            for name, record in source.tables.items()
        }
        uri = f"policies/{key_of(number)}/{attempt}"
        files = tuple(moved(file, f"{uri}/{policy.name_of(file)}") for file in policy.files)
        copied = {"config_hash", "preset", "execution", "code_version", "seeds", "prefect_run_id"}
        copied |= {"metrics", "created_at"}
        manifest: Manifest = new_manifest(
            iteration=number,
            tables=tables,
            policy=policy.model_copy(update={"uri": uri, "files": files}),
            gates=[*source.gates.values()],
            previous=previous,
            **{name: getattr(source, name) for name in copied},
        )
        previous, _ = commit(store, manifest)


def timed(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds of a command from its start to its end: of the clock, and of CPU with its children's. Raises
    CalledProcessError."""
    began_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "commands.txt", "ab") as output:
        subprocess.run([sys.executable, "-m", *arguments], stdout=output, stderr=output, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(samples: Sequence[Sample]) -> list[str]:
    """The samples, in Markdown."""
    head = "| commits | s an iteration | CPU s | driver MB | server MB | database MB | flow runs | files | store MB |"
    rows = [
        f"| {s.iteration:,} | {s.seconds:.2f} | {s.cpu_seconds:.2f} | {s.driver / 1e6:.0f} | {s.server / 1e6:.0f} "
        f"| {s.database / 1e6:.1f} | {s.runs:,} | {s.files:,} | {s.stored / 1e6:.1f} |"
        for s in samples
    ]
    return [head, "|" + " --- |" * 9, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="how many commits lie between two samples")
    parser.add_argument("--gates-until", type=int, default=1_000_000, metavar="COMMITS")
    parser.add_argument("--lengthen", type=int, default=0, metavar="ITERATIONS")
    parser.add_argument("--folder", type=Path, required=True, help="new folder; what ran there is gone on with")
    parser.add_argument("--out", type=Path, help="write the result there, as Markdown")
    parser.add_argument("--drive", action="store_true", help="only the driver")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    if options.drive:
        drive(folder, options.iterations, options.every, options.gates_until)
        return
    if not folder.exists():
        from tests.factories import make_tiny_policy_folder

        folder.mkdir(parents=True)
        policy = make_tiny_policy_folder(folder / "policy")
        text = CONFIG.format(root=folder / "runs", policy=policy, iterations=options.iterations)
        (folder / "soak.yaml").write_text(text, encoding="utf-8")
    os.environ["COLUMNS"] = "200"
    again = ["benchmarks.soak", "--drive", "--folder", str(folder), "--every", str(options.every)]
    again += ["--gates-until", str(options.gates_until), "--iterations"]
    whole_s, _ = timed([*again, str(options.iterations)], folder)
    samples = [Sample(**json.loads(line)) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    lines = [f"{options.iterations:,} iterations in {whole_s / 60:.0f} minutes.", "", *table(samples), ""]
    if options.lengthen:
        lengthen(folder, options.lengthen)
    iterations, root = max(options.iterations, options.lengthen), ["--root", str(folder / "runs")]
    commands = {f"`opid {command[0]}`": ["flows.cli", *command, *root] for command in COMMANDS}
    commands["a driver that finds nothing to do"] = [*again, str(iterations)]
    commands["a driver that resumes and makes one iteration more"] = [*again, str(iterations + 1)]
    lines += [f"| command on the chain of {iterations:,} | seconds | CPU s |", "| --- | --- | --- |"]
    for name, command in commands.items():
        seconds, cpu_seconds = timed(command, folder)
        lines.append(f"| {name} | {seconds:.1f} | {cpu_seconds:.1f} |")
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
