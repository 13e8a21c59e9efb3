"""A study of two campaigns through the real command: killed, continued, reported."""

from __future__ import annotations

import json

import pytest

from infra.manifest import to_bytes
from infra.store import find_campaign, manifests, read_table
from opid_core.errors import ConfigError
from tests.integration.campaigns import CONFIG, finish, kill, start, wait_for

pytestmark = pytest.mark.integration

SMALL = CONFIG.replace("campaign: tiny", "campaign: skills").replace("iterations: 2", "iterations: 1")


def test_a_killed_study_goes_on_and_compares_a_method_with_its_twin_from_one_policy(tmp_path):
    root = tmp_path / "runs"

    def run():
        return start(root, command=("compare", "--seeds", "1", "--name", "mine"), text=SMALL)

    def chain(label: str):
        try:
            return manifests(find_campaign(root / "mine", f"{label}-seed3", None))
        except ConfigError:
            return []

    first = run()
    wait_for(first, root, lambda: len(chain("skills")) == 2)
    kill(first)
    committed = [to_bytes(manifest) for manifest in chain("skills")]
    printed = finish(run(), root)
    assert [to_bytes(manifest) for manifest in chain("skills")] == committed
    skills, twin = chain("skills"), chain("skills-lambda0")
    assert len(twin) == 2
    # One policy, made once by warm start; the same games; another update.
    weights = [[file.sha256 for file in chain[0].policy.files] for chain in (skills, twin)]
    assert weights[0] == weights[1]
    stores = [find_campaign(root / "mine", f"{label}-seed3", None) for label in ("skills", "skills-lambda0")]
    games = [
        read_table(store, chain[1].tables["trajectories"]).column("task_id").to_pylist()
        for store, chain in zip(stores, (skills, twin), strict=True)
    ]
    assert games[0] == games[1]
    assert skills[1].content != twin[1].content
    results = json.loads((root / "mine" / "compare" / "results.json").read_text())
    assert [(row["method"], row["seeds"], row["tasks"]) for row in results] == [
        ("skills", [3], 4),
        ("skills-lambda0", [3], 4),
    ]
    assert results[0]["before"] == results[1]["before"]
    assert "index.html" in printed
