"""docs/datasets.md: its programs run as they stand, on a campaign in a folder and on one in a real S3 server."""

from __future__ import annotations

from typing import Any

import duckdb
import pandas as pd
import pytest
from datasets import config as datasets_config
from datasets import disable_progress_bars, load_dataset

from infra.store import open_campaign
from opid_core.schema import TABLES
from tests.audited import CONFIG
from tests.conftest import S3_BUCKET
from tests.factories import FIRST, SECOND, START_ROWS, Rows, commit_rows, make_manifest, named_rows
from tests.test_docs import REPOSITORY
from tests.test_snippets import blocks

PAGE = REPOSITORY / "docs" / "datasets.md"


def rows() -> Rows:
    """An episode that was won in two steps under two skills, of which one misleads, and one that was lost."""
    made = named_rows()
    made["scores"][1]["skill_log_probs"] = [-0.75]
    made["steps"][2]["response_text"] = "<action>go</action>"
    return made


@pytest.fixture(scope="module")
def names(tmp_path_factory, s3_server) -> dict[str, Any]:
    """What the page's programs have made, each run after those before it."""
    folder = tmp_path_factory.mktemp("datasets")
    disable_progress_bars()
    made: dict[str, Any] = {"runs": folder / "runs"}
    roots = (("runs", None), (f"s3://{S3_BUCKET}/datasets", s3_server.endpoint_url))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets_config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(datasets_config, "HF_HUB_OFFLINE", False)  # it would keep it from every server, S3's too
        for root, endpoint_url in roots:
            store = open_campaign(root, "quickstart", {**CONFIG, "campaign": "quickstart"}, endpoint_url)
            start = commit_rows(store, folder, None, START_ROWS)
            make_manifest(store, folder, start, rows())  # of an attempt that was killed before its commit
            commit_rows(store, folder, start, rows())
        for language, text in blocks(PAGE):
            if language == "python":
                text = text.replace("my-bucket/opid", f"{S3_BUCKET}/datasets")
                text = text.replace("http://127.0.0.1:9000", s3_server.endpoint_url)
                exec(compile(text, PAGE.name, "exec"), made)
    return made


def test_all_three_read_every_column_of_what_was_committed(names, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path)
    for table, schema in TABLES.items():
        paths = names["parts"](f"{names['runs']}/quickstart", table)
        committed = len(rows()[table]) + len(START_ROWS.get(table, []))
        assert len(paths) == 1 + (table in START_ROWS)
        loaded = load_dataset("parquet", data_files=paths, split="train")
        frame = pd.concat([pd.read_parquet(path) for path in paths])
        relation = duckdb.read_parquet(paths)
        assert (len(loaded), len(frame), len(relation)) == (committed,) * 3  # pyright: ignore[reportArgumentType]
        assert loaded.column_names == [*frame.columns] == schema.names  # pyright: ignore[reportAttributeAccessIssue]
        assert relation.columns[: len(schema)] == schema.names
        assert loaded[:]  # pyright: ignore[reportIndexIssue]


def test_what_the_programs_find(names):
    assert [*names["skills"]["kind"]] == ["episode", "step", "failed"]
    assert [*names["trajectories"]["outcome"]] == ["success", "failure"]
    assert len(names["of_failures"]) == 0
    assert names["won"].to_dict("records") == [{"iteration": 2, "episodes": 2, "won": 1}]
    assert names["curve"].to_dict() == {2: 0.5}
    assert [*names["with_episodes"]["return"]] == [10.0, 10.0]
    messages = names["won_steps"]["messages"]
    assert [[one["role"] for one in pair] for pair in messages] == [["user", "assistant"]] * 2
    assert [pair[0]["content"] for pair in messages] == ["Your task: put a mug on a desk"] * 2
    assert names["pairs"]["rejected"].to_list() == ["<action>go</action>"]
    assert names["pairs"]["chosen"].to_list() == [rows()["steps"][0]["response_text"]]
    assert [*names["token_deltas"]["token_id"]] == [3, 4, 5]


def test_skills_are_ranked_by_what_they_did(names):
    ranked = names["ranked"]
    assert ranked["skill_id"].to_list() == [f"{FIRST}/step0", f"{FIRST}/episode"]
    assert ranked["delta"].to_list() == [0.25, -0.25]
    assert ranked["tokens"].to_list() == [2, 1]


def test_the_same_is_read_from_s3(names):
    assert names["skills_there"].to_list() == names["skills"].to_list()
    assert [frame["skill_id"].to_list() for frame in names["frames"]] == [[*names["skills"]["skill_id"]]]
    counted = dict(zip(names["by_kind"]["kind"], names["by_kind"]["skills"], strict=True))
    assert counted == {"episode": 1, "step": 1, "failed": 1}
    assert names["skills"]["trajectory_id"][2] == SECOND
