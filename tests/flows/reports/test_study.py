from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from matplotlib.figure import Figure

from flows.reports.paired import holm
from flows.reports.study import draw_curves, method_rows, page, read_runs, shared_episodes, write_comparison
from flows.study import load_study
from infra.manifest import new_manifest
from infra.store import CampaignStore, commit, new_attempt, open_campaign, put_folder, write_table
from opid_core import schema
from opid_core.errors import ConfigError, InfrastructureError
from tests.flows.studies import config_file
from tests.infra.servers import failing


def test_the_report_pairs_methods_by_seed_and_task(study):
    for (label, seed, config), (before, after) in zip(
        study.campaigns(), [("ff", "sf"), ("ff", "ss"), ("sf", "sf"), ("sf", "ss")], strict=True
    ):
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        finished(store, seed, before, after, share=0.25 if label == "skills" else 0.0)
    folder = write_comparison(study)
    plain, skills = json.loads((folder / "results.json").read_text())
    assert (plain["method"], plain["seeds"], plain["tasks"], plain["temperature"]) == ("plain", [5, 6], 2, 1.0)
    assert (plain["before"], plain["micro"]["mean"], skills["micro"]["mean"]) == (0.25, 0.5, 1.0)
    assert (plain["by_type"], plain["against_baseline"]) == ({"cool": 1.0, "heat": 0.0}, None)
    assert skills["against_baseline"]["estimate"]["mean"] == 0.5
    assert (skills["twin"], skills["against_twin"]) == (None, None)  # it is the baseline
    # seed 5 went from 0 to 1, seed 6 from 1/2 to 1, over 4 episodes
    assert skills["curve_mean"] == (0.5 + 0.75) / 2
    assert skills["episodes"] == 4
    text = (folder / "summary.md").read_text()
    assert text.startswith("# Study mine\n\nPreset released; seeds 5, 6; 1 iteration; the final policy ")
    assert "| skills | 1 | 2 | 50.0% (" in text  # against plain
    assert "**skills, temperature 1: 25.0% -> 100.0%; without skills (plain) 50.0%.** Difference +50.0 points (" in text
    assert "2 tasks of the held-out panel, 2 seeds. Skills' share of the advantage: 25.0%." in text
    assert "twin" not in text
    assert "| update/distillation_loss | 0.1250 | 0.1250 |\n| update/tokens | 1,234 | 1,234 |" in text
    assert "| advantage_share/skill | 0.00% | 25.00% |" in text
    assert "| cool | 100.0% | 100.0% |" in text
    plot = (folder / "curves.png").read_bytes()
    assert len(plot) > 1000
    page = (folder / "index.html").read_text()
    assert f'src="data:image/png;base64,{base64.b64encode(plot).decode()}"' in page
    assert "<td>skills</td>\n<td>1</td>\n<td>2</td>\n<td>50.0% (" in page


def test_each_further_split_has_its_own_success_and_differences(tmp_path):
    files = [config_file(tmp_path, "plain", "{name: grpo}"), config_file(tmp_path, "skills", "{name: opid}")]
    study = load_study("mine", files, 2, ["evaluation.more_splits=[valid_seen]"])
    for (_, seed, config), seen in zip(study.campaigns(), ("ff", "fs", "sf", "ss"), strict=True):
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        finished(store, seed, "ff", "ff", share=0.0, seen=seen)
    folder = write_comparison(study)
    rows = {(row["method"], row["split"]): row for row in json.loads((folder / "results.json").read_text())}
    assert list(rows) == [(m, s) for m in ("plain", "skills") for s in ("valid_unseen", "valid_seen")]
    assert rows["plain", "valid_seen"]["micro"]["mean"] == 0.25
    assert rows["skills", "valid_seen"]["micro"]["mean"] == 0.75
    assert rows["skills", "valid_seen"]["against_baseline"]["estimate"]["mean"] == 0.5
    assert rows["skills", "valid_unseen"]["against_baseline"]["estimate"]["mean"] == 0.0
    first, further = (folder / "summary.md").read_text().split("## On the split valid_seen")
    assert "| skills | 1 | 2 | 2 | 0.0% | 0.0% (" in first
    assert "| skills | 1 | 2 | 2 | 75.0% | 75.0% (" in further


def test_a_method_is_compared_with_its_own_twin_too(tmp_path):
    files = [
        config_file(tmp_path, "plain", "{name: grpo}"),
        config_file(tmp_path, "skills", "{name: opid, step_weight: 1.0}"),
    ]
    study = load_study("mine", files, 1)
    for (_, seed, config), after in zip(study.campaigns(), ("ff", "ss", "sf"), strict=True):
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        finished(store, seed, "ff", after, share=0.0)
    folder = write_comparison(study)
    plain, skills, twin = json.loads((folder / "results.json").read_text())
    assert [
        row["against_baseline"] and row["against_baseline"]["estimate"]["mean"] for row in (plain, skills, twin)
    ] == [
        None,
        1.0,
        0.5,
    ]
    assert (skills["twin"], skills["against_twin"]["estimate"]["mean"]) == ("skills-lambda0", 0.5)
    assert (twin["twin"], twin["against_twin"]) == (None, None)
    compared = [skills["against_baseline"], skills["against_twin"], twin["against_baseline"]]
    assert [one["adjusted_p"] for one in compared] == holm([one["p_value"] for one in compared])
    # of two tasks: one difference of 1 each (nothing varies), and one of 1 and one of 0: 2.802 x sqrt(1/2) / sqrt(2)
    assert compared[0]["detectable"] is None
    assert [one["detectable"] for one in compared[1:]] == pytest.approx([1.400793, 1.400793])
    _, section = (folder / "summary.md").read_text().split("## Against the twin without skill signal\n")
    assert "| skills | skills-lambda0 | 1 | 1 | 50.0% (" in section
    assert f" | {compared[1]['p_value']:.2g} | {compared[1]['adjusted_p']:.2g} | 140.1 points |" in section
    assert section.split("##")[0].count("\n| ") == 3  # header, rule, one method


def test_the_sentence_and_the_differences_are_over_the_seeds_that_both_methods_have_finished(study):
    both = zip(
        study.campaigns(), (("ff", "ff"), ("ff", "sf"), ("ff", "ff"), ("ss", "ss")), (0, 0.25, 0, 0.75), strict=True
    )
    for (label, seed, config), (before, after), share in both:
        if (label, seed) != ("plain", 6):
            store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
            finished(store, seed, before, after, share=share)
    text = (write_comparison(study) / "summary.md").read_text()
    assert "**skills, temperature 1: 0.0% -> 50.0%; without skills (plain) 0.0%.** Difference +50.0 points (" in text
    assert "2 tasks of the held-out panel, 1 seed. Skills' share of the advantage: 25.0%." in text
    assert "| skills | 1 | 2 | 2 | 50.0% | 75.0% (" in text  # success: over both of its own
    assert "| skills | 1 | 1 | 50.0% (" in text


def test_several_comparisons_are_corrected_as_holm_does():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_sample_efficiency_is_over_the_episodes_that_every_run_played(study):
    for (label, seed, config), after in zip(study.campaigns(), ("ss", "ss", "ff", "sf"), strict=True):
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        # As with redrawn groups: the second method plays 8 episodes with seed 5, 12 with seed 6.
        finished(store, seed, "ff", after, share=0.0, episodes=4 if label == "plain" else 8 if seed == 5 else 12)
    runs, _ = read_runs(study)
    assert shared_episodes(runs) == 4
    plain, skills = method_rows(study, runs)
    assert (plain.episodes, skills.episodes) == (4, 10)
    # Over 4 episodes: from 0 to 1 and from 0 to 0; from 0 to 1/2 (1 after 8) and from 0 to 1/6 (1/2 after 12).
    assert (plain.curve_mean, skills.curve_mean) == (pytest.approx((0.5 + 0) / 2), pytest.approx((1 / 4 + 1 / 12) / 2))
    text = (write_comparison(study) / "summary.md").read_text()
    assert "averaged over the first 4 training episodes, which every run played." in text
    assert "| skills | 10 | 16.7% |" in text
    axes = Figure().add_subplot()
    draw_curves(axes, runs, ("valid_unseen", 1.0))
    bold = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines() if line.get_marker() == "o"}
    assert bold["plain"].tolist() == [[0, 0], [4, 0.5]]
    # After 8 episodes seed 5 has 1, seed 6 a third.
    assert bold["skills"] == pytest.approx(np.array([[0, 0], [8, 2 / 3]]))


def test_scores_are_compared_where_the_environment_gives_them(study):
    for (label, seed, config), after in zip(study.campaigns(), ("fs", "ss", "fs", "ss"), strict=True):
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        finished(store, seed, "ff", after, share=0.0, score={"s": 1.0, "f": 0.5 if label == "plain" else None})
    runs, _ = read_runs(study)
    plain, skills = method_rows(study, runs)
    assert plain.score is not None
    assert skills.score is not None
    assert (plain.score.mean, skills.score.mean) == (0.75, 1.0)
    assert skills.score_against_baseline is not None
    assert skills.score_against_baseline.estimate.mean == 0.25
    _, section = (write_comparison(study) / "summary.md").read_text().split("## Score\n")
    assert "| plain | 1 | 75.0 (50.0 to 100.0) |  |  |  |" in section
    assert "| skills | 1 | 100.0 (34.2 to 100.0) | 2 | 25.0 (0.0 to 50.0) | " in section


def test_a_study_without_a_share_of_the_skills_is_reported_without_it(study):
    """As where nothing was trained, or no iteration had an advantage."""
    for _, seed, config in study.campaigns():
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        finished(store, seed, "ff", "ff", share=None)
    text = (write_comparison(study) / "summary.md").read_text()
    assert "**skills, temperature 1: 0.0% -> 0.0%; without skills (plain) 0.0%.** Difference +0.0 points (" in text
    assert "2 tasks of the held-out panel, 2 seeds.\n" in text
    assert "Skills' share" not in text


def test_names_in_the_page_are_never_markup():
    made = page("<b>study</b>", "# <script>alert(1)</script>\n\n| a |\n| --- |\n| <i>x</i> |\n", b"png")
    assert "<script>alert" not in made
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made
    assert "<td>&lt;i&gt;x&lt;/i&gt;</td>" in made
    assert "<title>OPID · study &lt;b&gt;study&lt;/b&gt;</title>" in made


def test_unfinished_campaigns_are_named_and_left_out(study):
    with pytest.raises(ConfigError, match="no campaign is finished yet"):
        write_comparison(study)
    config = study.campaigns()[0][2]
    finished(open_campaign(config.root, config.campaign, config.model_dump(mode="json")), 5, "ff", "ss", share=0.0)
    runs, unfinished = read_runs(study)
    assert unfinished == ["skills-seed5", "plain-seed6", "skills-seed6"]
    (row,) = method_rows(study, runs)
    assert (row.method, row.seeds) == ("plain", (5,))
    assert "**Not finished, left out:** skills-seed5" in (write_comparison(study) / "summary.md").read_text()


def test_a_campaign_that_ends_without_its_final_evaluation_is_not_finished(study):
    """Its last iteration was one of several when it was made: with no evaluation, or with that of a smaller panel."""
    for (_, seed, config), after in zip(study.campaigns(), ("", "s", "sf", "sf"), strict=True):
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        finished(store, seed, "ff", after, share=0.0)
    runs, unfinished = read_runs(study)
    assert {label: [run.seed for run in of_method] for label, of_method in runs.items()} == {
        "plain": [6],
        "skills": [6],
    }
    assert [name.split(" ")[0] for name in unfinished] == ["plain-seed5", "skills-seed5"]
    assert unfinished[0].endswith("--set iterations=2)")


def test_a_report_that_cannot_be_written_is_an_error_that_names_its_folder(study, tmp_path):
    config = study.campaigns()[0][2]
    finished(open_campaign(config.root, config.campaign, config.model_dump(mode="json")), 5, "ff", "ss", share=0.0)
    (tmp_path / "runs" / "mine" / "compare").touch()
    with pytest.raises(InfrastructureError, match=f"^{tmp_path}/runs/mine/compare: cannot be written: File exists$"):
        write_comparison(study)


def test_a_store_that_refuses_is_an_error_and_no_campaign_that_is_not_finished(study, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "else")
    with failing(403, "AccessDenied") as url:
        storage = next(iter(study.methods.values())).storage.model_copy(update={"endpoint_url": url})
        on_s3 = {"root": "s3://bucket/mine", "storage": storage}
        methods = {label: method.model_copy(update=on_s3) for label, method in study.methods.items()}
        with pytest.raises(ConfigError, match=r"^s3://bucket/mine/plain-seed5/.* refused \(AccessDenied\)"):
            write_comparison(replace(study, methods=methods))


def test_a_campaign_that_is_not_the_studys_is_refused(study, tmp_path):
    _, seed, config = study.campaigns()[0]
    values = config.model_dump(mode="json")
    values["learner"]["learning_rate"] = 0.5
    values["method"]["tied_groups"] = "zero"
    finished(open_campaign(config.root, config.campaign, values), seed, "ff", "ss", share=0.0)
    with pytest.raises(ConfigError) as raised:
        read_runs(study)
    assert str(raised.value) == (
        f"campaign plain-seed5 in {tmp_path}/runs/mine was made with another config than the study's: "
        "learner.learning_rate, method.tied_groups; give the study another name, or the config that the campaign was "
        "made with"
    )


def test_what_may_differ_between_runs_of_a_campaign_may_differ_from_the_study(study):
    _, seed, config = study.campaigns()[0]
    values = config.model_dump(mode="json") | {"policy": "copied", "threads": 1, "root": "elsewhere", "iterations": 7}
    del values["storage"]["optimizer_states"]  # an older version wrote it
    finished(open_campaign(config.root, config.campaign, values), seed, "ff", "ss", share=0.0)
    assert [len(mine) for mine in read_runs(study)[0].values()] == [1, 0]


def test_a_campaign_that_went_on_beyond_the_study_is_refused(study):
    _, seed, config = study.campaigns()[0]
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    finished(store, seed, "ff", "ss", share=0.0)
    methods = {label: method.model_copy(update={"iterations": 0}) for label, method in study.methods.items()}
    with pytest.raises(ConfigError, match=r"plain-seed5 in .* has 1 iteration, more than the study's 0"):
        read_runs(replace(study, methods=methods))


def test_campaigns_from_other_weights_are_refused(study):
    for (_, seed, config), weights in zip(study.campaigns()[:2], (b"weights", b"others"), strict=True):
        store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
        finished(store, seed, "ff", "ss", share=0.0, weights=weights)
    with pytest.raises(ConfigError, match="campaigns plain-seed5 and skills-seed5 start from policies with other weig"):
        read_runs(study)


def finished(
    store: CampaignStore,
    seed: int,
    before: str,
    after: str,
    share: float | None,
    episodes: int = 4,
    weights: bytes = b"weights",
    score: Mapping[str, float | None] = MappingProxyType({}),
    seen: str = "",
) -> None:
    """A committed campaign of one iteration; `before` and `after`: outcomes of two tasks (s: success, f: failure; none:
    not evaluated); `score`: what episodes of each outcome are worth; `seen`: outcomes on a further split, of both
    policies."""
    previous = None
    metrics = {"advantage_share/skill": share, "update/tokens": 1234.0, "update/distillation_loss": 0.125}
    for iteration, outcomes in enumerate((before, after)):
        tables = {
            "evaluations": [
                _evaluated(iteration, task, outcome, seed) | {"score": score.get(outcome)}
                for task, outcome in enumerate(outcomes)
            ]
            + [_evaluated(iteration, task, of, seed) | {"split": "valid_seen"} for task, of in enumerate(seen)],
            "metrics": [{"iteration": iteration, "name": name, "value": value} for name, value in metrics.items()],
        }
        if not outcomes:
            del tables["evaluations"]
        if previous is not None:
            tables["trajectories"] = [_trajectory(f"{n}") for n in range(episodes)]
        folder = Path(store.root) / f"local-{seed}-{iteration}"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(weights)
        attempt = new_attempt()
        previous = new_manifest(
            iteration=iteration,
            tables={
                name: write_table(store, name, iteration, attempt, schema.from_rows(name, found))
                for name, found in tables.items()
            },
            policy=put_folder(store, folder, f"policies/{iteration:06d}/{attempt}"),
            gates=[],
            config_hash="c" * 64,
            code_version="0.1.0",
            seeds={"campaign": seed},
            prefect_run_id=None,
            metrics={},
            created_at="2026-01-01T00:00:00.000+00:00",
            previous=previous,
        )
        commit(store, previous)


def _evaluated(version: int, task: int, outcome: str, seed: int) -> dict:
    return {
        "policy_version": version,
        "split": "valid_unseen",
        "temperature": 1.0,
        "repetition": 0,
        "task_id": f"task-{task}",
        "task_type": ("cool", "heat")[task],
        "outcome": {"s": "success", "f": "failure"}[outcome],
        "return": 0.0,
        "steps": 1,
        "valid_actions": 1,
        "admissible_actions": 1,
        "tokens": 1,
        "seed": seed,
    }


def _trajectory(name: str) -> dict:
    return {
        "campaign": "c",
        "iteration": 1,
        "group_id": "g",
        "trajectory_id": name,
        "task_id": "task-0",
        "task_type": "cool",
        "outcome": "success",
        "return": 1.0,
        "steps": 1,
        "tokens": 1,
        "seconds": 0.0,
        "error": None,
    }
