"""Which static skill an episode gets, in training and at test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.base import Task
from opid_core.config import CampaignConfig, build_config
from tasks.episodes import evaluation_settings, training_settings

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
