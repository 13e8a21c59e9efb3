"""Committing rows as a campaign's iterations, and small hand-made rows, for the tests of commands that look back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models

from infra.manifest import GateResult, Manifest, new_manifest
from infra.store import CampaignStore, commit, new_attempt, put_folder, write_table
from opid_core.schema import from_rows
from tests.tasks.gates.valid_tables import Rows, valid

WORDS = ("<pad>", "<eos>", "put", "take", "mug", "desk", "go", "on")
START_ROWS = {"metrics": [{"iteration": 0, "name": "seconds/start_s", "value": 1.0}]}
"""The tables of a start."""
FIRST, SECOND = "000001-0000-00", "000001-0000-01"


def rows_of_iteration_1() -> Rows:
    """The valid tables with ids as a rollout gives them: `FIRST` won in two steps, `SECOND` failed in one, and its
    analysis too. `FIRST` is scored under its step skill at step 0, under its episode skill at step 1."""
    names = {"a": FIRST, "b": SECOND}
    rows = valid()
    for table in ("steps", "trajectories", "skills", "routes", "scores"):
        for row in rows[table]:
            row["trajectory_id"] = names[row["trajectory_id"]]
    for row, kind in zip(rows["skills"], ("episode", "step0", "failed"), strict=True):
        row["skill_id"] = f"{row['trajectory_id']}/{kind}"
        row["text"] = "" if kind == "failed" else "Take the mug first."
    for row, skill_id in zip(rows["routes"], (f"{FIRST}/step0", f"{FIRST}/episode", None), strict=True):
        row |= {"skill_id": skill_id, "added_skill_id": None}
    for row in rows["scores"]:
        row["added_log_probs"] = None
    return rows


def commit_rows(
    store: CampaignStore,
    tmp_path: Path,
    previous: Manifest | None,
    rows: Rows,
    *,
    gates: Sequence[GateResult] = (),
    degraded: Sequence[str] = (),
    tokenizer: bool | bytes = True,
) -> Manifest:
    """Commit the iteration after `previous` with tables of `rows`, and a policy of a few files.

    The policy's `tokenizer.json` is one of `WORDS`, or of the given bytes, or left out.
    """
    iteration = 0 if previous is None else previous.iteration + 1
    attempt = new_attempt()
    folder = tmp_path / f"policy-{attempt}"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer" / "state.pt").write_bytes(b"moments")
    (folder / "model.safetensors").write_bytes(f"weights {iteration}".encode())
    if isinstance(tokenizer, bytes):
        (folder / "tokenizer.json").write_bytes(tokenizer)
    elif tokenizer:
        vocabulary = {word: number for number, word in enumerate(WORDS)}
        Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")).save(str(folder / "tokenizer.json"))
    manifest = new_manifest(
        iteration=iteration,
        tables={name: write_table(store, name, iteration, attempt, from_rows(name, rows[name])) for name in rows},
        policy=put_folder(store, folder, f"policies/{iteration:06d}/{attempt}"),
        gates=gates,
        config_hash="c" * 64,
        code_version="0.1.0",
        seeds={"iteration": 5},
        prefect_run_id=attempt,
        metrics={},
        created_at="2026-01-01T00:00:00.000+00:00",
        previous=previous,
        degraded=degraded,
    )
    return commit(store, manifest)[0]
