"""Search-R1's and verl's files of questions, read as they are."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.base import make
from envs.search_qa.data import Question, question_files, read_questions
from envs.search_qa.tasks import stored_splits, stored_tasks
from opid_core.errors import ConfigError, DataError

PROMPT = [{"role": "user", "content": "Answer the given question. Question: who?"}]


def search_r1(number: int, source: str = "nq", split: str = "test", **changes) -> dict:
    """A row as Search-R1 writes it."""
    row = {
        "id": f"{split}_{number}",
        "question": f"who is {number}?",
        "golden_answers": ["Ada", "Ada Lovelace"],
        "data_source": source,
        "prompt": PROMPT,
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Ada", "Ada Lovelace"]}},
        "extra_info": {"index": number, "split": split},
    }
    return {**row, **changes}


def verl(number: int, source: str, answer: str | list[str] = "Ada", **changes) -> dict:
    """A row of a data set that was made for verl from the hub: no id, the question and its answers in `extra_info`."""
    row = {
        "data_source": source,
        "prompt": PROMPT,
        "ability": "QA",
        "reward_model": {"style": "rule", "ground_truth": answer if isinstance(answer, str) else ", ".join(answer)},
        "extra_info": {"answer": answer, "index": number, "question": f"who is {number}?", "split": "test"},
    }
    return {**row, **changes}


def without(row: dict, *fields: str) -> dict:
    return {name: value for name, value in row.items() if name not in fields}


def write_parquet(path: Path, *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "write"), [("test.parquet", write_parquet), ("test.jsonl", write_lines)])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (search_r1(7), Question("test_7", "who is 7?", ("Ada", "Ada Lovelace"), "nq", "test")),
        (
            without(search_r1(7, "searchR1_popqa"), "id", "golden_answers"),
            Question("test_7", "who is 7?", ("Ada", "Ada Lovelace"), "popqa", "test"),
        ),
        (
            verl(0, "voidful/2WikiMultihopQA", "A, B"),
            Question("test_0", "who is 0?", ("A, B",), "2wikimultihopqa", "test"),
        ),
        (
            verl(3, "google-research-datasets/nq_open", ["14 May", "May 14"]),  # not the text that joins them
            Question("test_3", "who is 3?", ("14 May", "May 14"), "nq", "test"),
        ),
        (
            verl(4, "mine", extra_info={"index": 4, "question": "why?", "split": "dev"}),
            Question("dev_4", "why?", ("Ada",), "mine", "dev"),
        ),
    ],
)
def test_each_form_is_read(tmp_path, name, write, row, expected):
    assert read_questions(write(tmp_path / name, row)) == [expected]


def test_a_folder_is_one_set_of_questions(tmp_path):
    write_parquet(tmp_path / "train.parquet", *[search_r1(n, source, "train") for n in (0, 1) for source in ("nq",)])
    write_parquet(tmp_path / "test.parquet", *[search_r1(n, source) for n in (0, 1) for source in ("nq", "bamboogle")])
    (tmp_path / "README.md").write_text("not read")
    assert [file.name for file in question_files(str(tmp_path), "x")] == ["test.parquet", "train.parquet"]
    assert stored_splits(str(tmp_path)) == ["test", "train"]
    assert {task.task_id for task in stored_tasks(str(tmp_path), "train")} == {"nq/train_0", "nq/train_1"}
    panel = stored_tasks(str(tmp_path), "test")
    assert Counter(task.task_type for task in panel) == {"nq": 2, "bamboogle": 2}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(search_r1(1), "question"), "row 2, field question: expected a non-empty text, got None"),
        (without(search_r1(1), "data_source"), "row 2, field data_source: expected a non-empty text, got None"),
        (
            search_r1(1, golden_answers=[]),
            "row 2, field golden_answers: expected a list of non-empty texts, got []",
        ),
        (
            without(search_r1(1, reward_model=None), "golden_answers"),
            "row 2, field golden_answers: expected a list of non-empty texts, got None",
        ),
        (
            without(search_r1(1, reward_model={"style": "rule", "ground_truth": {"target": [" "]}}), "golden_answers"),
            "row 2, field reward_model.ground_truth.target: expected a list of non-empty texts, got [' ']",
        ),
        (
            without(search_r1(1, extra_info={"split": "test"}), "id"),
            "row 2, field id: expected a non-empty text or a number, got None",
        ),
        (search_r1(0), "row 2, field id: question nq/test_0 is already on row 1"),
        (search_r1(1, extra_info=None), "row 2, field split: some lines have it, some do not"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    file = write_parquet(
        tmp_path / "test.parquet", *[{**dict.fromkeys(search_r1(0)), **r} for r in (search_r1(0), row)]
    )
    with pytest.raises(DataError) as caught:
        read_questions(file)
    assert str(caught.value) == f"{file}, {message}"


def test_an_id_that_two_files_share_names_both(tmp_path):
    first, second = (write_parquet(tmp_path / name, search_r1(0)) for name in ("a.parquet", "b.parquet"))
    with pytest.raises(DataError) as caught:
        read_questions(first, second)
    assert str(caught.value) == f"{second}, row 1, field id: question nq/test_0 is already on row 1 of {first}"


def test_files_that_hold_no_questions_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"environment\.options\.questions: .*folder"):
        make("search_qa", {"corpus": __file__, "questions": str(tmp_path / "folder")})
    (tmp_path / "broken.parquet").write_text("nonsense")
    with pytest.raises(DataError, match=r"broken\.parquet: "):
        read_questions(tmp_path / "broken.parquet")
    (tmp_path / "empty.parquet").unlink(missing_ok=True)
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet: "):
        read_questions(tmp_path / "empty.parquet")


def test_the_real_panel():
    panel = Path(os.environ.get("OPID_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "search" / "panel"
    if not panel.is_dir():
        pytest.skip("no folder search/panel/ in $OPID_SHARED_DATA or ../shared/data")
    tasks = stored_tasks(str(panel), "test")
    # The sizes that the papers give; of the panel's seven sets TriviaQA and PopQA are not in the folder.
    assert Counter(task.task_type for task in tasks) == {
        "nq": 3610,
        "hotpotqa": 7405,
        "2wikimultihopqa": 12576,
        "musique": 2417,
        "bamboogle": 125,
    }
    (hanover,) = [task for task in tasks if task.task_id == "bamboogle/test_4"]
    assert hanover.payload.golden_answers == ("20 June 1837",)
