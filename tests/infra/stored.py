"""What the tests of the store write: small tables, manifests and chains."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from infra.manifest import GateResult, Manifest, new_manifest
from infra.store import CampaignStore, commit, list_objects, manifests, new_attempt, put_folder, write_table
from opid_core import schema

CONFIG = {"campaign": "demo", "iterations": 3, "seed": 0, "learner": {"learning_rate": 1e-6, "betas": [0.9, 0.999]}}


class Root(NamedTuple):
    """Where a store lies."""

    address: str
    endpoint_url: str | None


def scores_table(first: float = -0.5, step: int = 0) -> pa.Table:
    row = {
        "trajectory_id": "a",
        "step": step,
        "old_log_probs": [first, -1.25],
        "skill_log_probs": None,
        "added_log_probs": None,
        "reference_log_probs": [-0.5, -1.0],
        "skill_prompt_ids": None,
        "history_dropped": 0,
        "outcome_advantage": 1.0,
        "step_advantage": 0.0,
        "skill_advantages": [0.0, 0.0],
        "trained": True,
    }
    return schema.from_rows("scores", [row])


def metrics_table(seconds: float = 1.0, value: float = 0.5) -> pa.Table:
    rows = [("rollout/return", value), ("seconds/rollout_s", seconds)]
    return schema.from_rows("metrics", [{"iteration": 0, "name": n, "value": v} for n, v in rows])


def make_manifest(
    store: CampaignStore,
    tmp_path: Path,
    previous: Manifest | None,
    *,
    weights: bytes = b"weights",
    seconds: float = 1.0,
) -> Manifest:
    """The manifest of the iteration after `previous`, its parts written under an attempt of its own."""
    iteration = 0 if previous is None else previous.iteration + 1
    attempt = new_attempt()
    local = tmp_path / f"local-{attempt}"
    (local / "optimizer").mkdir(parents=True)
    (local / "model.safetensors").write_bytes(weights)
    (local / "optimizer" / "state.pt").write_bytes(attempt.encode())
    return new_manifest(
        iteration=iteration,
        tables={
            "scores": write_table(store, "scores", iteration, attempt, scores_table()),
            "metrics": write_table(store, "metrics", iteration, attempt, metrics_table(seconds)),
        },
        policy=put_folder(store, local, f"policies/{iteration:06d}/{attempt}"),
        gates=[GateResult(table="scores", passed=True, expectations=())],
        config_hash="c" * 64,
        code_version="0.1.0",
        seeds={"iteration": 5},
        prefect_run_id=attempt,
        metrics={"rollout/return": 0.5},
        created_at="2026-01-01T00:00:00.000+00:00",
        previous=previous,
    )


def make_chain(store: CampaignStore, tmp_path: Path, length: int) -> list[Manifest]:
    for _ in range(length):
        chain = manifests(store)
        commit(store, make_manifest(store, tmp_path, chain[-1] if chain else None))
    return manifests(store)


def all_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def stored_paths(store: CampaignStore, prefix: str = "") -> list[str]:
    return [info.path for info in list_objects(store, prefix)]
