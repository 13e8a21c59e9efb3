"""Stages as tasks of Prefect: names, limits, and the assets that they make of each other."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.tasks import MaterializingTask

from opid_core.config import build_config
from opid_core.schema import TABLES
from tasks.commit import commit
from tasks.evaluate import evaluate
from tasks.extract_skills import extract_skills
from tasks.initial_policy import initial_policy
from tasks.iteration import asset, configured
from tasks.rescore import rescore
from tasks.rollout import rollout
from tasks.route import route
from tasks.store import count_attempts, open_store, read_chain
from tasks.track import prune_states, track
from tasks.update import update

STAGES = (initial_policy, rollout, extract_skills, route, rescore, update, evaluate, commit)
CONFIG = build_config({"campaign": "demo", "recovery": {"stage_retries": 2, "stage_timeout_s": 300.0}})


def test_every_task_has_a_name_and_a_key_and_the_configs_limits():
    tasks = [*STAGES, open_store, read_chain, count_attempts, track, prune_states]
    assert len({one.task_key for one in tasks}) == len(tasks)
    for one in tasks:
        limited = configured(one, CONFIG)
        assert isinstance(limited, Task)
        assert (limited.name, limited.retries, limited.timeout_seconds) == (one.fn.__name__, 2, 300.0)
        assert (limited.task_key, limited.persist_result) == (one.task_key, False)


def test_every_table_is_an_asset_that_is_made_of_earlier_ones():
    made: set[str] = set()
    for one in STAGES:
        limited: Any = configured(one, CONFIG)  # pyright: ignore[reportArgumentType]
        assert isinstance(limited, MaterializingTask)
        assert {it.key for it in limited.asset_deps} <= made | {asset("evaluations", "demo")}
        made |= {it.key for it in limited.assets}
    assert made == {asset(name, "demo") for name in (*TABLES, "policy", "manifest")}
