"""A study of two campaigns in WebShop through the real command: killed, continued, reported. Both methods are GRPO."""

from __future__ import annotations

import json

import pytest

from infra.manifest import to_bytes, weights_hash
from infra.store import find_campaign, manifests
from tests.integration.campaigns import REPOSITORY, finish, kill, start, wait_for

# Slow: how a study goes is in tests/flows/test_study.py, killed campaigns in test_recovery.py, that OPID without its
# signal is GRPO bit for bit in tests/opid_core/learning/methods/test_properties.py.
pytestmark = [pytest.mark.integration, pytest.mark.slow]

LAMBDAS = "method: {lambda_episode: 0.01, lambda_step: 0.01}"
SHORT = (REPOSITORY / "configs" / "tiny_webshop.yaml").read_text(encoding="utf-8").replace(
    "iterations: 2", "iterations: 1"
) + "seed: 3\nrecovery: {lease_ttl_s: 3}\n"
WITHOUT_SIGNAL = SHORT.replace("tiny_webshop\n", "skills\n").replace(LAMBDAS, LAMBDAS.replace("0.01", "0.0"))
GRPO = SHORT.replace("tiny_webshop\n", "grpo\n").replace(LAMBDAS, "method: {name: grpo}")


def test_a_killed_study_goes_on_and_opid_without_its_signal_is_grpo_bit_for_bit(tmp_path, prefect_server):
    pytest.importorskip("thefuzz", reason="needs the extra `webshop`")
    root = tmp_path / "runs"
    other = tmp_path / "grpo.yaml"
    other.write_text(GRPO, encoding="utf-8")

    def run():
        command = ("compare", str(other), "--seeds", "1", "--name", "mine")
        return start(root, prefect_server, command=command, text=WITHOUT_SIGNAL)

    def chain(label: str):
        return manifests(find_campaign(root / "mine", f"{label}-seed3", None))

    first = run()
    wait_for(first, root, (root / "mine" / "grpo-seed3" / "_commits" / "000001.json").exists)
    kill(first)
    committed = [to_bytes(manifest) for manifest in chain("grpo")]
    printed = finish(run(), root)
    grpo, skills = chain("grpo"), chain("skills")
    assert [to_bytes(manifest) for manifest in grpo] == committed
    assert len(grpo) == len(skills) == 2
    # One policy, made once by warm start; the same games and draws; one has skills, and the same weights come out.
    assert [weights_hash(m.policy) for m in grpo] == [weights_hash(m.policy) for m in skills]
    assert len({weights_hash(m.policy) for m in grpo}) == 2
    assert grpo[1].tables["skills"].rows == 0
    assert (skills[1].tables["skills"].rows or 0) > 0
    assert [m.tables["evaluations"].content_hash for m in grpo] == [
        m.tables["evaluations"].content_hash for m in skills
    ]
    results = json.loads((root / "mine" / "compare" / "results.json").read_text())
    assert [(row["method"], row["seeds"], row["tasks"]) for row in results] == [("grpo", [3], 4), ("skills", [3], 4)]
    assert results[0]["micro"] == results[1]["micro"]
    assert "Its start is that of grpo-seed3, whose evaluation it has." in printed
    assert "index.html" in printed
