from __future__ import annotations

import gzip
import json
import lzma
import os

import pytest

from envs.base import make
from envs.search_qa.data import Question, read_corpus, read_questions
from envs.search_qa.tasks import split_of, stored_tasks, tasks_of
from opid_core.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))


def passage_line(passage_id: str = "1", contents: str = '"One"\ntext') -> str:
    return json.dumps({"id": passage_id, "contents": contents})


def question_line(number: int = 1, source: str = "nq", **changes) -> str:
    entry = {"id": f"q{number}", "question": f"what is {number}?", "golden_answers": ["x"], "data_source": source}
    return json.dumps({**entry, **changes})


def write_lines(path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("name", "pack"), [("c.jsonl", bytes), ("c.jsonl.gz", gzip.compress), ("c.xz", lzma.compress)])
def test_a_corpus_is_read_plain_or_compressed(tmp_path, name, pack):
    file = tmp_path / name
    file.write_bytes(pack(f"{passage_line('a')}\n\n{passage_line('7', 'é')}\n".encode()))  # pyright: ignore
    assert list(read_corpus(file)) == [("a", '"One"\ntext'), ("7", "é")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2, column 2: not valid JSON: Expecting property name"),
        ("[]", "line 2: expected a JSON object, got list"),
        ('{"contents": "x"}', "line 2, field id: expected a non-empty text or a number, got None"),
        ('{"id": "2"}', "line 2, field contents: expected a non-empty text, got None"),
        ('{"id": "2", "contents": " "}', "line 2, field contents: expected a non-empty text, got ' '"),
        (passage_line(), "line 2, field id: '1' is already on line 1"),
        ('{"id": "2", "contents": "x\\ud83d"}', "line 2, field contents: half a character (surrogate) at position 1"),
    ],
)
def test_bad_passages_are_named(tmp_path, line, message):
    file = tmp_path / "corpus.jsonl"
    write_lines(file, passage_line(), line)
    with pytest.raises(DataError) as caught:
        list(read_corpus(file))
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2, column 1: not valid JSON: Expecting value"),
        (question_line(2, id=True), "line 2, field id: expected a non-empty text or a number, got True"),
        (question_line(2, question=""), "line 2, field question: expected a non-empty text, got ''"),
        (
            question_line(2, golden_answers=[]),
            "line 2, field golden_answers: expected a list of non-empty texts, got []",
        ),
        (question_line(2, golden_answers="x"), "line 2, field golden_answers"),
        (question_line(2, golden_answers=[3]), "line 2, field golden_answers"),
        (question_line(2, data_source=None), "line 2, field data_source: expected a non-empty text, got None"),
        (question_line(2, split="train"), "line 2, field split: some lines have it, some do not"),
        (question_line(1), "line 2, field id: question nq/q1 is already on line 1"),
        (question_line(2, golden_answers=["x", "\ud83d"]), "line 2, field golden_answers: half a character"),
    ],
)
def test_bad_questions_are_named(tmp_path, line, message):
    file = tmp_path / "questions.jsonl"
    write_lines(file, question_line(), line)
    with pytest.raises(DataError) as caught:
        read_questions(file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_of_golden_answers_those_that_say_something_are_kept(tmp_path):
    write_lines(tmp_path / "q.jsonl", question_line(0, golden_answers=["The The", "a band", "?"]))
    assert read_questions(tmp_path / "q.jsonl")[0].golden_answers == ("a band",)


def test_two_questions_that_make_the_same_task_id_are_refused(tmp_path):
    write_lines(tmp_path / "q.jsonl", question_line(0, "nq", id="dev/1"), question_line(0, "nq/dev", id="1"))
    with pytest.raises(DataError, match=r"q\.jsonl, line 2, field id: .*nq/dev/1.*line 1"):
        read_questions(tmp_path / "q.jsonl")


def test_empty_and_broken_files_are_refused(tmp_path):
    empty, broken, cut = tmp_path / "empty.jsonl", tmp_path / "broken.xz", tmp_path / "cut.gz"
    empty.write_text("\n \n")
    broken.write_bytes(b"no archive")
    cut.write_bytes(gzip.compress(passage_line().encode() * 1000)[:-20])
    with pytest.raises(DataError, match=r"empty\.jsonl: "):
        list(read_corpus(empty))
    with pytest.raises(DataError, match=r"empty\.jsonl: "):
        read_questions(empty)
    for file in (broken, cut):
        with pytest.raises(DataError, match=f"{file.name}: .*line 0"):
            list(read_corpus(file))


def test_the_same_id_may_stand_in_two_data_sources(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", question_line(1, "nq"), question_line(1, "popqa"))
    questions = read_questions(tmp_path / "q.jsonl")
    assert [task.task_id for task in tasks_of(questions)] == ["nq/q1", "popqa/q1"]
    assert [task.task_type for task in tasks_of(questions)] == ["nq", "popqa"]
    assert {t.task_id for split in {split_of(q) for q in questions} for t in stored_tasks(path, split)} == {
        "nq/q1",
        "popqa/q1",
    }


def test_splits_by_hash_depend_on_the_question_alone(tmp_path):
    # sha256("nq/q17") begins with 19beafdf, sha256("nq/q32") with 09143187; a tenth of 2**32 is 19999999.
    assert split_of(Question("q17", "", ("x",), "nq")) == "train"
    assert split_of(Question("q32", "", ("x",), "nq")) == "valid_unseen"
    path = write_lines(tmp_path / "q.jsonl", *[question_line(n) for n in range(1000)])
    train, held_out = stored_tasks(path, "train"), stored_tasks(path, "valid_unseen")
    assert len(train) + len(held_out) == 1000
    assert 70 < len(held_out) < 130
    reversed_path = write_lines(tmp_path / "r.jsonl", *[question_line(n) for n in reversed(range(1000))])
    assert stored_tasks(reversed_path, "train") == train


def test_splits_of_the_file_and_of_a_manifest(tmp_path):
    lines = [question_line(n, split="dev" if n < 3 else "train") for n in range(5)]
    path = write_lines(tmp_path / "q.jsonl", *lines)
    assert {task.task_id for task in stored_tasks(path, "dev")} == {"nq/q0", "nq/q1", "nq/q2"}
    with pytest.raises(ConfigError, match=r"split: .*'valid_unseen'.*q\.jsonl.*dev, train"):
        stored_tasks(path, "valid_unseen")
    manifest = write_lines(tmp_path / "ids", "hard nq/q4", "hard nq/q0")
    assert [task.task_id for task in stored_tasks(path, "hard", manifest)] == ["nq/q4", "nq/q0"]
    with pytest.raises(DataError, match=r"line 2: .*'nq/q9'"):
        stored_tasks(path, "hard", write_lines(tmp_path / "ids", "hard nq/q4", "hard nq/q9"))


def test_a_changed_file_is_read_again(tmp_path):
    path = write_lines(tmp_path / "q.jsonl", question_line(1, split="train"))
    assert len(stored_tasks(path, "train")) == 1
    write_lines(tmp_path / "q.jsonl", question_line(1, split="train"), question_line(2, split="train"))
    os.utime(path, ns=(1, 1))
    assert len(stored_tasks(path, "train")) == 2


def test_bad_options_are_refused(tmp_path):
    corpus = write_lines(tmp_path / "c.jsonl", passage_line())
    for options, message in (
        ({"corpus": str(tmp_path / "none"), "questions": corpus}, r"environment\.options\.corpus: .*none is no file"),
        (
            {"corpus": corpus, "questions": str(tmp_path / "none")},
            r"environment\.options\.questions: .*none is no file",
        ),
        ({"corpus": corpus}, "give a file for both, or for neither"),
        ({"retrieval": {"engine": "lucene"}}, r"retrieval\.engine: Input should be 'bm25s', 'dense' or 'server'"),
        ({"retrieval": {"engine": "server"}}, "url: give it with engine `server`"),
        ({"retrieval": {"url": "http://127.0.0.1/retrieve"}}, "url: give it with engine `server`"),
        ({"retrieval": {"engine": "server", "url": "localhost:8000"}}, r"retrieval\.url: String should match pattern"),
        ({"retrieval": {"engine": "server", "url": "http://[::zz]/retrieve"}}, "url: Invalid IPv6 address"),
        ({"retrieval": {"topk": 3}}, "unknown key; did you mean 'top_k'"),
        ({"generator": {"passages": 5}}, "greater than or equal to 50"),
        ({"max_turns": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make("search_qa", options)


def test_a_bad_corpus_is_refused_at_the_first_reset(tmp_path):
    corpus = write_lines(tmp_path / "c.jsonl", passage_line(), "{")
    questions = write_lines(tmp_path / "q.jsonl", question_line(1, split="train"))
    environment = make("search_qa", {"corpus": corpus, "questions": questions})
    with pytest.raises(DataError, match=r"c\.jsonl, line 2, column 2: "):
        environment.reset(environment.tasks("train")[0])
    assert not list((tmp_path / "cache" / "search_qa").iterdir())  # nothing half built is left
