"""Records of finished stages: written once, checked when read, closed when an attempt is given up."""

from __future__ import annotations

import pytest

from infra import stages
from infra.store import create_object, location, read_object
from opid_core.errors import DataError

MADE_FROM = {"parent": "p", "config": "c", "code_version": "v"}


def test_what_a_stage_made_is_found_again(store):
    assert stages.recorded(store, 3, 0, "rollout", MADE_FROM) is None
    result = {"tables": {"steps": {"path": "steps/part"}}, "metrics": {"rollout/return": None, "x": 0.1}}
    assert stages.record(store, 3, 0, "rollout", MADE_FROM, result) == result
    assert stages.recorded(store, 3, 0, "rollout", MADE_FROM) == result
    assert stages.recorded(store, 3, 0, "route", MADE_FROM) is None
    assert stages.recorded(store, 0, 0, "rollout", MADE_FROM) is None


def test_of_two_runs_the_slower_takes_what_the_faster_made(store):
    assert stages.record(store, 3, 0, "rollout", MADE_FROM, {"made": "first"}) == {"made": "first"}
    assert stages.record(store, 3, 0, "rollout", MADE_FROM, {"made": "second"}) == {"made": "first"}


@pytest.mark.parametrize("changed", list(MADE_FROM))
def test_a_record_made_from_something_else_is_refused(store, changed):
    stages.record(store, 3, 0, "rollout", MADE_FROM, {"made": "it"})
    with pytest.raises(DataError, match=rf"rollout\.json: made from another {changed}$"):
        stages.recorded(store, 3, 0, "rollout", {**MADE_FROM, changed: "other"})


def test_a_record_that_was_edited_is_refused(store):
    stages.record(store, 3, 0, "rollout", MADE_FROM, {"made": "it"})
    data = read_object(store, "_stages/000003/000/rollout.json")
    assert data is not None
    create_object(store, "_stages/000003/000/route.json", data.replace(b'"it"', b'"its"'))
    create_object(store, "_stages/000003/000/rescore.json", data[:-9])
    with pytest.raises(DataError, match=r"route\.json: "):
        stages.recorded(store, 3, 0, "route", MADE_FROM)
    with pytest.raises(DataError) as error:
        stages.recorded(store, 3, 0, "rescore", MADE_FROM)
    assert location(store, "_stages/000003/000/rescore.json") in str(error.value)


def test_a_record_that_no_bytes_of_utf_8_stand_for_is_refused(store):
    create_object(store, "_stages/000003/000/rollout.json", b'{"made_from": {}, "result": {"x": "\\ud800"}}')
    with pytest.raises(DataError, match=r"rollout\.json: not valid JSON: .* surrogates not allowed"):
        stages.recorded(store, 3, 0, "rollout", MADE_FROM)


def test_an_attempt_that_was_given_up_is_not_gone_on_with(store):
    assert stages.current_attempt(store, 3) == 0
    stages.record(store, 3, 0, "rollout", MADE_FROM, {"made": "it"})
    stages.give_up(store, 3, 0, "the disk is full")
    stages.give_up(store, 3, 0, "a second opinion")
    assert stages.current_attempt(store, 3) == 1
    assert stages.recorded(store, 3, 1, "rollout", MADE_FROM) is None
    stages.give_up(store, 3, 1, "again")
    assert [failure["reason"] for failure in stages.failures(store, 3)] == ["the disk is full", "again"]
    assert stages.current_attempt(store, 4) == 0
