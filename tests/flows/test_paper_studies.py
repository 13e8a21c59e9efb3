"""The dry run of every study of the paper, on a machine that has neither its models nor its data, and its tiny twin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from flows.study import load_study, show, shrunk
from opid_core.config import build_config, load_rows
from opid_core.errors import ConfigError
from opid_core.learning.methods import Opid

REPOSITORY = Path(__file__).parents[2]
PAPER, PAGE = REPOSITORY / "configs" / "paper", REPOSITORY / "docs" / "paper.md"
TABLE1 = ["grpo", "gigpo", "skill_grpo", "skill_grpo_kept", "opsd", "grpo_opsd", "skill_sd", "rlsd", "sdar", "opid"]
ROWS = {
    **{
        f"table1_{environment}_{model}": TABLE1
        for environment in ("alfworld", "webshop", "search_qa")
        for model in ("qwen2.5_3b", "qwen2.5_7b", "qwen3_1.7b")
    },
    "table2": ["grpo", "opid", "without_episode_skills", "without_step_skills"],
    "table3": ["grpo", "critical_first", "additive", "random"],
    "sample_efficiency": ["grpo", "sdar", "opid"],
    "unseen_games": ["grpo", "sdar", "opid"],
    "critical_steps": ["grpo", "steps_0", "steps_1", "steps_3", "steps_5", "steps_10"],
    "advantage_magnitudes": ["opid", "opid_0.01", "opid-lambda0"],
    "analyzers": ["grpo", "hindsight", "llm", "llm_then_hindsight", "llm_shown_the_group"],
    "controls": ["grpo", "opid", "placebo", "contrast"],
}


def file_of(study: str) -> Path:
    (path,) = PAPER.glob(f"{study}*.yaml") if study.startswith("table1") else PAPER.glob(f"{study}_alfworld_*.yaml")
    return path


def told_by_the_page(stem: str) -> tuple[str, str, str]:
    """Campaigns, GPU hours and TiB of the study's row in docs/paper.md."""
    row = rf"^\|[^|]*\| `{re.escape(stem)}` \| (\d+) \| ([\d,]+) \| (\d+) TiB \|"
    ((campaigns, hours, disk),) = re.findall(row, PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return campaigns, hours, disk


def told_by_the_plan(plan: str) -> tuple[str, str, str]:
    """The same of the last row of a dry run's table."""
    (row,) = re.findall(r"^│ all +│(.*)│$", plan, re.MULTILINE)
    campaigns, _, _, _, hours, disk = (cell.strip() for cell in row.split("│"))
    return campaigns, hours, f"{int(disk.replace(',', '')) / 1024:.0f}"


def test_every_study_is_tested():
    base = {
        f"{e}_{m}" for e in ("alfworld", "webshop", "search_qa") for m in ("qwen2.5_3b", "qwen2.5_7b", "qwen3_1.7b")
    }
    assert {path.stem for path in PAPER.glob("*.yaml")} - base == {file_of(study).stem for study in ROWS}


@pytest.mark.parametrize("study", ROWS)
def test_the_plan_of_a_study_and_of_its_tiny_twin(study, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    console = Console(record=True, width=200)
    loaded = load_study(study, [file_of(study)], 3)
    assert list(loaded.methods) == ROWS[study]
    show(loaded, console, "H100")
    plan = console.export_text()
    assert told_by_the_page(file_of(study).stem) == told_by_the_plan(plan)
    for label in ROWS[study]:
        assert label in plan
    assert f"{3 * len(ROWS[study])} campaigns of 150 iterations" in plan
    assert "unknown" not in plan
    tiny = load_study(study, [file_of(study)], 1, tiny=True)
    assert list(tiny.methods) == ROWS[study]
    show(tiny, console)
    assert f"{len(ROWS[study])} campaigns of 2 iterations" in console.export_text()
    for label, config in tiny.methods.items():
        whole = loaded.methods[label]
        assert (config.method, config.analyzer, config.preset) == (whole.method, whole.analyzer, whole.preset)
        assert config.learner.kl_coefficient == whole.learner.kl_coefficient
        assert config.learner.entropy_coefficient == whole.learner.entropy_coefficient
        generated = ("valid_unseen",) if config.environment.name == "search_qa" else whole.evaluation.splits
        assert config.evaluation.splits == generated
        assert config.environment.success_reward == whole.environment.success_reward
        assert (config.policy, config.iterations, config.learner.ranks) == (None, 2, 1)


@pytest.mark.parametrize("model", ["qwen2.5_7b", "qwen3_1.7b"])
@pytest.mark.parametrize("environment", ["alfworld", "webshop", "search_qa"])
def test_the_tiny_twins_of_table_1_are_the_same_campaigns_for_every_model(environment, model):
    of_3b, other = (
        load_study("table1", [file_of(f"table1_{environment}_{size}")], 1, tiny=True).methods
        for size in ("qwen2.5_3b", model)
    )
    assert list(other) == list(of_3b)
    normalize = "mean" if (environment, model) == ("alfworld", "qwen3_1.7b") else None
    for label, config in of_3b.items():
        if normalize is not None:  # the one number that the released runs of this model have otherwise
            config = config.model_copy(update={"method": config.method.model_copy(update={"normalize": normalize})})
        assert other[label] == config


def test_the_routing_table_changes_the_routing_alone():
    first, *others = [c.method for c in load_rows(file_of("table3")) if isinstance(c.method, Opid)]
    assert [method.routing for method in (first, *others)] == ["critical_first", "additive", "random"]
    assert {method.model_copy(update={"routing": "random"}) == others[-1] for method in (first, *others)} == {True}


def test_what_is_set_beside_tiny_comes_on_top():
    (config, *_) = load_rows(file_of("table2"), ["iterations=7"])
    assert (config.iterations, shrunk(config).iterations) == (7, 2)
    assert shrunk(config, ["iterations=7", "threads=2"]).iterations == 7


def test_a_world_without_a_tiny_one():
    config = build_config({"campaign": "c", "environment": {"name": "tests.envs.corridor:corridor"}})
    with pytest.raises(ConfigError, match=r"--tiny: .*alfworld, .*webshop"):
        shrunk(config)
