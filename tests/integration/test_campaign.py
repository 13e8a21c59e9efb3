"""One tiny campaign through the real command: engine, learner, orchestration and gates."""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from infra.store import local_folder, location, read_table, verify
from opid_core.config import LearnerConfig
from opid_core.policy_check import check_policy_folder
from opid_core.samples import Samples
from tests.test_snippets import unexplained

pytestmark = pytest.mark.integration


def test_the_chain_is_whole(campaign):
    assert [manifest.iteration for manifest in campaign.chain] == [0, 1, 2]
    assert [manifest.policy_version for manifest in campaign.chain] == [0, 1, 2]
    stages = {"steps", "trajectories", "skills", "routes", "scores", "metrics"}
    assert [set(manifest.tables) for manifest in campaign.chain] == [
        {"metrics", "evaluations"},
        stages,
        {*stages, "evaluations"},  # the last iteration is evaluated
    ]
    for manifest in campaign.chain:
        assert set(manifest.gates) == set(manifest.tables)
        assert all(gate.passed and gate.held for gate in manifest.gates.values())
        for name, record in manifest.tables.items():
            assert read_table(campaign.store, record).num_rows == record.rows
            assert record.rows or name == "skills"
    # Every file of three policies, three tables of metrics, two of evaluations and ten of the stages.
    policy_files = sum(len(manifest.policy.files) for manifest in campaign.chain)
    assert verify(campaign.store) == policy_files + 3 + 2 + 10


@pytest.mark.parametrize("iteration", [1, 2])
def test_every_step_is_routed_and_scored_and_every_token_counted(campaign, iteration):
    steps, trajectories = campaign.rows("steps", iteration), campaign.rows("trajectories", iteration)
    key = [(row["trajectory_id"], row["step"]) for row in steps]
    assert len(set(key)) == len(key) == sum(row["steps"] for row in trajectories)
    groups = [row["group_id"] for row in trajectories]
    assert [groups.count(group) for group in sorted(set(groups))] == [3, 3]
    assert len({row["task_id"] for row in trajectories}) == 2
    for table in ("routes", "scores"):
        assert [(row["trajectory_id"], row["step"]) for row in campaign.rows(table, iteration)] == key
    metrics = {row["name"]: row["value"] for row in campaign.rows("metrics", iteration)}
    lengths = [len(row["response_ids"]) for row in steps]
    assert unexplained(set(metrics)) == set()
    assert metrics["tokens/rollout"] == sum(lengths) == sum(row["tokens"] for row in trajectories)
    assert max(lengths) <= 24
    assert {row["policy_version"] for row in steps} == {iteration - 1}
    assert len({row["seed"] for row in steps}) == len(steps)
    # A skill is followed from its row to the route to the tokens it moved.
    skills = {row["skill_id"]: row for row in campaign.rows("skills", iteration)}
    routed = 0
    for route, score in zip(campaign.rows("routes", iteration), campaign.rows("scores", iteration), strict=True):
        assert (route["route"] == "none") == (route["skill_id"] is None) == (score["skill_log_probs"] is None)
        if route["skill_id"] is None:
            assert not any(score["skill_advantages"])
            continue
        routed += 1
        assert skills[route["skill_id"]]["kind"] == route["route"]
        delta = np.subtract(score["skill_log_probs"], score["old_log_probs"])
        np.testing.assert_allclose(score["skill_advantages"], 0.01 * delta, atol=1e-7)
    assert routed > 0


def test_stored_log_probs_are_those_of_the_stored_policies(campaign):
    """Scored again from the folders alone: iteration 2's old policy is policy 1, its reference policy 0."""
    from opid_core.learning.scoring import frozen_policy, score

    tables = (campaign.table(name, 2) for name in ("steps", "trajectories", "scores"))
    samples = Samples.from_tables(*tables)
    prompts, responses = samples.prompt_ids, samples.response_ids
    old, reference = (
        partial(score, frozen_policy(campaign.policy(version), LearnerConfig()), micro_batch_tokens=2048)
        for version in (1, 0)
    )
    for name, scored in (("old", old(prompts, responses)), ("reference", reference(prompts, responses))):
        np.testing.assert_allclose(samples.tokens(f"{name}_log_probs").values, scored.values, atol=1e-4)
    with_skill = np.flatnonzero(samples.has("skill_log_probs"))
    scored = old(samples.tokens("skill_prompt_ids").take(with_skill), responses.take(with_skill))
    np.testing.assert_allclose(samples.tokens("skill_log_probs").values, scored.values, atol=1e-4)
    # The engine sampled with the same weights.
    rollout_log_probs, old_log_probs = (samples.tokens(f"{name}_log_probs").values for name in ("rollout", "old"))
    np.testing.assert_allclose(rollout_log_probs, old_log_probs, atol=1e-3)


def test_policies_load_and_every_update_changed_them(campaign):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = []
    for version in range(3):
        folder = campaign.policy(version)
        check_policy_folder(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
        state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        weights.append(torch.cat([tensor.flatten() for tensor in state.values()]))
        assert bool(torch.isfinite(weights[-1]).all())
    for before, after in pairwise(weights):
        change = (after - before).abs().max().item()
        assert 0 < change < 0.1  # AdamW moves no weight by more than about its learning rate (1e-3) a step


def test_the_report_is_written(campaign):
    folder = local_folder(campaign.store, "report")
    assert "2 iterations committed" in (folder / "summary.md").read_text(encoding="utf-8")
    assert (folder / "success.png").read_bytes().startswith(b"\x89PNG")
    for note in ("start committed", "iteration 1 of 2 committed", "iteration 2 of 2 committed", "Report: "):
        assert note in campaign.printed
    assert "Traceback" not in campaign.printed


def test_status_reads_the_chain(campaign, monkeypatch, capsys):
    from flows.cli import main as cli

    monkeypatch.setattr(sys, "argv", ["opid", "status", "tiny", "--root", campaign.store.root])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"tiny in {location(campaign.store)}: 2 iterations committed" in printed
    assert "unfinished" not in printed
    assert f"Newest policy: {campaign.policy(2)}\n" in printed  # on one line: it is there to be copied
