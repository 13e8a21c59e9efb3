"""Corpora and questions on disk: JSON lines, plain or compressed (`.gz`, `.xz`)."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envs.search_qa.text import normalize_answer
from opid_core.errors import ConfigError, DataError
from opid_core.local_paths import local_path
from opid_core.reading import lines_of, parse_json


@dataclass(frozen=True)
class Question:
    """One question: any of `golden_answers` is right (no answer is, where the data has none with a word in it);
    `data_source` is the data set it is from; `split` may be ""."""

    question_id: str
    question: str
    golden_answers: tuple[str, ...]
    data_source: str
    split: str = ""

    @property
    def task_id(self) -> str:
        return f"{self.data_source}/{self.question_id}"


def existing_file(path: str, field: str) -> Path:
    """The file at `path` (`~` and environment variables expanded). Raises ConfigError that names the config field."""
    file = local_path(path, field)
    if not file.is_file():
        raise ConfigError(f"{field}: {file} is no file")
    return file


def read_corpus(file: Path) -> Iterator[tuple[str, str]]:
    """(id, contents) of each passage, in the file's order.

    Raises DataError that names file, line and field of a line that cannot be used, of a repeated id, and for a file
    without passages.
    """
    seen: dict[str, int] = {}
    for number, where, entry in _json_lines(file):
        passage_id = _id(entry, where)
        if passage_id in seen:
            raise DataError(f"{where}, field id: {passage_id!r} is already on line {seen[passage_id]}")
        seen[passage_id] = number
        yield passage_id, _text(entry, "contents", where)
    if not seen:
        raise DataError(f"{file}: no passages")


def read_questions(file: Path) -> list[Question]:
    """The questions of a file, in its order; `split` stands in all of its lines or in none.

    Answers without a word (nothing is left of them without punctuation and articles) are dropped; a question with no
    other stays, so that data sets keep their size, and nothing answers it. Raises DataError that names file, line and
    field of a line that cannot be used, of an id that its data source already has, and for a file without questions.
    """
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, where, entry in _json_lines(file):
        answers = entry.get("golden_answers")
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise DataError(f"{where}, field golden_answers: expected a list of non-empty texts, got {answers!r}")
        # Of some real answers, such as '---', nothing is left: any other text without words would equal them.
        telling = [answer for answer in answers if normalize_answer(answer)]
        question = Question(
            question_id=_id(entry, where),
            question=" ".join(_text(entry, "question", where).split()),
            golden_answers=tuple(_characters(answer, "golden_answers", where) for answer in telling),
            data_source=_text(entry, "data_source", where),
            split=_text(entry, "split", where) if "split" in entry else "",
        )
        if question.task_id in seen:
            raise DataError(
                f"{where}, field id: question {question.task_id} is already on line {seen[question.task_id]}"
            )
        if questions and bool(question.split) != bool(questions[0].split):
            raise DataError(f"{where}, field split: some lines have it, some do not")
        seen[question.task_id] = number
        questions.append(question)
    if not questions:
        raise DataError(f"{file}: no questions")
    return questions


def file_digest(file: Path) -> str:
    """sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _json_lines(file: Path) -> Iterator[tuple[int, str, dict]]:
    """(line number, where it stands, object) of each line that is not blank."""
    open_text = {".xz": lzma.open, ".gz": gzip.open}.get(file.suffix, open)
    number = 0
    try:
        with open_text(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines_of(lines), start=1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    entry = parse_json(line.rstrip())
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}, column {error.colno}: not valid JSON: {error.msg}") from None
                if not isinstance(entry, dict):
                    raise DataError(f"{where}: expected a JSON object, got {type(entry).__name__}")
                yield number, where, entry
    except (OSError, lzma.LZMAError, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read after line {number}: {error}") from None


def _id(entry: dict, where: str) -> str:
    value = entry.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{where}, field id: expected a non-empty text or a number, got {value!r}")
    return _characters(str(value), "id", where)


def _text(entry: dict, field: str, where: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}, field {field}: expected a non-empty text, got {value!r}")
    return _characters(value, field, where)


def _characters(text: str, field: str, where: str) -> str:
    """`text`, unless JSON escapes in it stand for half a character (`\\ud83d`), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}, field {field}: half a character (surrogate) at position {error.start}") from None
    return text
