from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.alfworld import TASK_TYPES
from envs.base import Task
from opid_core.errors import ConfigError
from opid_core.skills.banks import load_skill_bank, skill_finder

SHIPPED = Path(__file__).parents[3] / "configs" / "skill_banks" / "alfworld.json"


def write(tmp_path: Path, data) -> Path:
    path = tmp_path / "bank.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_rows_and_mapping_say_the_same(tmp_path):
    rows = [{"task_type": "pick", "text": " look\n first "}, {"task_type": "cool", "text": "open it"}]
    expected = {"pick": "look first", "cool": "open it"}
    assert load_skill_bank(write(tmp_path, rows)) == expected
    assert load_skill_bank(write(tmp_path, {"pick": "look first", "cool": "open it"})) == expected
    more = [*rows, {"task_type": "pick", "text": "then take"}]
    assert load_skill_bank(write(tmp_path, more))["pick"] == "look first then take"


def test_a_task_gets_the_skill_of_its_type(tmp_path):
    skill_of = skill_finder(write(tmp_path, {"pick": "look first", "cool": "open it"}))
    assert skill_of(Task("t", "cool", None)) == "open it"
    with pytest.raises(ConfigError, match=r"bank\.json: no skill for task type 'heat'; it has: cool, pick"):
        skill_of(Task("t", "heat", None))


def test_the_shipped_bank_has_every_type_of_alfworld():
    assert set(load_skill_bank(SHIPPED)) == set(TASK_TYPES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not JSON text in UTF-8"),
        ('"text"', "expected a list of skills or a mapping of them, got str"),
        ([], "the skill bank is empty"),
        ([{"task_type": "pick"}], "row 0: expected an object with task_type and text"),
        ([{"task_type": "a", "text": "b", "more": 1}], "row 0: expected an object with task_type and text"),
        ([{"task_type": "a", "text": "b"}, "c"], "row 1: expected an object with task_type and text, got 'c'"),
        ([{"task_type": 3, "text": "b"}], "row 0: expected the name of a task type, got 3"),
        ([{"task_type": "a", "text": " "}], "row 0: expected the text of a skill, got ' '"),
        ({"pick": ["look"]}, r"skill of 'pick': expected the text of a skill, got \['look'\]"),
        ({" ": "look"}, "skill of ' ': expected the name of a task type"),
    ],
)
def test_a_bad_bank_is_one_error_with_file_and_field(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(ConfigError, match=message) as caught:
        load_skill_bank(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_bank_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.json: cannot read the skill bank: No such file"):
        load_skill_bank(tmp_path / "no.json")
    binary = tmp_path / "bank.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not JSON text in UTF-8"):
        load_skill_bank(binary)
