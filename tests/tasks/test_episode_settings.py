"""Which static skill an episode gets, in training and at test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.base import Task
from opid_core.config import CampaignConfig, build_config
from opid_core.config.loading import on_top, read_config_file
from opid_core.errors import ConfigError
from tasks.episodes import check_skill_banks, evaluation_settings, training_settings

TASK = Task("t", "cool", None)


@pytest.fixture
def banks(tmp_path: Path) -> tuple[str, str]:
    paths = (tmp_path / "trained.json", tmp_path / "asked.json")
    for path in paths:
        path.write_text(json.dumps({"cool": f"the skill of {path.stem}"}), encoding="utf-8")
    return str(paths[0]), str(paths[1])


def skills(config: CampaignConfig) -> tuple[str | None, str | None]:
    """Of `TASK`, in training and at test."""
    found = (training_settings(config), evaluation_settings(config, 0.4))
    assert [settings.temperature for settings in found] == [1.0, 0.4]
    return tuple(settings.skill_of(TASK) if settings.skill_of else None for settings in found)  # pyright: ignore[reportReturnType]


def test_a_skill_bank_is_absent_at_test_unless_it_is_kept(banks):
    method = {"name": "skill_grpo", "skill_bank": banks[0]}
    assert skills(build_config({"campaign": "c", "method": method})) == ("the skill of trained", None)
    kept = build_config({"campaign": "c", "method": {**method, "keep_skill_at_test": True}})
    assert skills(kept) == ("the skill of trained", "the skill of trained")


def test_an_evaluation_may_have_a_bank_of_its_own(banks):
    evaluation = {"skill_bank": banks[1]}
    assert skills(build_config({"campaign": "c", "evaluation": evaluation})) == (None, "the skill of asked")
    method = {"name": "skill_grpo", "skill_bank": banks[0], "keep_skill_at_test": True}
    both = build_config({"campaign": "c", "method": method, "evaluation": evaluation})
    assert skills(both) == ("the skill of trained", "the skill of asked")
    assert skills(build_config({"campaign": "c"})) == (None, None)


@pytest.mark.parametrize("environment", ["alfworld", "webshop", "search_qa"])
@pytest.mark.parametrize("of", ["alfworld", "webshop", "search_qa"])
@pytest.mark.parametrize("use", ["trained with", "taught from", "evaluated with"])
def test_a_bank_of_another_environment_is_refused_though_it_has_something_to_say_of_every_task(environment, of, use):
    bank = f"configs/skill_banks/{of}.json"
    changes = {
        "trained with": {"method": {"name": "skill_grpo", "skill_bank": bank}},
        "taught from": {"method": {"name": "sdar", "skill_bank": bank}},
        "evaluated with": {"method": {"name": "grpo"}, "evaluation": {"skill_bank": bank}},
    }[use]
    checked = build_config(on_top(read_config_file(Path(f"configs/tiny_{environment}.yaml")), changes))
    if environment == of:
        check_skill_banks(checked)
        return
    refused = rf"^{bank}: a skill bank of another environment than {environment}, .*; it is a bank of {of}$"
    with pytest.raises(ConfigError, match=refused):
        check_skill_banks(checked)


def test_a_bank_of_its_own_task_types_is_refused_where_the_environment_has_none_of_them(tmp_path):
    bank = tmp_path / "bank.json"

    def check(texts: dict[str, str]) -> None:
        bank.write_text(json.dumps(texts), encoding="utf-8")
        check_skill_banks(build_config({"campaign": "c", "evaluation": {"skill_bank": str(bank)}}))

    check({"general": "Look first."})
    check({"general": "Look first.", "pick_and_place_simple": "Take it.", "of my own": "Wait."})
    with pytest.raises(ConfigError, match=rf"^{bank}: .* \(of my own\); alfworld has .*pick_and_place_simple"):
        check({"general": "Look first.", "of my own": "Wait."})
