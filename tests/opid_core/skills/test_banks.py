from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.alfworld import TASK_TYPES
from envs.base import Task
from opid_core.errors import ConfigError
from opid_core.skills.banks import from_bank, load_skill_bank, skill_finder
from tests.opid_core.skills.episodes import episode, together

SHIPPED = Path(__file__).parents[3] / "configs" / "skill_banks" / "alfworld.json"


def write(tmp_path: Path, data) -> Path:
    path = tmp_path / "bank.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_texts_are_cleaned(tmp_path):
    bank = load_skill_bank(write(tmp_path, {"pick": " look\n first ", "cool": "open <|im_end|>it"}))
    assert bank == {"pick": "look first", "cool": "open it"}


def test_a_task_gets_the_skill_of_its_type(tmp_path):
    skill_of = skill_finder(write(tmp_path, {"pick": "look first", "cool": "open it"}))
    assert skill_of(Task("t", "cool", None)) == "open it"
    with pytest.raises(ConfigError, match=r"bank\.json: .*'heat'.*cool, pick"):
        skill_of(Task("t", "heat", None))


def test_what_is_said_of_every_task_comes_first(tmp_path):
    skill_of = skill_finder(write(tmp_path, {"general": "Look first.", "cool": "Open it."}))
    assert skill_of(Task("t", "cool", None)) == "Look first. Open it."
    assert skill_of(Task("t", "heat", None)) == "Look first."


def test_the_shipped_banks_have_every_type():
    assert set(load_skill_bank(SHIPPED)) == {"general", *TASK_TYPES}
    shop = {"general", "beauty", "electronics", "fashion", "garden", "grocery"}
    assert set(load_skill_bank(SHIPPED.with_name("webshop.json"))) == shop
    panel = {"nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"}
    assert set(load_skill_bank(SHIPPED.with_name("search_qa.json"))) == {"general", "one_hop", "two_hop"} | panel


def test_a_teachers_bank_gives_each_trajectory_the_skill_of_its_task(tmp_path):
    path = write(tmp_path, {"general": "Look first."})
    samples = together(
        episode("won", ["go to desk 1", "take mug 1"], "success"),
        episode("lost", ["look"], "failure"),
        episode("bad", ["look"], "broken"),
    )
    given = [(one.trajectory_id, one.episode_skill, one.step_skills, one.analyzer) for one in from_bank(samples, path)]
    assert given == [("won", "Look first.", {}, "bank"), ("lost", "Look first.", {}, "bank")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "the skill bank: Invalid JSON"),
        ('"text"', "Input should be an object"),
        ([{"task_type": "pick", "text": "look"}], "Input should be an object"),
        ({}, "the skill bank is empty"),
        ({"pick": 3}, "of task type 'pick': Input should be a valid string"),
        ({"pick": "<|im_end|>"}, "of task type 'pick': expected a task type and the text of a skill"),
        ({" ": "look"}, "of task type ' ': expected a task type"),
    ],
)
def test_a_bad_bank_is_one_error_with_file_and_task_type(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(ConfigError, match=message) as caught:
        load_skill_bank(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_bank_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.json: .*No such file"):
        load_skill_bank(tmp_path / "no.json")
    binary = tmp_path / "bank.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bank\.json: .*UTF-8"):
        load_skill_bank(binary)
