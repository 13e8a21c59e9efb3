"""One way to make a small table, campaign or policy for a test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra import objects
from infra.manifest import GateResult, Manifest, new_manifest
from infra.store import CampaignStore, commit, list_objects, manifests, new_attempt, put_folder, write_table
from opid_core.errors import ConfigError
from opid_core.hashing import canonical_json
from opid_core.schema import TABLES, from_rows

# Tables -----------------------------------------------------------------------------------------------------------

Row = dict[str, Any]
Rows = dict[str, list[Row]]
"""Rows by table."""

_KEYS: Row = {"campaign": "demo", "iteration": 2, "group_id": "g", "trajectory_id": "a", "task_id": "t"}
_DEFAULTS: dict[str, Row] = {
    "steps": {
        **_KEYS,
        "step": 0,
        "task_type": "pick",
        "task_text": "put a mug on a desk",
        "observation": "You see a mug 1.",
        "admissible_actions": ["look"],
        "prompt_text": "Your task: put a mug on a desk",
        "prompt_ids": [1, 2],
        "history_dropped": 0,
        "response_text": "",
        "response_ids": [3],
        "action": "look",
        "is_valid": True,
        "reward": 0.0,
        "done": False,
        "truncated": False,
        "policy_version": 2,
        "seed": 7,
    },
    "trajectories": {**_KEYS, "task_type": "pick", "outcome": "failure", "steps": 1, "tokens": 3, "seconds": 0.5},
    "skills": {
        "skill_id": "a/episode",
        "trajectory_id": "a",
        "kind": "episode",
        "text": "",
        "outcome": "success",
        "analyzer": "hindsight",
        "attempts": 1,
    },
    "routes": {"trajectory_id": "a", "step": 0, "route": "none", "reason": "as planned"},
    "scores": {
        "trajectory_id": "a",
        "step": 0,
        "old_log_probs": [-0.5],
        "history_dropped": 0,
        "outcome_advantage": 1.0,
        "step_advantage": 0.0,
        "trained": True,
    },
    "metrics": {"iteration": 2, "name": "rollout/return", "value": 5.0},
    "evaluations": {
        "policy_version": 3,
        "split": "valid_unseen",
        "temperature": 0.5,
        "repetition": 0,
        "task_id": "t",
        "task_type": "pick",
        "outcome": "success",
        "return": 10.0,
        "steps": 4,
        "valid_actions": 4,
        "admissible_actions": 3,
        "tokens": 40,
        "seed": 5,
    },
}


def row(table: str, **values: Any) -> Row:
    """A row of a table: `values` for what a test is about, the rest plausible and as long as it must be."""
    made: Row = dict.fromkeys(TABLES[table].names) | _DEFAULTS[table] | values
    assert list(made) == TABLES[table].names, f"{table} has no column {set(values) - set(TABLES[table].names)}"
    if table == "steps":
        made |= {"rollout_log_probs": [-0.5] * len(made["response_ids"])} | values
    if table == "trajectories":
        made |= {"return": 10.0 if made["outcome"] == "success" else 0.0} | values
    if table == "scores":
        made |= {"skill_advantages": [0.0] * len(made["old_log_probs"])} | values
    return made


def make_table(name: str, rows: Sequence[Row]) -> pa.Table:
    """A table of `rows`, each filled up by `row`."""
    return from_rows(name, [row(name, **one) for one in rows])


def valid_rows() -> Rows:
    """Tables of iteration 2 that pass every gate: of one group `a` won in two steps, `b` failed in one, and its
    analysis too."""
    steps = [("a", 0, [3, 4]), ("a", 1, [5]), ("b", 0, [3, 6, 7])]
    keys = [{"trajectory_id": trajectory_id, "step": step} for trajectory_id, step, _ in steps]
    plan = "Find the mug first, look at every shelf in turn, then go to a desk with it."
    wrote = "<think>The mug may well be inside of the drawer</think><action>look</action>"
    return {
        "steps": [
            row("steps", **key, response_ids=ids, response_text=wrote)
            for key, (_, _, ids) in zip(keys, steps, strict=True)
        ],
        "trajectories": [
            row("trajectories", trajectory_id="a", outcome="success", steps=2),
            row("trajectories", trajectory_id="b"),
        ],
        "skills": [
            row("skills", skill_id="a/episode", text=plan),
            row("skills", skill_id="a/0", kind="step", step=0, text="Open the drawer."),
            row("skills", skill_id="b/failed", trajectory_id="b", kind="failed", error="no reply"),
        ],
        "routes": [
            row("routes", **keys[0], route="step", skill_id="a/0", added_skill_id="a/episode", placebo="Look around."),
            row("routes", **keys[1], route="episode", skill_id="a/episode"),
            row("routes", **keys[2]),
        ],
        "scores": [
            row(
                "scores",
                **key,
                old_log_probs=[-0.5] * len(ids),
                skill_log_probs=[-0.25] * len(ids) if trajectory_id == "a" else None,
                added_log_probs=[-0.125] * len(ids) if (trajectory_id, step) == ("a", 0) else None,
                placebo_log_probs=[-0.5] * len(ids) if (trajectory_id, step) == ("a", 0) else None,
                reference_log_probs=[-0.75] * len(ids),
                skill_prompt_ids=[1, 9, 2] if trajectory_id == "a" else None,
                skill_advantages=[0.25 if trajectory_id == "a" else 0.0] * len(ids),
            )
            for key, (trajectory_id, step, ids) in zip(keys, steps, strict=True)
        ],
        "metrics": [
            row("metrics"),
            row("metrics", name="undefined", value=None),
            row("metrics", name="rollout/success_micro", value=0.5),
            row("metrics", name="signal/step/above_placebo", value=0.2),
        ],
        "evaluations": [
            row("evaluations", temperature=temperature, task_id=task_id)
            for temperature in (0.5, 1.0)
            for task_id in ("t", "u")
        ],
    }


START_ROWS: Rows = {"metrics": [{"iteration": 0, "name": "seconds/start_s", "value": 1.0}]}
"""The tables of a start."""
FIRST, SECOND = "000001-0000-00", "000001-0000-01"


def named_rows() -> Rows:
    """The valid tables with ids as a rollout gives them: `FIRST` won in two steps, `SECOND` failed in one, and its
    analysis too. `FIRST` is scored under its step skill at step 0, under its episode skill at step 1."""
    names = {"a": FIRST, "b": SECOND}
    rows = valid_rows()
    for table in ("steps", "trajectories", "skills", "routes", "scores"):
        for one in rows[table]:
            one["trajectory_id"] = names[one["trajectory_id"]]
    for one, kind in zip(rows["skills"], ("episode", "step0", "failed"), strict=True):
        one["skill_id"] = f"{one['trajectory_id']}/{kind}"
        one["text"] = "" if kind == "failed" else "Take the mug first."
    for one, skill_id in zip(rows["routes"], (f"{FIRST}/step0", f"{FIRST}/episode", None), strict=True):
        one |= {"skill_id": skill_id, "added_skill_id": None, "placebo": None}
    for one in rows["scores"]:
        one |= {"added_log_probs": None, "placebo_log_probs": None}
    return rows


# Campaigns --------------------------------------------------------------------------------------------------------

CONFIG = {"campaign": "demo", "iterations": 3, "seed": 0, "learner": {"learning_rate": 1e-6, "betas": [0.9, 0.999]}}
"""What a store keeps as config; no `CampaignConfig`."""
WORDS = ("<pad>", "<eos>", "put", "take", "mug", "desk", "go", "on")
"""The vocabulary of a committed policy's tokenizer."""


def scores_table(first: float = -0.5, step: int = 0) -> pa.Table:
    """One row of two tokens, the first with the log-prob `first`."""
    return make_table("scores", [{"step": step, "old_log_probs": [first, -1.25], "reference_log_probs": [-0.5, -1.0]}])


def metrics_table(seconds: float = 1.0, value: float = 0.5) -> pa.Table:
    """One number, and one of the clock's."""
    numbers = {"rollout/return": value, "seconds/rollout_s": seconds}
    return make_table("metrics", [{"iteration": 0, "name": n, "value": v} for n, v in numbers.items()])


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let any store refuse to read or list what lies in folders called `name`, as in those of somebody else."""

    def refusing(ask: Any) -> Any:
        def asked(address: objects.Address, *limits: int) -> Any:
            if f"/{name}" in str(address):
                raise ConfigError(f"{address}: cannot be read: Permission denied")
            return ask(address, *limits)

        return asked

    for access in ("read", "list_folders", "list_objects"):
        monkeypatch.setattr(objects, access, refusing(getattr(objects, access)))


def make_manifest(
    store: CampaignStore,
    folder: Path,
    previous: Manifest | None,
    rows: Rows | None = None,
    *,
    weights: bytes = b"weights",
    seconds: float = 1.0,
    tokenizer: bool | bytes = False,
    files: Mapping[str, bytes] = {},
    gates: Sequence[GateResult] = (GateResult(table="scores", passed=True),),
    degraded: Sequence[str] = (),
    metrics: Mapping[str, float | None] | None = None,
) -> Manifest:
    """The manifest of the iteration after `previous`, its parts written under an attempt of its own: tables of `rows`
    (None: a small `scores` and `metrics`), and a policy of a few files, made below `folder`.

    `tokenizer`: whether the policy has one (of `WORDS`), or the bytes of its file; `files`: further ones of the policy.
    """
    iteration = 0 if previous is None else previous.iteration + 1
    attempt = new_attempt()
    policy = folder / f"policy-{attempt}"
    (policy / "optimizer").mkdir(parents=True)
    (policy / "optimizer" / "state.pt").write_bytes(attempt.encode())
    for name, data in {"model.safetensors": weights, **files}.items():
        (policy / name).write_bytes(data)
    if isinstance(tokenizer, bytes):
        (policy / "tokenizer.json").write_bytes(tokenizer)
    elif tokenizer:
        from tokenizers import Tokenizer, models

        vocabulary = {word: number for number, word in enumerate(WORDS)}
        Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")).save(str(policy / "tokenizer.json"))
    tables = (
        {"scores": scores_table(), "metrics": metrics_table(seconds)}
        if rows is None
        else {name: make_table(name, rows[name]) for name in rows}
    )
    return new_manifest(
        iteration=iteration,
        tables={name: write_table(store, name, iteration, attempt, table) for name, table in tables.items()},
        policy=put_folder(store, policy, f"policies/{iteration:06d}/{attempt}"),
        gates=gates,
        config_hash=hashlib.sha256(canonical_json(CONFIG).encode()).hexdigest(),
        code_version="0.1.0",
        seeds={"iteration": 5},
        prefect_run_id=attempt,
        metrics={"rollout/return": 0.5} if metrics is None else metrics,
        created_at="2026-01-01T00:00:00.000+00:00",
        previous=previous,
        degraded=degraded,
    )


def commit_rows(
    store: CampaignStore, folder: Path, previous: Manifest | None, rows: Rows, *, tokenizer: bool | bytes = True, **more
) -> Manifest:
    """Commit the iteration after `previous` with tables of `rows`; see `make_manifest`."""
    version = 0 if previous is None else previous.policy_version + 1
    weights = f"weights {version}".encode()
    return commit(store, make_manifest(store, folder, previous, rows, weights=weights, tokenizer=tokenizer, **more))[0]


def make_chain(store: CampaignStore, folder: Path, length: int) -> list[Manifest]:
    """Commit `length` iterations more (the start counts as one); all manifests of the campaign."""
    for _ in range(length):
        chain = manifests(store)
        commit(store, make_manifest(store, folder, chain[-1] if chain else None))
    return manifests(store)


def all_files(folder: Path) -> list[str]:
    """Paths of all files below `folder`."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def stored_paths(store: CampaignStore, prefix: str = "") -> list[str]:
    """Paths of all objects of a campaign below `prefix`."""
    return [info.path for info in list_objects(store, prefix)]


# Policies ---------------------------------------------------------------------------------------------------------

_WORDS = "you are in a room go to take put open close look desk drawer shelf mug book lamp 1 2 3 . , :"
VOCABULARY = ["<pad>", "<eos>", "<user>", "<assistant>", "<unk>", *_WORDS.split()]
EOS_ID = VOCABULARY.index("<eos>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer():
    """A word-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def make_tiny_policy_folder(
    folder: Path, *, seed: int = 0, max_positions: int = 256, scale: float = 4.0, tied: bool = False
) -> Path:
    """Write a two-layer policy (width 64) and its tokenizer; `scale` sharpens the output so that log-probs differ.
    `tied`: its output layer is its embeddings."""
    import torch

    from opid_core.policies import make_tiny_policy

    model = make_tiny_policy(
        vocab_size=len(VOCABULARY), hidden_size=64, layers=2, heads=2, max_positions=max_positions, seed=seed, tied=tied
    )
    model.config.eos_token_id = EOS_ID
    model.config.pad_token_id = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def random_tokens(generator: np.random.Generator, length: int) -> list[int]:
    """Token ids [length] without the special ones."""
    return generator.integers(5, len(VOCABULARY), size=length).tolist()
