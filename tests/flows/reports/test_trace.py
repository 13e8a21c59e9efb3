from __future__ import annotations

import json

import pytest

from flows.reports.trace import MovedToken, OtherStep, UsedStep, trace_skill
from infra.manifest import BrokenExpectation, GateResult
from infra.store import open_campaign
from opid_core.errors import ConfigError, DataError
from tests.factories import CONFIG, FIRST, SECOND, START_ROWS, commit_rows, named_rows


def committed(tmp_path, rows=None, name="demo", **options):
    """A campaign with one iteration of `rows`."""
    store = open_campaign(tmp_path / "runs", name, {**CONFIG, "campaign": name})
    start = commit_rows(store, tmp_path, None, START_ROWS, tokenizer=options.pop("tokenizer", True))
    commit_rows(store, tmp_path, start, rows or named_rows(), **options)
    return store


@pytest.fixture
def printed(opid):
    """What `opid trace` prints."""

    def run(store, skill_id, *options: str) -> str:
        return opid("trace", "--root", store.root, *options, "--", skill_id)

    return run


def moving_rows():
    """The step skill makes `take` (id 3) likelier by 0.25 and `mug` (id 4) less likely by 0.5."""
    rows = named_rows()
    rows["scores"][0]["skill_log_probs"] = [-0.25, -1.0]
    rows["scores"][0]["skill_advantages"] = [0.0625, -0.125]
    rows["metrics"].append({"iteration": 1, "name": "update/loss", "value": 0.5})
    return rows


def test_a_step_skill_is_followed_from_trajectory_to_update(printed, tmp_path):
    store = committed(tmp_path, moving_rows())
    found = trace_skill(store.root, None, None, f"{FIRST}/step0")
    assert (found.campaign, found.iteration, found.kind, found.step) == ("demo", 1, "step", 0)
    assert found.text == "Take the mug first."
    assert (found.trajectory["outcome"], found.trajectory["return"], found.trajectory["steps"]) == ("success", 10.0, 2)
    assert found.trajectory["task_text"] == "put a mug on a desk"
    assert found.made_by == {"analyzer": "hindsight", "attempts": 1}
    assert found.used == (
        UsedStep(
            step=0,
            route="step",
            reason="as planned",
            action="look",
            tokens=2,
            delta_sum=-0.25,
            delta_mean=-0.125,
            delta_min=-0.5,
            delta_max=0.25,
            most_moved=(MovedToken(1, 4, "mug", -0.5), MovedToken(0, 3, "take", 0.25)),
            outcome_advantage=1.0,
            step_advantage=0.0,
            skill_advantage_sum=-0.0625,
            trained=True,
        ),
    )
    assert found.others == (OtherStep(1, "episode", f"{FIRST}/episode", "as planned"),)
    assert (found.policy_before, found.policy_after) == (0, 1)
    assert found.policy.startswith("policies/000001/")
    assert found.update == {"update/loss": 0.5}
    assert json.loads(printed(store, f"{FIRST}/step0", "--json"))["used"][0]["most_moved"][0] == {
        "position": 1,
        "token_id": 4,
        "text": "mug",
        "delta": -0.5,
    }


def test_a_skill_that_is_added_to_another_has_its_own_log_probs(tmp_path):
    rows = moving_rows()
    rows["routes"][0]["added_skill_id"] = f"{FIRST}/episode"
    rows["scores"][0]["added_log_probs"] = [-0.5, -0.375]
    store = committed(tmp_path, rows)
    found = trace_skill(store.root, None, None, f"{FIRST}/episode")
    assert [(step.step, step.route, step.delta_sum) for step in found.used] == [
        (0, "step", 0.125),
        (1, "episode", 0.25),
    ]
    assert found.others == ()


def test_what_is_printed(printed, tmp_path):
    text = printed(committed(tmp_path, moving_rows()), f"{FIRST}/step0")
    assert f"Skill {FIRST}/step0: step of step 0, campaign demo, iteration 1\n  Take the mug first.\n" in text
    assert "success, return 10, 2 steps, 3 tokens, sampled by policy 0\n  task t (pick): put a mug on a desk\n" in text
    assert "Used at 1 of 2 steps of its trajectory" in text
    assert "sum -0.2500, mean -0.1250, min -0.5000, max +0.2500" in text
    assert 'most moved: "mug" -0.5000, "take" +0.2500\n' in text
    assert "outcome +1.0000 and step +0.0000 a token, skill -0.062500 in sum; trained on\n" in text
    assert f"  step 1 (route episode: as planned): {FIRST}/episode instead\n" in text
    assert "Update: policy 0 -> policy 1 (policies/000001/" in text


def test_a_failed_analysis_says_why_and_was_used_nowhere(printed, tmp_path):
    store = committed(tmp_path)
    found = trace_skill(store.root, None, "demo", f"{SECOND}/failed")
    assert (found.kind, found.text, found.used) == ("failed", "", ())
    assert found.made_by["error"] == "no reply"
    text = printed(store, f"{SECOND}/failed")
    assert "no skill: the analysis failed" in text
    assert "no token of this skill was in it" in text


def test_without_a_stored_tokenizer_tokens_are_numbers(printed, tmp_path):
    text = printed(committed(tmp_path, moving_rows(), tokenizer=False), f"{FIRST}/step0")
    assert "most moved: #4 -0.5000, #3 +0.2500\n" in text


def test_gates_that_name_the_skill_or_its_trajectory(tmp_path):
    named = [{"skill_id": f"{FIRST}/step0"}, {"skill_id": f"{FIRST}/episode"}, {"trajectory_id": FIRST, "return": 9}]
    result = BrokenExpectation(expectation="near_duplicates", column="text", severity="warn", failing_rows=tuple(named))
    gate = GateResult(table="skills", passed=True, broken=(result,))
    store = committed(tmp_path, gates=[gate])
    found = trace_skill(store.root, None, None, f"{FIRST}/step0")
    assert found.gates == {"skills": True}
    assert found.named_by_gates == (
        f'skills: warn: near_duplicates on text: {{"skill_id": "{FIRST}/step0"}}',
        f'skills: warn: near_duplicates on text: {{"return": 9, "trajectory_id": "{FIRST}"}}',
    )


def test_text_of_a_skill_cannot_steer_the_terminal(printed, tmp_path):
    rows = named_rows()
    rows["skills"][0]["text"] = "[bold]x[/] \x1b[2J end"
    assert "  [bold]x[/] \\x1b[2J end\n" in printed(committed(tmp_path, rows), f"{FIRST}/episode")


@pytest.mark.parametrize("skill_id", [f"{FIRST}/step9", "000007-0000-00/step0", "9" * 5000 + "-0", "nonsense", ""])
def test_an_unknown_skill_names_the_nearest(printed, tmp_path, skill_id):
    store = committed(tmp_path)
    with pytest.raises(ConfigError, match=f"no skill '{skill_id}' in demo under .*; the nearest are .*{FIRST}/step0"):
        printed(store, skill_id)


def test_of_two_campaigns_one_must_be_named(tmp_path):
    store = committed(tmp_path)
    committed(tmp_path, name="other")
    with pytest.raises(ConfigError, match=r"several campaigns in .* \(demo, other\); name yours with --campaign"):
        trace_skill(store.root, None, None, f"{FIRST}/step0")
    assert trace_skill(store.root, None, "other", f"{FIRST}/step0").campaign == "other"


def test_campaigns_that_cannot_be_read_are_left_out_and_named(tmp_path):
    store = committed(tmp_path)
    committed(tmp_path, name="older")
    for manifest in (tmp_path / "runs" / "older" / "_commits").iterdir():
        manifest.write_text('{"format": 1, "iteration": 0}', encoding="utf-8")
    told: list[str] = []
    assert trace_skill(store.root, None, None, f"{FIRST}/step0", told.append).campaign == "demo"
    (line,) = told
    assert line.startswith("Left out: older: ")
    with pytest.raises(ConfigError, match=r"no skill 'x' in demo under "):
        trace_skill(store.root, None, None, "x")
    with pytest.raises(DataError, match="a manifest of format 1;"):
        trace_skill(store.root, None, "older", f"{FIRST}/step0")


def test_an_empty_root_and_a_campaign_without_iterations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no campaign in {tmp_path}/runs; there is no campaign there"):
        trace_skill("runs", None, None, "000001-0000-00/episode")
    with pytest.raises(ConfigError, match="there is no campaign there"):
        trace_skill(str(tmp_path), None, None, "000001-0000-00/episode")
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    with pytest.raises(ConfigError, match=r"no skill '000001-0000-00/episode' in demo .*; no skill is committed"):
        trace_skill(store.root, None, None, "000001-0000-00/episode")
