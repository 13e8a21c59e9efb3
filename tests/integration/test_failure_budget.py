"""An analyzer that is away for a whole attempt, then fails for a few: a tiny campaign, a scripted endpoint. What the
attempt after it committed is what comes out where nothing ever failed: the iteration is run again to see. Its policy is
the one whose output layer is its embeddings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra import stages
from infra.manifest import Manifest, new_manifest, to_bytes
from infra.store import CampaignStore, new_attempt, put_object, read_table, write_table
from opid_core.architectures import names_of_tied
from opid_core.policies import load_model, save_policy
from opid_core.schema import from_rows
from tests.chat_server import Answer, ChatServer, chat_server
from tests.factories import all_files
from tests.integration.campaigns import LIMIT_S, REPOSITORY, Campaign, finish, opened, start

# Slow: failed rows and the gate on them are in tests/tasks/gates/test_gate_limits.py, further attempts in
# tests/flows/test_campaign.py, a tied policy's engine in test_engine.py.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


class Analyst:
    """Answers no episode while `outage` says so. Then it answers each with skills of its own, but for the first: that
    one never."""

    def __init__(self) -> None:
        self.never: str | None = None
        self.outage: Callable[[], bool] = lambda: False

    def __call__(self, body: dict[str, Any]) -> Answer:
        episode = json.dumps(body["messages"][:2])
        if len(body["messages"]) == 1:  # the check before the campaign
            return Answer(content="{}")
        if self.outage():
            return Answer(status=500, content="the analyzer is away")
        self.never = self.never or episode
        if episode == self.never:
            return Answer(content="I would rather not.")
        reply = {
            "episode_summary": "It was tried.",
            "episode_skill": f"Look into everything that is closed, {len(episode)} times.",
            "step_skills": {"0": "Open what stands next to you."},
        }
        return Answer(content=json.dumps(reply))


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture(scope="module")
def tied(campaign, tmp_path_factory) -> Path:
    """The tiny campaign's first policy with its embeddings as its output layer."""
    folder, model = tmp_path_factory.mktemp("tied"), load_model(campaign.policy(0), torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    save_policy(model, folder, files_from=campaign.policy(0))
    return folder


@pytest.fixture(scope="module")
def disturbed(server, tied, prefect_server, tmp_path_factory) -> Campaign:
    """The campaign whose analyzer was away for the first attempt at its iteration."""
    root, analyst = tmp_path_factory.mktemp("runs"), Analyst()
    stages_of_it = root / "tiny" / "_stages" / "000001" / "000"
    analyst.outage = lambda: (stages_of_it / "rollout.json").exists() and not (stages_of_it / "failed.json").exists()
    server.answer = analyst
    process = start(
        root,
        prefect_server,
        f"policy={tied}",
        "iterations=1",
        "rollout.tasks_per_iteration=4",
        "rollout.group_size=5",
        "learner.kl_coefficient=0",
        "evaluation.tasks=1",
        "recovery.iteration_attempts=2",
        "analyzer.backend=llm",
        f"analyzer.llm.base_url={server.url}",
        "analyzer.llm.concurrency=1",  # the same episode is the first in every run
        "analyzer.llm.max_retries=0",
    )
    return opened(root, finish(process, root))


def test_a_few_failures_are_rows(disturbed):
    skills = disturbed.rows("skills", 1)
    failed = [row for row in skills if row["kind"] == "failed"]
    analyzed = {row["trajectory_id"] for row in skills}
    assert len(analyzed) == 20
    assert 1 <= len(failed) <= 2  # trajectories alike are asked about once
    assert {row["error"] for row in failed} == {
        "the reply holds no JSON object; asked again: the reply holds no JSON object"
    }
    observed = [seen for _, column, seen in disturbed.chain[1].gates["skills"].held if column == "failure"]
    assert observed == [f"{len(failed)} of 20 rows"]


def test_an_outage_fails_the_gate_and_the_iteration_is_tried_anew(disturbed):
    (failure,) = stages.failures(disturbed.store, 1)
    assert failure["reason"].startswith("FailureBudgetExceeded: table skills: ")
    assert "on column failure failed (20 of 20 rows)" in failure["reason"]
    assert "HTTP 500: the analyzer is away" in failure["reason"]
    assert "1: attempt 1 given up: FailureBudgetExceeded" in disturbed.printed
    assert disturbed.chain[1].degraded == ()
    assert {row["kind"] for row in disturbed.rows("skills", 1)} == {"episode", "step", "failed"}


def test_a_tied_policy_is_trained_and_stays_tied(disturbed):
    """The engine, with an output layer of its own, plays what the learner has: within 1e-4 of its log-probs. After a
    push: test_engine.py."""
    folders = [disturbed.policy(version) for version in range(2)]
    for folder in folders:
        assert len(names_of_tied(load_model(folder, torch.float32))) == 2
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    assert [name for name in (*before, *after) if name.startswith("lm_head")] == []
    assert not before["model.embed_tokens.weight"].equal(after["model.embed_tokens.weight"])
    metrics = {row["name"]: row["value"] for row in disturbed.rows("metrics", 1)}
    assert metrics["rescore/engine_gap_max"] < 1e-4


def with_another_return(store: CampaignStore, manifest: Manifest, previous: Manifest) -> Manifest:
    """`manifest` as if the first trajectory's return had come out higher by one."""
    rows = read_table(store, manifest.tables["trajectories"]).to_pylist()
    rows[0]["return"] += 1.0
    record = write_table(store, "trajectories", manifest.iteration, new_attempt(), from_rows("trajectories", rows))
    kept = {
        name: getattr(manifest, name)
        for name in ("iteration", "policy", "config_hash", "code_version", "seeds", "prefect_run_id", "metrics")
    }
    return new_manifest(
        **kept,
        tables={**manifest.tables, "trajectories": record},
        gates=list(manifest.gates.values()),
        created_at=manifest.created_at,
        previous=previous,
    )


def test_every_table_and_the_weights_come_out_the_same_where_nothing_fails(disturbed, prefect_server):
    """`opid reproduce`, after one number of the committed iteration was changed: that alone must differ. So the attempt
    that was given up has left no trace in what was committed."""
    store = disturbed.store
    root, folder = store.address().parent, store.address()
    put_object(
        store, "_commits/000001.json", to_bytes(with_another_return(store, disturbed.chain[1], disturbed.chain[0]))
    )
    before = {name: (folder / name).read_bytes() for name in all_files(folder)}
    beside = {path.name for path in root.iterdir()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "reproduce", "tiny", "--iteration", "1", "--root", str(root)],
        cwd=REPOSITORY,
        env={**inherited, **prefect_server, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The analyzer asks a model: its replies may differ." in done.stdout
    found = dict(re.findall(r"│ (\w+) +│ \w+ +│ \w+ +│ (equal|different) +│", done.stdout))
    assert found == {
        **dict.fromkeys(("steps", "skills", "routes", "scores", "weights", "evaluations", "metrics"), "equal"),
        "trajectories": "different",
    }
    value = disturbed.rows("trajectories", 1)[0]["return"]
    assert "trajectories: column return first differs in row 0" in done.stdout
    assert f"committed {value + 1.0}, again {value}\n" in done.stdout
    assert done.stdout.endswith("Not everything is equal.\n")
    assert {name: (folder / name).read_bytes() for name in all_files(folder)} == before
    assert {path.name for path in root.iterdir()} == beside
